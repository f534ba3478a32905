"""Checkpoints of runs that are killed or stopped at any moment, of one process and of two."""

import itertools
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import pytest
from checkpoint_victim import after, assert_equal

from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.checkpoints.manifest import MANIFEST
from videorft_jax.checkpoints.save_errors import silence_threads
from videorft_jax.training.preemption import PreemptionGuard

VICTIM = pathlib.Path(__file__).parent.parent / "support" / "checkpoint_victim.py"


def start(victims, *arguments, devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, VICTIM, *map(str, arguments)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    victims.append(victim)
    return victim


@pytest.fixture
def victims():
    """Processes that a test started; none outlives it."""
    started = []
    yield started
    for victim in started:
        victim.kill()
        victim.wait()
        victim.stdout.close()


def check_newest(workdir):
    """The newest checkpoint is what its step should hold; returns that step."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpointer(workdir) as checkpointer:
        step = checkpointer.latest_step()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), after(0)
        )
        state, meta = checkpointer.restore(None, abstract, {})
    assert meta == {"data": step}
    assert_equal(state, after(step))
    return step


def half_saved(folder):
    """A save under way: Orbax's temporary folder, or a step that has no manifest yet."""
    names = os.listdir(folder) if folder.exists() else []
    return any("tmp" in name or not (folder / name / MANIFEST).exists() for name in names)


def test_killed_at_any_moment_and_resumed(tmp_path, victims):
    """SIGKILL in the middle of a save and at random moments; each restart goes on from there."""
    pause = random.Random(0)
    reached = 0
    for moment in ("saving", "random", "saving"):
        victim = start(victims, tmp_path, 10**6)
        for line in victim.stdout:  # three steps further at least
            if line.startswith("saved") and int(line.split()[1]) >= reached + 3:
                break
        if moment == "saving":
            while not half_saved(tmp_path / "checkpoints"):
                pass
        else:
            time.sleep(pause.uniform(0, 0.3))
        victim.kill()
        victim.communicate()
        step = check_newest(tmp_path)
        assert step >= reached + 2
        reached = step
    victim = start(victims, tmp_path, reached + 2)
    output, _ = victim.communicate(timeout=600)
    assert victim.returncode == 0
    assert output.split("\n")[0] == f"saved {reached + 1}"  # nothing done twice, nothing skipped
    assert check_newest(tmp_path) == reached + 2


def test_sigterm_saves_and_exits_cleanly(tmp_path, victims):
    victim = start(victims, tmp_path, 10**6)
    victim.stdout.readline()
    victim.send_signal(signal.SIGTERM)
    output, _ = victim.communicate(timeout=600)
    assert victim.returncode == 0
    assert check_newest(tmp_path) == int(output.split()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_the_handler_is_put_back(number):
    handler = signal.getsignal(number)
    with PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        os.kill(os.getpid(), number)
        end = time.monotonic() + 600
        while not guard.should_stop(2):
            assert time.monotonic() < end
    assert signal.getsignal(number) == handler


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0])
def test_a_save_goes_on_where_the_clock_jumps(tmp_path, monkeypatch, jump_s):
    """Every look at the clock of the wall finds it a day further."""
    looks, real = itertools.count(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s * next(looks))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, after(3), {"data": 3})
    monkeypatch.undo()
    assert check_newest(tmp_path) == 3


@pytest.mark.parametrize("moment", ["before", "in it"])
def test_a_folder_that_can_no_longer_be_written_ends_a_save(tmp_path, monkeypatch, moment):
    """Whether it is found by the probe or by Orbax, no thread is left that keeps the process: where
    Orbax makes folders in a thread of its own, others wait ten minutes for one that failed."""
    line = r"00000002: could not be saved \([\w ]+\); keep everything .*, then the same command"
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, after(1), {})
        checkpointer.wait()
        threads = {*threading.enumerate()}

        def end_badly(close=checkpointer._orbax.close):
            close()
            raise OSError(30, "told already")

        monkeypatch.setattr(checkpointer._orbax, "close", end_badly)

        def lose(*_):
            shutil.rmtree(checkpointer.folder)
            os.symlink("/proc/version", checkpointer.folder)  # where not even root may write

        if moment == "before":
            lose()
        else:
            monkeypatch.setattr(Checkpointer, "_check_writable", lose)
        with pytest.raises(RuntimeError, match=line):
            checkpointer.save(2, after(2), {})
        left = [thread.name for thread in threading.enumerate() if thread not in threads]
        assert [name for name in left if not name.startswith("asyncio_")] == []


def test_what_threads_say_beside_the_error_is_left_out(monkeypatch):
    """TensorStore calls a loop that a failed save has closed; other errors are reported still."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(str(found.exc_value)))
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    silence_threads()
    silence_threads()
    for text in ("Event loop is closed", "something else"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert told == ["something else"]
    assert not logging.getLogger("asyncio").isEnabledFor(logging.ERROR)


def test_two_processes(tmp_path, victims):
    """One process saves, two of four devices go on; SIGTERM to one stops both on one step."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, after(3), {"data": 3})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for process in range(2):
        start(victims, tmp_path, 10**6, port, process, devices=4)
    for line in victims[0].stdout:
        if line == "saved 4\n":
            break
    victims[1].send_signal(signal.SIGTERM)
    outputs = [victim.communicate(timeout=600)[0] for victim in victims]
    assert [victim.returncode for victim in victims] == [0, 0]
    ends = [int(output.split()[-1]) for output in outputs]
    assert ends[0] == ends[1] == check_newest(tmp_path)
