"""Fault 3, in the two phases that a test can hardly hit from outside: decoding and saving."""

import json
import subprocess
import sys

from first_hour_place import STEPS

# Runs a command and presses Ctrl-C once, where a function of ours is called for the n-th time.
PRESS = """
import importlib, json, signal, sys
from videorft_jax import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # Behind `&` a shell has it ignored.
module, holder, name, when, words = json.loads(sys.argv[1])
owner = importlib.import_module(module)
owner = getattr(owner, holder) if holder else owner
real, calls = getattr(owner, name), []
def press(*args, **named):
    calls.append(0)
    if len(calls) == when:
        signal.raise_signal(signal.SIGINT)
    return real(*args, **named)
setattr(owner, name, press)
code = cli.main(words)
assert len(calls) >= when, "never called so often"
sys.exit(code)
"""
DECODE = ("videorft_jax.rollout.session", "Session", "decode", 2)
SEAL = ("videorft_jax.checkpoints.manifest", "", "write", 1)


def press(hour, where, *words):
    """(exit code, stderr) of a command in which Ctrl-C is pressed at `where`."""
    call = [sys.executable, "-P", "-c", PRESS, json.dumps([*where, words])]
    done = subprocess.run(
        call, cwd=hour.folder, env=hour.environment(), capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_ctrl_c_in_decoding_loses_no_completion_that_was_written(hour):
    whole = hour.evaluated()
    flags = ["--config=tiny.py", "--config.model.init_from=", "--config.evaluate.max_new_tokens=4"]
    flags += ["--config.data.records=data/eval.jsonl", "--config.evaluate.checkpoint=runs/sft"]
    words = ["evaluate", *flags, "--config.data.rows=2", "--workdir=runs/pressed"]
    code, said = press(hour, DECODE, *words)
    assert code == 130, said
    line = "videorft evaluate: interrupted; the same command goes on from what is kept"
    assert said.splitlines()[-1] == line
    assert "Traceback" not in said
    kept = (hour.folder / "runs/pressed/completions.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 4
    hour.run(*words, cwd=hour.folder)
    found = (hour.folder / "runs/pressed/completions.jsonl").read_text()
    assert found.splitlines()[: len(kept)] == kept
    assert found == (whole / "completions.jsonl").read_text()


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


def test_ctrl_c_in_a_save_leaves_a_whole_checkpoint(hour):
    hour.sft()
    words = ["sft", "--config=tiny.py", "--workdir=runs/saving", "--config.data.epochs=100"]
    code, said = press(hour, SEAL, *words, "--config.train.max_steps=1000")
    assert code == 0, said
    assert "Ctrl-C: stopping after this step, with a checkpoint" in said
    workdir = hour.folder / "runs/saving"
    steps = sorted(int(p.parent.name) for p in workdir.glob("checkpoints/*/manifest.json"))
    assert steps[0] == 2  # The save in which it was pressed was finished.
    before = losses(workdir)
    assert len(before) == steps[-1] < 1000
    hour.run(*words, f"--config.train.max_steps={steps[-1] + 2}", cwd=hour.folder)
    after = losses(workdir)
    assert len(after) == steps[-1] + 2
    assert after[: len(before)] == before
    assert after[:STEPS] == losses(hour.folder / "runs/sft")[: len(after)]


def test_ctrl_c_in_an_answer_is_one_line(hour):
    clip = next((hour.folder / "data").rglob("*.mp4"))
    words = ["ask", "--model=model", f"--video={clip}", "--question=Why?", "--dtype=float32"]
    code, said = press(hour, (*DECODE[:3], 1), *words, "--max_new_tokens=8")
    assert code == 130, said
    assert said.splitlines()[-1].startswith("videorft ask: interrupted")
    assert "Traceback" not in said
