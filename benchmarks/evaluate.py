"""Questions a second of an evaluation: grouped by clip, each question alone, and Hugging Face.

python benchmarks/evaluate.py [--rounds 3] [--json]

Clips of 32 frames of 224 x 224 (1,024 visual tokens), greedy answers of 16 tokens in float32, at 1,
3 and 17.8 questions a clip, which are those of MVBench, Video-MME and VSI-Bench. "Grouped" is what
`videorft evaluate` does: it decodes and encodes a clip once for its questions. "Alone" gives each
question a copy of its clip. Hugging Face decodes the clip and calls `generate` for each question,
one after another, as harnesses do; it is given the same frames and tokens. "Work" is the ratio of
floating-point operations that grouping saves at best. Medians over rounds, without the first, which
compiles.
"""

import argparse
import functools
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time
import types

import numpy as np
import peer

FRAMES, SIDE, NEW, ROWS = 32, 224, 16, 4
SHARES = {"1": [1] * 16, "3": [3] * 8, "17.8": [18, 18, 18, 18, 17]}  # questions of each clip
PEER_QUESTIONS = 8
TEXTS = ["Which way does the red square move? Answer with a letter.", "What stands in the corner?"]


def contract():
    from videorft_jax.data.media.contract import MediaContract

    return MediaContract(num_frames=FRAMES, min_pixels=SIDE**2, max_pixels=SIDE**2)


