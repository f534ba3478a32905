"""Metrics, read back by TensorBoard itself and by json; the console through a real terminal."""

import io
import json
import logging
import math
import os
import pty
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator, event_file_loader

from videorft_jax.data.progress import Bar
from videorft_jax.evaluation.progress import Progress
from videorft_jax.metrics import chips
from videorft_jax.metrics.compiling import CompileClock
from videorft_jax.metrics.flops import Cost
from videorft_jax.metrics.tensorboard import EventWriter, crc32c
from videorft_jax.metrics.tracker import METRICS, Tracker


def read_lines(folder):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (folder / METRICS).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def read_scalars(folder):
    """tag -> [(step, value)], with the steps of a killed run purged as TensorBoard does."""
    reader = event_accumulator.EventAccumulator(str(folder), purge_orphaned_data=True)
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def curve(step):
    return {"loss": 1 / (step + 1), "grad_norm": np.float32(step)}


def test_crc32c_of_the_standard():
    """RFC 3720, appendix B.4, and the check value of the polynomial."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_tensorboard_reads_the_events(tmp_path):
    writer = EventWriter(tmp_path)
    values = [0.5, -3.0, math.inf, 1e300]
    for step, value in enumerate(values):
        writer.write(step * 1000, {"a/b": value, "nan": math.nan, "ünicode": 1})
    writer.close()
    scalars = read_scalars(tmp_path)
    assert scalars["a/b"] == [(0, 0.5), (1000, -3.0), (2000, math.inf), (3000, math.inf)]
    assert all(math.isnan(value) for _, value in scalars["nan"])
    assert len(scalars["ünicode"]) == 4


def test_a_flipped_bit_in_the_events_is_noticed(tmp_path):
    """The checksums are those that TensorBoard verifies."""
    writer = EventWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    (path,) = tmp_path.iterdir()
    assert len(list(event_file_loader.LegacyEventFileLoader(str(path)).Load())) == 3
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    assert len(list(event_file_loader.LegacyEventFileLoader(str(path)).Load())) == 2


def test_resumed_files_are_those_of_one_run(tmp_path):
    for folder, runs in (("whole", [(0, 9)]), ("killed", [(0, 6), (4, 9)])):
        for start, stop in runs:
            with Tracker(tmp_path / folder, 9, start_step=start, stream=io.StringIO()) as tracker:
                for step in range(start, stop):
                    tracker.log(step, curve(step))
            if stop < 9:
                with (tmp_path / folder / METRICS).open("a") as file:
                    file.write('{"step": 6, "lo')  # torn by the kill

    def deterministic(folder):
        keep = ("step", "loss", "grad_norm")
        return [{name: line[name] for name in keep} for line in read_lines(tmp_path / folder)]

    assert [line["step"] for line in deterministic("whole")] == list(range(9))
    assert deterministic("killed") == deterministic("whole")
    whole, killed = (
        read_scalars(tmp_path / folder / "tensorboard") for folder in ("whole", "killed")
    )
    assert killed["loss"] == whole["loss"]
    assert [step for step, _ in killed["loss"]] == list(range(9))


def test_each_line_is_on_disk_when_log_returns(tmp_path):
    tracker = Tracker(tmp_path, 3, stream=io.StringIO())
    tracker.log(1, {"loss": jnp.float32(2.5), "reward": math.nan, "kl": math.inf})
    (line,) = read_lines(tmp_path)
    assert (line["step"], line["loss"], line["reward"], line["kl"]) == (1, 2.5, None, None)
    tracker.close()


def test_performance_from_costs(tmp_path):
    useful, executed = Cost(forward=1e9, backward=2e9), Cost(2e9, 4e9, 1e9)
    with Tracker(tmp_path, 3, stream=io.StringIO()) as tracker:
        tracker.log(1, {}, tokens=600, useful=useful, executed=executed)
    (line,) = read_lines(tmp_path)
    seconds, peak = line["perf/step_s"], chips.find_chip().flops
    devices = jax.device_count()
    assert line["perf/tokens_per_s"] == pytest.approx(600 / seconds)
    assert line["perf/tflops_per_s"] == pytest.approx(3e9 / seconds / devices / 1e12)
    assert line["perf/mfu"] == pytest.approx(3e9 / seconds / devices / peak)
    assert line["perf/hfu"] == pytest.approx(7e9 / seconds / devices / peak)
    assert line["perf/padding"] == pytest.approx(0.5)
    assert line["memory/host_peak_gib"] > 0.05


def test_phases_add_up_and_start_anew(tmp_path):
    with Tracker(tmp_path, 3, stream=io.StringIO()) as tracker:
        for _ in range(2):
            with tracker.phase("rollout"):
                pass
        with pytest.raises(KeyError), tracker.phase("update"):
            raise KeyError
        tracker.log(1, {})
        with tracker.phase("update"):
            pass
        tracker.log(2, {})
    first, second = read_lines(tmp_path)
    assert 0 < first["time/rollout"] + first["time/update"] < first["perf/step_s"]
    assert "time/rollout" not in second
    assert 0 < second["time/update"] < second["perf/step_s"]


def test_shares_of_a_step_with_what_the_compiler_took(tmp_path):
    with Tracker(tmp_path, 3, stream=io.StringIO()) as tracker:
        with tracker.phase("update"):
            jax.jit(lambda x: x * 7.25 + 0.125)(1.0).block_until_ready()
        tracker.log(1, {})
        with tracker.phase("checkpoint"):
            pass
        tracker.log(2, {})
    first, second = read_lines(tmp_path)
    assert 0 < first["time/compile"] < first["time/update"]
    assert first["perf/share/update"] == first["time/update"] / first["perf/step_s"] < 1
    assert 0 < second["perf/share/checkpoint"] < 1
    assert "time/compile" not in second
    for line in (first, second):
        names = [name for name in line if name.startswith("time/") and name != "time/compile"]
        assert sum(line[name] for name in names) == pytest.approx(line["perf/step_s"])


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    stream = io.StringIO()
    with Tracker(tmp_path, 5, start_step=1, interval=3600, stream=stream) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"loss": 0.25}, tokens=100, useful=Cost(1e9))
    first, last = stream.getvalue().splitlines()
    speed = r"[\d,]+ tok/s  \S+ TFLOP/s  MFU \S+%  RSS \S+ GiB"
    assert re.fullmatch(rf"step 1/5  loss 0\.25  {speed}  ETA \d+:\d\d:\d\d", first)
    assert last.startswith("step 5/5")
    assert last.endswith("ETA 0:00:00")


def seconds_left(text):
    """The seconds of the last ETA in a text."""
    hours, minutes, seconds = map(int, re.findall(r"ETA (\d+):(\d\d):(\d\d)", text)[-1])
    return 3600 * hours + 60 * minutes + seconds


def compile_for(seconds, clock):
    """Lets `seconds` pass on a made-up clock in which JAX says that it compiled: a program, and one
    inside it, which is no time of its own."""
    clock[0] += seconds
    for name, share in (("jaxpr_trace", 0.5), ("backend_compile", 1.0)):
        event = f"/jax/core/compile/{name}_duration"
        jax.monitoring.record_event_duration_secs(event, share * seconds)


def test_the_first_eta_knows_that_compiling_ends(tmp_path, monkeypatch):
    """A first step of 100 s is 98 s of compiling and 2 s of work, as all others are."""
    clock, stream = [0.0], io.StringIO()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    with Tracker(tmp_path, 101, stream=stream) as tracker:
        compile_for(98.0, clock)
        clock[0] += 2.0
        tracker.log(1, {"loss": 0.5})
        assert seconds_left(stream.getvalue()) == 200
    (line,) = read_lines(tmp_path)
    assert line["perf/step_s"] == 100  # What a step took is told as it was.
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(41, 0.0) as progress:
        compile_for(98.0, clock)
        clock[0] += 2.0
        progress([{"completion_tokens": 5, "score": None, "index": 0}])
    assert seconds_left(stream.getvalue()) == 80


def test_the_clock_hears_what_jax_compiles():
    clock = CompileClock()
    jax.jit(lambda x: x * 3 + 1)(np.arange(7))
    assert clock.take() > 0
    assert clock.take() == 0
    clock.close()
    jax.jit(lambda x: x * 5 + 1)(np.arange(7))
    assert clock.take() == 0


@pytest.mark.parametrize("columns", [40, 9])
def test_live_lines_fit_narrow_terminals(tmp_path, monkeypatch, columns):
    """None is longer than the terminal is wide, so that none leaves a rest of itself behind."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with Tracker(tmp_path, 5000, stream=stream) as tracker, Progress(5000, 0.0) as progress:
        tracker.log(1234, {"loss": 0.123456}, tokens=100, useful=Cost(1e9))
        progress([{"completion_tokens": 5, "score": 1.0, "index": 0}])
        Bar(310_000, stream)(310_000)
    parts = [part.strip("\n") for part in stream.getvalue().split("\r\x1b[K")[1:]]
    assert len(parts) == 3
    assert all(0 < len(part) < columns for part in parts)
    assert "\x1b" not in "".join(parts)


