"""The pool: which clips are one, which are known from a benchmark, and on which side they stand."""

import json

import pytest
from clip_changes import CHANGES, encode, make_frames
from curation_run import make_pool

from videorft_jax.curation.contamination import BenchmarkTexts
from videorft_jax.curation.pool import Pool
from videorft_jax.curation.store import Store
from videorft_jax.data.records.source import RecordSource

NUM_OTHERS = 20
ROW = {
    "data_type": "video", "problem_type": "multiple choice", "process": "",
    "options": ["A. red", "B. blue"], "solution": "<answer>B</answer>", "data_source": "made up",
}  # fmt: skip


def write(folder, name, clips, **changes):
    """A record file with a question for each (file name, bytes)."""
    folder.mkdir(exist_ok=True)
    rows = []
    for index, (path, data) in enumerate(clips):
        (folder / path).write_bytes(data)
        own = {"problem_id": index, "problem": f"Which colour has box {index} of {name}?"}
        rows.append(ROW | own | {"path": f"./{path}"} | changes)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, tmp_path, benchmarks=(), val_fraction=0.0):
    with Store(tmp_path / "store.sqlite") as store:
        return list(Pool(RecordSource(path), store, benchmarks, val_fraction))


@pytest.fixture(scope="module")
def clips():
    """Twenty clips of nothing in common, and twenty over the background of the benchmark's."""
    unrelated = [encode(make_frames(100 + i)) for i in range(NUM_OTHERS)]
    alike = [encode(make_frames(200 + i, background=1)) for i in range(NUM_OTHERS)]
    return unrelated, alike


def test_16_a_benchmark_clip_is_found_however_it_was_encoded(clips, tmp_path):
    shown = make_frames(1)
    benchmark = write(tmp_path / "benchmark", "bench", [("a.mp4", encode(shown))])
    changed = [(f"{i}.mp4", change(shown)) for i, change in enumerate(CHANGES.values())]
    others = [(f"other{i}.mp4", data) for i, data in enumerate(clips[0] + clips[1])]
    pool = write(tmp_path / "pool", "pool", changed + others)
    entries = read(pool, tmp_path, [(str(benchmark), "")])
    assert [entry.contaminated for entry in entries[:5]] == ["hash"] * 5
    assert [entry.contaminated for entry in entries[5:]] == [""] * 2 * NUM_OTHERS
    assert {hit[:2] for entry in entries[:5] for hit in entry.hits} == {("bench", "0")}
    assert not any(entry.is_used for entry in entries[:5])
    assert len({entry.cluster for entry in entries}) == 1 + 2 * NUM_OTHERS


def test_17_a_re_encoded_twin_is_on_the_same_side(clips, tmp_path):
    count = 16  # Encoders may give other bytes, and so other sides: all are one in 32,768 times.
    whole = [(f"{i}.mp4", data) for i, data in enumerate(clips[0][:count])]
    change = CHANGES["mirrored"]
    twins = [(f"twin{i}.mp4", change(make_frames(100 + i))) for i in range(count)]
    pool = write(tmp_path / "pool", "pool", whole + twins, problem="What is it?")
    entries = read(pool, tmp_path, val_fraction=0.5)
    for entry, twin in zip(entries[:count], entries[count:], strict=True):
        assert entry.media != twin.media
        assert (entry.cluster, entry.split) == (twin.cluster, twin.split)
        assert (entry.dup_of, twin.dup_of) == ("", entry.name)
    assert {entry.split for entry in entries} == {"train", "val"}
    sides = {(entry.cluster, entry.split) for entry in entries}
    assert len(sides) == len({cluster for cluster, _ in sides}) == count


def test_16_text_of_a_benchmark_is_known_with_its_answer_and_noted_without(tmp_path):
    long = "After the woman has put the red cup on the table, what does the man take?"
    (tmp_path / "bench.json").write_text(
        json.dumps([ROW | {"problem_id": "q", "problem": long, "path": "no_such.mp4"}])
    )
    texts = BenchmarkTexts([(str(tmp_path / "bench.json"), "")])

    def how(*record):
        return [hit.how for hit in texts.find(*record)]

    assert how(long.upper(), ["A. blue", "B. red"], "A") == ["text"]  # in another order
    assert how(long, ["A. blue", "B. red"], "B") == ["question"]
    assert how(f"Look closely. {long}", ["A. cup", "B. pan"], "B") == ["question"]
    assert how("What does the man take?", ["A. red", "B. blue"], "B") == []
    with pytest.raises(ValueError, match="no_such"):
        BenchmarkTexts([("no_such.json", str(tmp_path))])


def test_16_bytes_and_ids_of_a_benchmark_are_known(clips, tmp_path):
    name = "dQw4w9WgXcQ.mp4"
    rows = [(name, clips[0][0]), ("b.mp4", clips[0][1])]
    benchmark = write(tmp_path / "benchmark", "bench", rows)
    pool = write(tmp_path / "pool", "pool", [(name, clips[0][2]), ("x.mp4", clips[0][1])])
    entries = read(pool, tmp_path, [(str(benchmark), "")])
    assert [entry.contaminated for entry in entries] == ["id", "file"]


def test_a_question_in_nearly_the_same_words_about_one_clip_is_asked_once(tmp_path):
    long = "In the clip that is shown here, what is it that rolls over the wooden floor at the end"
    texts = [
        (long, "a blue ball", 0), (f"{long}?!", "A blue ball.", 0),
        (long.replace("In the", "Within the"), "a blue ball", 0),  # one shingle of 19
        (long.replace("In the", "Within the"), "a red ball", 0),  # another answer
        (long, "a blue ball", 1),  # another clip
        ("What rolls over the floor at the end?", "a blue ball", 0),  # a question of its own
    ]  # fmt: skip
    path = make_pool(tmp_path, [text for text, _, _ in texts], clips=2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row, (_, solution, clip) in zip(lines, texts, strict=True):
        row |= {"solution": f"<answer>{solution}</answer>", "path": f"./{clip}.png"}
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    with Store(tmp_path / "s.sqlite") as store:
        entries = list(Pool(RecordSource(path), store, (), 0.0))
    first = entries[0].name
    assert [entry.dup_of for entry in entries] == ["", first, first, "", "", ""]
