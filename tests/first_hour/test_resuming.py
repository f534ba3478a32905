"""Faults 6, 7, 8 and 13: what a run says of the checkpoint that it goes on from."""

import json
import shutil

import pytest
from first_hour_place import STEPS


@pytest.fixture
def copied(hour, tmp_path):
    """A copy of a finished run, and a function that goes on with it for two more steps."""
    shutil.copytree(hour.sft(), tmp_path / "run")

    def go_on(*flags, code=0, command="sft", **more):
        words = [command, f"--config={hour.folder}/tiny.py", "--workdir=run"]
        steps = f"--config.train.max_steps={STEPS + 2}"
        return hour.run(*words, steps, *flags, cwd=tmp_path, code=code, **more)

    return tmp_path / "run", go_on


@pytest.mark.parametrize("accident", ["no manifest", "truncated", "all"])
def test_a_damaged_checkpoint_is_named(copied, accident):
    workdir, go_on = copied
    newest = workdir / "checkpoints" / f"{STEPS:08d}"
    if accident == "truncated":
        file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (newest / "manifest.json").unlink()
    if accident == "all":
        (workdir / "checkpoints" / f"{STEPS - 2:08d}" / "manifest.json").unlink()
    text = go_on()
    passed_over = f"checkpoint: step {STEPS} is passed over, "
    reason = "bytes, " if accident == "truncated" else "no manifest.json, the save was cut off"
    used = "no other is whole" if accident == "all" else f"step {STEPS - 2} is used"
    (line,) = [line for line in text.splitlines() if passed_over in line]
    assert reason in line
    assert line.endswith(used)
    if accident != "all":
        assert f"checkpoint: restored step {STEPS - 2}" in text


def test_what_is_left_of_a_run_is_not_thrown_away(copied):
    """A copy that broke off lacks a file of each checkpoint; a run that began anew at step 0 would
    remove them, and the lines of all steps."""
    workdir, go_on = copied
    for metadata in (workdir / "checkpoints").rglob("_METADATA"):
        metadata.unlink()
    lines = (workdir / "metrics.jsonl").read_text()
    last = go_on(code=2).splitlines()[-1]
    assert f"{STEPS:08d}: _METADATA is missing, and no other checkpoint is whole; copy it" in last
    assert (workdir / "metrics.jsonl").read_text() == lines
    assert len(list((workdir / "checkpoints").iterdir())) == 2


def test_changed_options_are_printed_and_those_that_teach_something_else_refused(copied):
    workdir, go_on = copied
    text = go_on("--config.optim.lr=1e-2", "--config.log.interval_s=1", code=2)
    assert "changed since the checkpoint: " in text
    assert "log.interval_s was 30.0 and is 1.0" in text
    last = text.splitlines()[-1]
    assert "optim.lr was 0.001 and is 0.01; go on with the same options" in last
    assert "--allow_changes" in last
    assert "interval_s" not in last
    text = go_on("--config.optim.lr=1e-2", "--allow_changes")
    assert "optim.lr was 0.001 and is 0.01" in text
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    assert rates == pytest.approx([1e-3] * STEPS + [1e-2] * 2)
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["optim"]["lr"] == 1e-2


def test_a_copy_compiles_nothing(hour, copied, tmp_path):
    """Programs that were compiled into one folder are found by a run in another."""
    count = {"JAX_LOG_COMPILES": "1", "JAX_COMPILATION_CACHE_DIR": ""}
    count |= {"PYTHONWARNINGS": "", "JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}
    words = ["sft", f"--config={hour.folder}/tiny.py", "--config.train.max_steps=1"]
    missed = "PERSISTENT COMPILATION CACHE MISS"
    first = hour.run(*words, "--workdir=a", cwd=tmp_path, **count)
    assert missed in first
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "compiled", tmp_path / "b" / "compiled")
    again = hour.run(*words, "--workdir=b", cwd=tmp_path, **count)
    assert missed not in again


def test_another_command_in_the_folder_is_refused(copied):
    workdir, go_on = copied
    siglip = "--config.rewards=(('accuracy',1.0),('format',1.0))"
    text = go_on(siglip, code=2, command="grpo")
    assert "holds a run of videorft sft; give another workdir" in text.splitlines()[-1]
