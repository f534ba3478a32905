"""Fault 3: Ctrl-C lost up to 499 steps. Fault 5: two runs in one work directory."""

import os
import signal
import subprocess
import sys
import time

import pytest
from first_hour_place import STEPS


def wait_for_step(hour, workdir, process):
    path, end = hour.folder / workdir / "metrics.jsonl", time.monotonic() + 600
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)


def start(hour, workdir, *flags):
    many = ("--config.data.epochs=100", "--config.train.max_steps=1000")
    flags = ["sft", "--config=tiny.py", f"--workdir={workdir}", *many, *flags]
    process = hour.start(*flags, "--config.checkpoint.every=500", cwd=hour.folder)
    wait_for_step(hour, workdir, process)
    return process


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_writes_a_checkpoint(hour, workers):
    process = start(hour, f"runs/stopped{workers}", f"--config.data.workers={workers}")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of its processes
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    assert "Ctrl-C: stopping after this step, with a checkpoint" in text
    assert "; the same command goes on from there" in text  # workers may leave a word behind it
    assert "Traceback" not in text
    assert list((hour.folder / f"runs/stopped{workers}/checkpoints").glob("*/manifest.json"))


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_kept(hour):
    process = start(hour, "runs/ended")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code = None
    end = time.monotonic() + 600
    while code is None:
        assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
        code = process.poll()
    text = process.communicate()[0]
    assert code == 130, text
    assert "no checkpoint is kept" in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_second_run_in_the_same_folder_is_refused(hour):
    first = start(hour, "runs/shared")
    command = ["sft", "--config=tiny.py", "--workdir=runs/shared"]
    text = hour.run(*command, cwd=hour.folder, code=2)
    assert f"runs/shared: process {first.pid} on " in text.splitlines()[-1]
    assert "is running there; stop it" in text.splitlines()[-1]
    first.kill()  # its death frees the lock
    first.wait()
    text = hour.run(*command, cwd=hour.folder)
    assert f"step {STEPS}/{STEPS}" in text


SWALLOWED = """
import gc, importlib, signal, sys, time
from videorft_jax import cli
from videorft_jax.commands import benchmarks
signal.signal(signal.SIGINT, signal.default_int_handler)  # Behind `&` a shell has it ignored.
def interrupt(*_):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)
def main(argv):
    gc.callbacks.append(interrupt)
    gc.collect()
    for _ in range(6000):
        time.sleep(0.01)
def load(name):
    signal.raise_signal(signal.SIGINT)
if sys.argv[1] == "loading":
    importlib.import_module = load
benchmarks.main = main
sys.exit(cli.main(["benchmarks"]))
"""


@pytest.mark.parametrize("phase", ["loading", "collecting"])
def test_ctrl_c_is_heard_while_libraries_load_and_in_callbacks_of_python(hour, phase):
    """Python swallows what is raised in a callback of its garbage collector; JAX has such ones."""
    words = [sys.executable, "-c", SWALLOWED, phase]
    done = subprocess.run(words, env=hour.environment(), capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == (
        "videorft benchmarks: interrupted; the same command goes on from what is kept\n"
    )