def test_live_line_on_a_terminal(tmp_path):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        with Tracker(tmp_path, 3, stream=terminal) as tracker:
            for step in range(1, 4):
                tracker.log(step, {"loss": 0.5})
        seen = ""
        while "step 3/3" not in seen:
            seen += os.read(master, 4096).decode()
    os.close(master)
    parts = seen.split("\r\x1b[K")
    assert [part[:8] for part in parts[1:]] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all("\n" not in part for part in parts[:-1])


def test_messages_do_not_run_into_the_live_line(tmp_path):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        console = logging.StreamHandler(terminal)
        console.setLevel(logging.WARNING)  # what others say at less is no concern of this test
        logging.getLogger().addHandler(console)
        with Tracker(tmp_path, 2, stream=terminal) as tracker:
            tracker.log(1, {"loss": 0.5})
            logging.getLogger("videorft_jax").warning("first")
            logging.getLogger("videorft_jax").warning("second")
            tracker.log(2, {"loss": 0.5})
        logging.getLogger().removeHandler(console)
        assert not console.filters
        terminal.write("prompt$")
        terminal.flush()
        seen = ""
        while "prompt$" not in seen:
            seen += os.read(master, 4096).decode()
    os.close(master)
    step, first, second, other, prompt = seen.split("\r\n")
    assert step.startswith("\r\x1b[Kstep 1/2")
    assert (first, second, prompt) == ("first", "second", "prompt$")
    assert other.startswith("\r\x1b[Kstep 2/2")