def write_files(folder):
    """The model, its tokenizer, and for each share two record files: with clips that are shared and
    with a copy of the clip for each question."""
    from videorft_jax.demo.dataset import write_clip
    from videorft_jax.demo.tiny_tokenizer import find_control_ids, train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer([*TEXTS, "You are a helpful assistant. user assistant"], 512)
    peer.VALUES |= find_control_ids(tokenizer) | {"vocab_size": len(tokenizer)}
    peer.write_model(folder)
    tokenizer.save_pretrained(folder)
    rng = np.random.default_rng(0)
    for number in range(max(map(len, SHARES.values()))):
        frames = rng.integers(0, 255, (FRAMES // 2, SIDE, SIDE, 3), np.uint8)
        write_clip(folder / f"{number}.mp4", np.repeat(frames, 2, axis=0), 8)
    for share, counts in SHARES.items():
        clips = [clip for clip, count in enumerate(counts) for _ in range(count)]
        for name in ("grouped", "alone"):
            with open(folder / f"{name}-{share}.jsonl", "w", encoding="utf-8") as file:
                for number, clip in enumerate(clips):
                    path = f"{clip}.mp4"
                    if name == "alone":
                        path = f"{share}-{number}.mp4"
                        shutil.copy(folder / f"{clip}.mp4", folder / path)
                    row = {"problem_id": number, "problem": f"{TEXTS[number % 2]} ({number})",
                           "data_type": "video", "problem_type": "free-form", "solution": "a",
                           "path": path}  # fmt: skip
                    file.write(json.dumps(row) + "\n")


def make_loader(folder, name):
    import transformers

    from videorft_jax.data.loader.options import LoaderOptions
    from videorft_jax.data.loader.pipeline import Loader
    from videorft_jax.data.records.source import RecordSource

    options = LoaderOptions(
        mode="evaluate", rows=ROWS, row_tokens=2048, max_buckets=1, multiple=64, epochs=1, seed=0,
        max_bad_fraction=0.0, threads=2, workers=0, timeout_s=600.0, isolate=False,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    source = RecordSource(folder / f"{name}.jsonl")
    return Loader(source, tokenizer, contract(), options, sizes_dir=folder / "sizes"), tokenizer


def run_ours(folder, pipe):
    from videorft_jax.evaluation.runner import evaluate_records
    from videorft_jax.models.family import load_config
    from videorft_jax.models.hf_folder import read_checkpoint
    from videorft_jax.rollout.engine import RolloutEngine
    from videorft_jax.rollout.sampling import SamplingConfig

    config = load_config(folder)
    sampling = SamplingConfig(num_rollouts=1, max_new_tokens=NEW, temperature=0.0)
    engine = RolloutEngine(config, sampling, dtype="float32", num_buckets=1)
    params = engine.prepare(read_checkpoint(folder, config))

    def once(name):
        loader, tokenizer = make_loader(folder, name)
        started = time.perf_counter()
        rows = evaluate_records(engine, params, tokenizer, loader)
        return time.perf_counter() - started, {r["index"]: r["completion"] for r in rows}

    peer.serve(once, pipe)


def run_peer(folder, pipe):
    import torch

    from videorft_jax.data.media.video import read_video

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    values = json.loads((folder / "config.json").read_text())
    model = peer.load_peer(folder).eval()

    @functools.cache
    def prompts():
        """(clip, tokens) of some questions; making the tokens is not timed."""
        loader, tokenizer = make_loader(folder, "alone-1")
        found = []
        with loader.steps() as steps:
            for step in steps:
                for row, (record,) in enumerate(step.records):
                    tokens = step.batch.tokens[row][step.batch.segment_ids[row] > 0]
                    found.append((record.path, tokens))
        return found[:PEER_QUESTIONS], tokenizer

    def once():
        questions, tokenizer = prompts()
        texts, started = [], time.perf_counter()
        for path, tokens in questions:
            clip = read_video(path, contract(), root=str(folder))
            sample = types.SimpleNamespace(tokens=tokens, loss_mask=np.zeros(len(tokens), bool))
            inputs, _ = peer.peer_inputs([clip.frames], [sample], values)
            out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            texts.append(out[0, len(tokens) :])
        seconds = (time.perf_counter() - started) / len(questions)
        return seconds, [tokenizer.decode(text, skip_special_tokens=True) for text in texts]

    peer.serve(once, pipe)


def ratio_of_work(folder, share) -> float:
    """Operations of a question that is asked alone over those of a grouped one."""
    from videorft_jax.metrics import flops
    from videorft_jax.models.family import load_config

    config, (loader, _) = load_config(folder), make_loader(folder, "alone-1")
    with loader.steps() as steps:
        batch = next(steps).batch
    vision = flops.forward_cost(config, flops.vision_work(batch.patch_valid[:1])[0]).forward
    length = int((batch.segment_ids[0] > 0).sum())
    work, _ = flops.group_work(np.array([length]), np.array([[NEW]]), length, NEW)
    text = flops.forward_cost(config, work).forward
    return (vision + text) / (vision / float(share) + text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {"ours": {}, "peer": {}, "ratio": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        write_files(folder)
        with peer.Sides(folder, ours=run_ours, peer=run_peer) as sides:
            rates: dict[str, list[float]] = {}
            for _ in range(options.rounds + 1):
                answers = {}
                for share, counts in SHARES.items():
                    for name in (f"grouped-{share}", f"alone-{share}"):
                        seconds, answers[name] = sides.ask("ours", name)
                        rates.setdefault(name, []).append(sum(counts) / seconds)
                    assert answers[f"grouped-{share}"] == answers[f"alone-{share}"]
                seconds, texts = sides.ask("peer")
                rates.setdefault("peer", []).append(1 / seconds)
                same = sum(texts[k] == answers["alone-1"][k] for k in range(len(texts)))
        middle = {name: statistics.median(own[1:]) for name, own in rates.items()}
        report["peer"]["questions_per_s"] = middle["peer"]
        equal = f"{same} of {len(texts)} answers equal"
        print(f"Hugging Face: {middle['peer']:.2f} questions/s; {equal}")
        for share in SHARES:
            grouped, alone = middle[f"grouped-{share}"], middle[f"alone-{share}"]
            work = ratio_of_work(folder, share)
            report["ours"] |= {f"grouped_{share}_per_s": grouped, f"alone_{share}_per_s": alone}
            report["ratio"] |= {
                f"grouped_{share}": grouped / alone,
                f"grouped_{share}_of_work": grouped / alone / work,
                f"peer_{share}": grouped / middle["peer"],
            }
            print(
                f"{share} questions a clip: grouped {grouped:.2f} questions/s, alone {alone:.2f}, "
                f"ratio {grouped / alone:.2f} ({work:.2f} by work), "
                f"{grouped / middle['peer']:.2f}x Hugging Face", flush=True,
            )  # fmt: skip
    if options.json:
        shape = {"frames": FRAMES, "side": SIDE, "new_tokens": NEW, "rows": ROWS}
        print(json.dumps({"machine": peer.machine(), "shape": shape, **report}))


if __name__ == "__main__":
    main()
