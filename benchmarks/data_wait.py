"""How long steps of GRPO wait for data: on the demo, and on 720p clips with 16 frames.

    python benchmarks/data_wait.py --demo=runs/demo [--rows 4] [--rollouts 8] [--new 64] [--json]

The demo's figures are read off what its runs have logged. For the clips, `videorft grpo` trains the
demo's model on questions of the demo about files of 20 s in 720p, made of a real clip as in
decode.py, each decoded anew for every record. A step's wait is `time/data` of metrics.jsonl, a
share of `perf/step_s`, summed over the steps after the first five: the first compiles, and the
next four are fed by what was decoded meanwhile. Beside it stands a bare loop that only decodes: a
batch needs `decode_s` on the same threads with nothing beside it, so that a step of that length or
more need not wait for data where the devices are no cores of the host; where they are, decoding and
training share the cores, decoding goes first, and a step is longer instead of waiting. A ratio is
the longest wait that is aimed at, 2 %, over the share found; above 1 is better.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import host
from decode import synthesise

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media

AIM, FILES, SECONDS, FRAMES = 0.02, 4, 20, 16


def read_wait(path: pathlib.Path) -> dict[str, float]:
    """Share of the wait and mean length of the steps after the first five."""
    lines = [json.loads(line) for line in path.read_text().splitlines()][5:]
    spent = sum(line["perf/step_s"] for line in lines)
    waited = sum(line["time/data"] for line in lines)
    return {"share": waited / spent, "step_s": spent / len(lines), "steps": len(lines)}


def write_records(folder: pathlib.Path, demo: pathlib.Path, count: int) -> pathlib.Path:
    """Questions of the demo, each about one of the files; an epoch takes every file as often."""
    for number in range(FILES):
        synthesise(folder / f"{number}.mp4", (250, 30)[number % 2], SECONDS)
    rows = [json.loads(line) for line in (demo / "clips/rl.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["data_type"] == "video"]
    path = folder / "records.jsonl"
    with path.open("w") as file:
        for number in range(count):
            own = {"path": f"{number % FILES}.mp4", "problem_id": number}
            file.write(json.dumps(rows[number % len(rows)] | own) + "\n")
    return path


def measure_decoding(folder: pathlib.Path, rows: int, threads: int) -> float:
    """Seconds that the clips of a batch take on `threads` threads, the mean over five batches."""
    contract = MediaContract.train().with_frames(FRAMES)
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        names = [f"{number % FILES}.mp4" for number in range(5 * rows)]
        list(pool.map(lambda name: load_media(name, str(folder), contract, kind="video"), names))
    return (time.perf_counter() - started) / 5


def train(folder: pathlib.Path, demo: pathlib.Path, own) -> dict[str, float]:
    workdir = pathlib.Path(own.workdir or folder / "run")
    options = {
        "model.init_from": demo / "grpo/hf",
        "model.dtype": "float32",
        "model.remat": "none",
        "data.records": write_records(folder, demo, own.rows * own.steps),
        "data.rows": own.rows,
        "data.row_tokens": 2048,
        "media.min_frames": FRAMES,
        "media.max_frames": FRAMES,
        "rollout.num_rollouts": own.rollouts,
        "rollout.max_new_tokens": own.new,
        "rewards": "(('accuracy', 1.0), ('format', 1.0))",
        "log.profile": own.profile,
    }
    command = [sys.executable, "-m", "videorft_jax.cli", "grpo", "--config=grpo_7b"]
    command += [f"--workdir={workdir}", *(f"--config.{name}={x}" for name, x in options.items())]
    subprocess.run(command, check=True)
    return read_wait(workdir / "metrics.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", required=True, type=pathlib.Path, help="a demo that has ended")
    parser.add_argument("--rows", type=int, default=4, help="prompts of a step")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--new", type=int, default=64, help="longest completion")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--workdir", default="", help="where the run is kept; default: nowhere")
    parser.add_argument("--profile", type=int, default=0, help="step whose timeline is drawn")
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    demo, threads = own.demo.resolve(), min(16, os.cpu_count() or 1)
    found = {
        f"demo_{stage}": read_wait(demo / stage / "metrics.jsonl") for stage in ("sft", "grpo")
    }
    with tempfile.TemporaryDirectory() as folder:
        found["clips_720p"] = train(pathlib.Path(folder), demo, own)
        decode_s = measure_decoding(pathlib.Path(folder), own.rows, threads)
    for name, values in found.items():
        print(
            f"{name:11} waits for data {values['share']:.2%} of {values['step_s']:.2f} s a step, "
            f"{values['steps']} steps"
        )
    print(f"decoding alone: {decode_s:.2f} s for {own.rows} clips on {threads} threads")
    if own.json:
        shape = {"rows": own.rows, "rollouts": own.rollouts, "new": own.new, "frames": FRAMES}
        ratio = {name: AIM / max(values["share"], 1e-9) for name, values in found.items()}
        ours = found | {"decode_s": decode_s}
        report = {"machine": host.describe(), "shape": shape, "ours": ours, "ratio": ratio}
        print(json.dumps(report))


if __name__ == "__main__":
    main()