def test_wandb_gets_every_step_and_a_restart_goes_on_in_its_run(tmp_path, monkeypatch):
    started, steps = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: steps.append((step, values["loss"])),
        finish=lambda: steps.append("finished"),
    )
    fake = types.SimpleNamespace(init=lambda **given: started.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for first in (1, 3):
        settings = {"wandb": "mine", "config": {"seed": 7}, "stream": io.StringIO()}
        with Tracker(tmp_path, 4, start_step=first, **settings) as tracker:
            for step in (first, first + 1):
                tracker.log(step, curve(step))
    assert steps == [(1, 1 / 2), (2, 1 / 3), "finished", (3, 1 / 4), (4, 1 / 5), "finished"]
    assert started[0] == started[1]  # Both have the same id.
    assert started[0]["id"] == (tmp_path / "wandb_run_id").read_text()
    assert (started[0]["project"], started[0]["config"]) == ("mine", {"seed": 7})
    assert started[0]["resume"] == "allow"


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Tracker(tmp_path / "run", 3) as tracker, tracker.phase("rollout"):
        tracker.log(1, curve(1))
    assert not (tmp_path / "run").exists()


def test_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="give a local folder"):
        Tracker("gs://bucket/run", 3)
    monkeypatch.setitem(sys.modules, "wandb", None)  # Importing it now fails.
    with pytest.raises(ValueError, match="pip install wandb"):
        Tracker(tmp_path, 3, wandb="videorft")
