"""The synthetic data set: its files, its balance, and the tokenizer trained on it."""

import hashlib
import json
import os
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from videorft_jax.data.records.prompts import append_options, build_messages, build_target
from videorft_jax.data.records.records import PROBLEM_TYPES
from videorft_jax.data.records.render import render
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import make_sample, write_dataset
from videorft_jax.demo.scenes import QUESTIONS, WorldConfig, draw_frames
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    ticks = []
    files = write_dataset(
        folder, 27, 18, 9, seed=5, progress=lambda done, total: ticks.append((done, total))
    )
    assert ticks[-1] == (54, 54)
    assert [done for done, _ in ticks] == sorted({done for done, _ in ticks})
    return folder, files


def test_dataset_is_valid(dataset):
    folder, files = dataset
    kinds = set()
    for split, num in (("sft", 27), ("rl", 18), ("eval", 9)):
        source = RecordSource(files[split])
        assert len(source) == num
        assert list(source.iter_errors()) == []
        lines = (folder / f"{split}_captions.jsonl").read_text().splitlines()
        captions = [json.loads(line) for line in lines]
        for i in range(num):
            record = source[i]
            kinds.add(record.problem_type)
            assert os.path.isfile(os.path.join(source.data_root, record.path))
            assert captions[i]["path"] == record.path
            assert captions[i]["data_type"] == record.data_type
            assert bool(record.process) == (split != "rl")
            assert append_options(record.problem, record.options) == record.problem
            assert record == make_sample(WorldConfig(), 5, split, i).record
    assert kinds == set(PROBLEM_TYPES)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_and_resume(dataset, tmp_path):
    folder, _ = dataset
    for name in ("clips/sft/000000.mp4", "clips/rl/000003.mp4"):
        assert (folder / name).exists()
    write_dataset(tmp_path, 12, 9, 0, seed=5, num_threads=3)
    victim = tmp_path / "clips/sft/000000.mp4"
    victim.unlink()
    (tmp_path / "clips/sft/000001.mp4.99.tmp").write_bytes(b"cut short")
    kept = tmp_path / "clips/sft/000002.mp4"
    before = kept.stat().st_mtime_ns if kept.exists() else None
    assert before
    time.sleep(0.01)
    write_dataset(tmp_path, 27, 18, 9, seed=5, num_threads=1)
    assert kept.stat().st_mtime_ns == before
    (tmp_path / "clips/sft/000001.mp4.99.tmp").unlink()
    assert digests(tmp_path) == digests(folder)
    with pytest.raises(ValueError, match="another seed"):
        write_dataset(tmp_path, 1, 0, 0, seed=6)
    with pytest.raises(ValueError, match="another seed, world"):
        write_dataset(tmp_path, 1, 0, 0, seed=5, world=WorldConfig(fps=5))


def test_samples_are_distinct_and_order_free():
    world = WorldConfig()
    keys = [(split, i) for split in ("sft", "rl", "eval") for i in range(60)]
    forward = {key: make_sample(world, 3, *key) for key in keys}
    for key in reversed(keys[::7]):
        again = make_sample(world, 3, *key)
        assert again.record == forward[key].record
        np.testing.assert_array_equal(draw_frames(again.scene), draw_frames(forward[key].scene))
    pixels = {hashlib.sha256(draw_frames(s.scene).tobytes()).digest() for s in forward.values()}
    assert len(pixels) == len(keys)
    other = make_sample(world, 4, "sft", 0)
    assert not np.array_equal(other.scene.tracks, forward["sft", 0].scene.tracks)


def chi_square(counts, num):
    expected = sum(counts.values()) / num
    missing = num - len(counts)
    return sum((n - expected) ** 2 / expected for n in counts.values()) + missing * expected


# 99.9 % points of the chi-square distribution by degrees of freedom
CRITICAL = {1: 10.8, 2: 13.8, 3: 16.3}


def test_answers_cannot_be_guessed():
    """Letters and values are even, and neither the question nor its options tell the answer."""
    world = WorldConfig()
    groups = defaultdict(list)
    for index in range(240 * len(QUESTIONS)):
        if QUESTIONS[index % len(QUESTIONS)] not in ("text", "describe", "position"):
            record = make_sample(world, 1, "rl", index).record
            groups[record.data_source.removeprefix("synthetic-")].append(record)
    sizes = {"direction": 4, "first": 3, "colour": 4, "touch": 2, "count": 3, "bounces": 3}
    for kind, num in sizes.items():
        records = groups[kind]
        letters = Counter(record.solution for record in records)
        assert max(letters.values()) == min(letters.values()) == 240 // num
        texts = [
            next((o[3:] for o in r.options if o[0] == r.solution), r.solution) for r in records
        ]
        assert len(set(texts)) == num
        assert chi_square(Counter(texts), num) < CRITICAL[num - 1], (kind, Counter(texts))
        # majority answer per question wording, learnt on one half, tried on the other
        votes = defaultdict(Counter)
        wording = [record.problem.split("\n")[0] for record in records]
        for question, text in zip(wording[:120], texts[:120], strict=True):
            votes[question][text] += 1
        hits = [
            bool(votes[question]) and votes[question].most_common(1)[0][0] == text
            for question, text in zip(wording[120:], texts[120:], strict=True)
        ]
        sigma = np.sqrt((1 / num) * (1 - 1 / num) / 120)
        assert np.mean(hits) < 1 / num + 3.3 * sigma, kind


def best_constant(records, score):
    """Kind of question -> (the answer that scores best on all records of it, its mean score)."""
    groups = defaultdict(list)
    for record in records:
        groups[record.data_source.removeprefix("synthetic-")].append(record)
    found = {}
    for kind, group in groups.items():
        means = {
            answer: np.mean([score(answer, record.solution) for record in group])
            for answer in {record.solution for record in group}
        }
        found[kind] = max(means.items(), key=lambda item: item[1])
    return found


def test_no_constant_answer_scores_well():
    world = WorldConfig()
    records = [make_sample(world, 2, "eval", i).record for i in range(24 * len(QUESTIONS))]
    best = best_constant(records, lambda answer, solution: answer == solution)
    for kind, num in {"direction": 4, "first": 3, "touch": 2, "count": 3, "bounces": 3}.items():
        assert best[kind][1] == pytest.approx(1 / num)
    assert best["text"][1] <= 2 / 24
    assert best["position"][1] < 0.2

    def closeness(answer, solution):
        return max(0.0, 1 - abs(float(answer) - float(solution)) / float(solution))

    positions = [record for record in records if record.problem_type == "regression"]
    assert best_constant(positions, closeness)["position"][1] < 0.65


def test_tiny_tokenizer_on_the_set():
    world = WorldConfig(max_shapes=2, shuffle_options=False, restate=False, still_every=0)
    records = [make_sample(world, 0, "sft", i).record for i in range(90)]
    texts = [record.problem + "\n" + build_target(record) for record in records]
    tokenizer = train_tiny_tokenizer(texts, 512)
    prompt = render(tokenizer, build_messages(records[0]), [4], build_target(records[0]))
    told = tokenizer.decode(prompt.tokens[prompt.loss_mask])
    assert told == build_target(records[0]) + "<|im_end|>"
    assert np.mean([len(tokenizer(build_target(r))["input_ids"]) for r in records]) < 60
