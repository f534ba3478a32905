"""Drills 9, 11, 12, 13 and 18: bad clips, bad rewards and bad options."""

import json
import math
import os
import pathlib
import shutil

from drill_jobs import read_lines
from drill_place import Run

REWARDS = """
import time
calls = []
def broken(prompts, completions, problem_id, **kwargs):
    if hash(str(problem_id[0])[-1]) % 2:
        raise RuntimeError("no judge today")
    return [len(set(text)) / 10 for text in completions]
def nan(prompts, completions, **kwargs):
    return [float("nan") if i % 2 else len(set(text)) / 10 for i, text in enumerate(completions)]
def slow(prompts, completions, **kwargs):  # A run rehearses with made-up thoughts first.
    if not completions[0].startswith("<think>A made-up thought."):
        calls.append(1)
    if len(calls) == 6:
        time.sleep(60)
    return [len(set(text)) / 10 for text in completions]
def equal(prompts, completions, **kwargs):
    return [1.0] * len(completions)
"""


def _bad_clips(folder: pathlib.Path, clip: pathlib.Path) -> dict[str, str]:
    """Makes a file of each kind; gives their names below the folder with the reason of each."""
    data = clip.read_bytes()
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.mp4").write_text("I am not a video.\n" * 50)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:2,\na.mp4\n#EXT-X-ENDLIST\n")
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    return {
        "missing.mp4": "missing", "zero.mp4": "empty", "half.mp4": "not_media truncated corrupt",
        "text.mp4": "not_media", "list.mp4": "not_media", "concat.mp4": "not_media",
        "folder.mp4": "not_regular", "pipe.mp4": "not_regular",
        "../../../etc/passwd": "outside_root", "http://127.0.0.1:9/a.mp4": "protocol",
    }  # fmt: skip


def _own_data(run: Run) -> tuple[pathlib.Path, list[dict]]:
    """A copy of the job's records and clips in the folder of the run."""
    split = {"sft": "sft", "grpo": "rl", "evaluate": "eval"}[run.job.name]
    shutil.copytree(run.place.folder / "data", run.folder / "data")
    path = run.folder / "data" / f"{split}.jsonl"
    return path, [row for row in read_lines(path) if row["data_type"] == "video"]


def mix_bad_clips(run: Run) -> str:
    """Clips of every bad kind, at random places: each is quarantined by name, the run goes on."""
    path, rows = _own_data(run)
    clip = next((run.folder / "data").rglob("*.mp4"))
    reasons = _bad_clips(run.folder / "data", clip)
    chosen = run.rng.sample(sorted(reasons), 6)
    bad = [rows[0] | {"path": name, "problem_id": f"bad-{name}"} for name in chosen]
    lines = [*read_lines(path), *bad]
    run.rng.shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.start(f"--config.data.records={path}", "--config.data.max_bad_fraction=0.7")
    assert run.end() == 0, run.last.said
    found = {row["path"]: row["reason"] for row in read_lines(run.workdir / "quarantine.jsonl")}
    assert found.keys() == set(chosen), (found, chosen)
    wrong = {name: reason for name, reason in found.items() if reason not in reasons[name].split()}
    assert not wrong, wrong
    if run.job.name == "evaluate":
        results = json.loads((run.workdir / "results.json").read_text())["results"]
        assert results["num_records"] == len(lines), results
    run.is_over = True
    return f"6 of {len(lines)} clips were bad and are named"


def lose_all_clips(run: Run) -> str:
    """All clips are gone from the start, or from the first step on: a line says so. An evaluation
    without a limit of bad records counts them all and has no accuracy."""
    is_evaluation, is_odd = run.job.name == "evaluate", run.moment % 2
    kind = "later" if is_odd and not is_evaluation else "at the start"
    path, _ = _own_data(run)
    flags = [f"--config.data.records={path}"]
    if is_evaluation and not is_odd:
        flags.append("--config.data.max_bad_fraction=0.5")
    if kind == "later":
        run.start(*flags, "--config.data.epochs=300", "--config.train.max_steps=900")
        run.wait(lambda: run.count() >= 1)
    for clip in [*(run.folder / "data").rglob("*.mp4"), *(run.folder / "data").rglob("*.png")]:
        clip.unlink()
    if kind == "at the start":
        run.start(*flags)
    code = run.end()
    lines = run.last.said.strip().splitlines()
    line = lines[-1]
    assert "Traceback" not in run.last.said
    run.is_over = True
    if is_evaluation and is_odd:
        assert code == 0, run.last.said
        results = json.loads((run.workdir / "results.json").read_text())["results"]
        assert (results["num_records"], results["num_scored"]) == (run.job.total, 0), results
        return f"without a limit: {next(line for line in lines if line.startswith('left out'))}"
    assert code == (2 if kind == "at the start" else 1), run.last.said
    assert "none of the media" in line or "bad" in line or "could be learnt" in line, line
    return f"{kind}: exit code {code}: {line[:90]}"


def _reward(run: Run, name: str, *flags) -> list[dict]:
    (run.folder / "mine.py").write_text(REWARDS)
    run.start(f"--config.rewards=(('mine:{name}', 1.0), ('format', 1.0))", *flags)
    code = run.end()
    assert code == 0, run.last.said
    lines = read_lines(run.workdir / "metrics.jsonl")
    assert len(lines) == run.job.total
    for line in lines:
        assert line["loss"] is not None, line
        assert math.isfinite(line["loss"]), line
        assert line["skipped"] == 0, line
    run.is_over = True
    return lines


def break_the_reward(run: Run) -> str:
    """A reward raises, is NaN or takes 60 s: what it fails on is left out, the loss is finite."""
    name = ("broken", "nan", "slow")[run.moment % 3]
    flags = ("--config.reward.timeout_s=2",) if name == "slow" else ()
    _reward(run, name, *flags, "--config.train.max_skipped_in_row=9")
    return f"the reward was {name}"


def give_equal_rewards(run: Run) -> str:
    """All rewards of all groups are equal: without a divergence nothing moves, nothing is NaN."""
    lines = _reward(run, "equal", "--config.grpo.beta=0.0", "--config.train.max_skipped_in_row=9")
    assert all(abs(line["loss"]) < 1e-6 for line in lines), lines
    return "all rewards were equal"


def give_bad_options(run: Run) -> str:
    """An option that is not there, of a wrong type or out of range ends in one line, with 2."""
    cases = (
        "--config.optim.lrr=1e-3", "--config.data.rows=many", "--config.data.records=/no/such",
        "--config.model.init_from=/no/such", "--config.data.rows=0", "--config.mesh.data=7",
        "--config.optim.lr=nan", "--config.media.preset=none", "--config.train.freeze=audio",
        "--config.checkpoint.keep_last=0",
    )  # fmt: skip
    flag = cases[run.moment % len(cases)]
    run.start(flag)
    code = run.end()
    assert code == 2, run.last.said
    lines = run.last.said.strip().splitlines()
    assert lines[-1].startswith(f"videorft {run.job.name}: "), lines
    assert not run.workdir.exists() or not run.count()
    run.is_over = True
    return f"{flag}: {lines[-1][:100]}"
