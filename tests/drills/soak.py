"""Long runs of the loader, of GRPO and of `videorft serve` on the tiny model, watched from outside.

    bash launch/soak.sh                 20,000 batches, 500 steps, 2,000 requests
    bash launch/soak.sh --batches=2000 --steps=60 --requests=300 --out=runs/soak
    bash launch/soak.sh --steps=0 --requests=0      the loader alone

A part that is finished is kept in OUT/soak.json and not run again, so the same command goes on.
Memory, open files, threads (of the process and its children) and compiled programs must be flat
after the first third: a line is fitted to what follows. Exit code 1 where one grows. OUT/soak.png
shows the curves.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from drill_place import Place  # noqa: E402, beside this file
from tiny_run import ROOT  # noqa: E402

PARTS = {"loader": "batches", "grpo": "steps", "serve": "requests"}
FIELDS = ("memory MiB", "open files", "threads", "programs")
WARM, END = 1 / 3, 0.97  # Before the one a run may still grow, after the other it ends.
MOST = {"memory MiB": 0.05, "open files": 2.0, "threads": 2.0, "programs": 0.5}
_SAMPLES = 200


class Soak:
    """One place, whose compiled programs lie in a folder of their own for each part."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.place = folder, Place(folder / "place")

    def _start(self, name, words):
        cache = self.folder / f"compiled_{name}"
        cache.mkdir(parents=True, exist_ok=True)
        environment = self.place.environment | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], env=environment, cwd=self.folder,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return process, cache

    def loader(self, total):
        path = self.place.recipe("sft", "soak_loader", data__epochs=10**6, train__max_steps=0)
        mark = self.folder / "batches"
        mark.unlink(missing_ok=True)
        words = [HERE / "soak_loader.py", path, self.folder / "loader_run", total, mark]
        process, cache = self._start("loader", words)
        return watch(process, cache, total, lambda: int(mark.read_text() or 0))

    def grpo(self, total):
        name = {"data__epochs": 10**4, "train__max_steps": total, "checkpoint__every": 25}
        path = self.place.recipe("grpo", "soak_grpo", **name)
        workdir = self.folder / f"grpo_{int(time.time())}"
        words = ["-m", "videorft_jax.cli", "grpo", f"--config={path}", f"--workdir={workdir}"]
        process, cache = self._start("grpo", words)
        lines = workdir / "metrics.jsonl"
        return watch(process, cache, total, lambda: lines.read_bytes().count(b"\n"))

    def serve(self, total):
        words = ["-m", "videorft_jax.cli", "serve", f"--checkpoint={self.place.folder / 'model'}"]
        words += ["--port=0", "--dtype=float32", "--max_new_tokens=32", "--max_slots=4"]
        words += [f"--cache_bytes={1 << 20}"]  # It is full before the warm part ends.
        process, cache = self._start("serve", words)
        log = self.folder / "serve.log"
        url = ""
        while not url:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
            found = [line for line in log.read_text().splitlines() if line.startswith("serving")]
            url = found[0].split()[-1] if found else ""
        done = []

        def ask(number):
            text = f"What moves in picture {number}? " + "word " * (number % 23)
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1 + number % 16}
            request = urllib.request.Request(
                f"{url}/chat/completions", json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(request, timeout=600) as reply:
                done.append(json.load(reply)["choices"][0]["finish_reason"])

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(total)]
            samples = watch(process, cache, total, lambda: len(done))
            for one in asked:
                one.result()
        process.terminate()
        assert process.wait(600) == 0, log.read_text()
        return samples


def watch(process, cache, total, count) -> list[tuple]:
    """(units, memory, files, threads, programs) while the process works through `total` units."""
    samples, known = [], psutil.Process(process.pid)
    while True:
        try:
            done = count()
        except (FileNotFoundError, ValueError):
            done = 0
        if not samples or done >= samples[-1][0] + max(1, total // _SAMPLES):
            try:
                family = [known, *known.children(recursive=True)]
                memory = sum(one.memory_info().rss for one in family) / 2**20
                files = sum(one.num_fds() for one in family)
                threads = sum(one.num_threads() for one in family)
            except psutil.NoSuchProcess:
                break
            samples.append((done, memory, files, threads, len(list(cache.iterdir()))))
            print(f"\r{done} of {total}, {memory:.0f} MiB ", end="", flush=True)
        if done >= total or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() in (None, 0), "it failed, see its log"
    assert count() >= total, f"it ended after {count()} of {total}"
    print()
    return samples


def find_growth(samples) -> dict[str, float]:
    """What each field grows by after the first third, by the line that fits best; memory as a share
    of its mean."""
    table = np.array(samples, float)
    part = table[:, 0] / table[-1, 0]
    rest = table[(part >= WARM) & (part <= END)]
    growth = {}
    for place, field in enumerate(FIELDS, 1):
        slope = np.polyfit(rest[:, 0], rest[:, place], 1)[0]
        grown = slope * (rest[-1, 0] - rest[0, 0])
        growth[field] = grown / rest[:, place].mean() if field == "memory MiB" else grown
    return growth


def find_faults(growth: dict[str, float]) -> list[str]:
    return [
        f"{field} grew by {grown:.3g}, more than {MOST[field]}"
        for field, grown in growth.items()
        if grown > MOST[field]
    ]


def plot(parts: dict, path: pathlib.Path) -> None:
    """Draws a row for each part and a column for each field; the warm part is shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3.2 * len(FIELDS), 2.2 * len(parts))
    figure, axes = pyplot.subplots(len(parts), len(FIELDS), figsize=size, squeeze=False)
    for row, (name, part) in zip(axes, parts.items(), strict=True):
        table = np.array(part["samples"], float)
        for place, (axis, field) in enumerate(zip(row, FIELDS, strict=True), 1):
            axis.plot(table[:, 0], table[:, place], linewidth=1)
            axis.axvspan(0, WARM * table[-1, 0], color="0.9")
            axis.set_ylim(0, max(1.0, 1.25 * table[:, place].max()))
            axis.set_title(f"{name}: {field}", fontsize=8)
            axis.set_xlabel(part["unit"], fontsize=7)
            axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=20_000, help="of the loader; 0: none")
    parser.add_argument("--steps", type=int, default=500, help="of GRPO; 0: none")
    parser.add_argument("--requests", type=int, default=2_000, help="to the server; 0: none")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/soak")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    kept, faults = given.out / "soak.json", []
    parts = json.loads(kept.read_text()) if kept.exists() else {}
    soak = Soak(given.out.resolve())
    try:
        for name, unit in PARTS.items():
            total = getattr(given, unit)
            if not total:
                continue
            if name not in parts or parts[name]["total"] != total:
                began = time.monotonic()
                samples = getattr(soak, name)(total)
                seconds = round(time.monotonic() - began)
                parts[name] = {"unit": unit, "total": total, "seconds": seconds, "samples": samples}
                kept.write_text(json.dumps(parts))
            growth = find_growth(parts[name]["samples"])
            faults += [f"{name}: {fault}" for fault in find_faults(growth)]
            shown = ", ".join(f"{field} {grown:+.3g}" for field, grown in growth.items())
            seconds = parts[name]["seconds"]
            print(f"{name}: {total} {unit} in {seconds} s; after a third: {shown}")
    finally:
        soak.place.end()
    plot(parts, given.out / "soak.png")
    print("\n".join(faults) or f"flat; see {given.out}/soak.png")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
