"""Drill 16: a run reads a TFDS data set whose ArrayRecord files are damaged, or whose build was
killed."""

import pathlib
import shutil
import signal
import time

from drill_jobs import read_lines
from drill_place import Run

NAMES = {"sft": ("videorft_cot", "sft"), "grpo": ("videorft_rl", "rl")}
KINDS = ("flipped", "truncated", "flipped as it runs", "build killed")


def _build(run: Run, wait_s: float | None = None) -> pathlib.Path:
    """Runs `videorft tfds`, which is killed `wait_s` after its folder is there; returns the folder
    of the data set."""
    name, split = NAMES[run.job.name]
    out = run.folder / "tfds"
    words = ["tfds", f"--name={name}", f"--data={run.place.records[split]}", f"--out={out}"]
    run.adopt(run.place.start([*words, "--embed"], run.folder))
    if wait_s is not None:
        run.wait(lambda: out.exists() and any(out.rglob("*incomplete*")))
        time.sleep(wait_s)
        run.signal(signal.SIGKILL)
    code = run.end()
    assert code == 0 or wait_s is not None, run.last.said
    return out / name


def damage_a_shard(run: Run) -> str:
    """The run of a damaged data set names the shard and the remedy, or puts rows aside by name, or
    does not read the damage; on the data as they were it then ends as the undisturbed one."""
    kind = KINDS[run.moment % len(KINDS)]
    if kind == "build killed":
        _build(run, run.rng.uniform(0.0, 0.1))
        left = len(list((run.folder / "tfds").rglob("*incomplete*")))
        for folder in (run.folder / "tfds").glob("*/[0-9]*"):
            shutil.rmtree(folder)  # It was whole before the kill.
    folder = _build(run)
    assert not any(folder.rglob("*incomplete*")), "the killed build left its folder behind"
    run.flags = (f"--config.data.records=tfds:{folder}",)
    (shard,) = folder.rglob("*.array_record*")
    whole = shard.read_bytes()
    if kind == "build killed":
        run.start(*run.flags)
        assert run.end() == 0, run.last.said
        return f"build killed with {left} folders left, then built"
    if kind == "flipped as it runs":
        run.start(*run.flags)
        run.wait_moment(is_early=True)
    place = run.rng.randrange(len(whole))
    if kind == "truncated":
        shard.write_bytes(whole[:place])
    else:
        with shard.open("r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << run.rng.randrange(8)]))
    if kind != "flipped as it runs":
        run.start(*run.flags, "--config.data.max_bad_fraction=0.9")
    code = run.end()
    line = run.last.said.strip().splitlines()[-1]
    aside = read_lines(run.workdir / "quarantine.jsonl")
    assert all("build it anew" in row["detail"] + row["remedy"] for row in aside), aside
    assert code in (0, 1, 2), run.last.said
    assert code == 0 or ("build it anew" in line and str(folder) in line), line
    if code or aside:
        shutil.rmtree(run.workdir, ignore_errors=True)
        shard.write_bytes(whole)
        run.start(*run.flags)
        assert run.end() == 0, run.last.said
    what = line[line.find("train row") :][:80] if code else f"{len(aside)} rows put aside"
    return f"{kind} at byte {place} of {len(whole)}: {what}"
