"""The harness of drills tells a job that loses nothing from one that does, and goes on where it was
stopped. Its drills themselves are slow: `bash launch/drill.sh`."""

import collections
import dataclasses
import pathlib
import subprocess
import sys

import drill
import pytest
import soak
from drill_inputs import REWARDS
from drill_jobs import Job, compare, count_wrong, read_lines
from drill_list import DRILLS, Drill
from drill_services import kill_it
from drill_table import Moments

# A job without JAX: each step is a line; it goes on behind the whole lines that are there. A faulty
# one begins a step too late, as a run does that counts a step before its checkpoint is written.
SCRIPT = """
import json, pathlib, sys, time
workdir, total, skip = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
workdir.mkdir(exist_ok=True)
path = workdir / "lines.jsonl"
lines = path.read_bytes().splitlines(True) if path.exists() else []
lines = [line for line in lines if line.endswith(b"\\n")]
path.write_bytes(b"".join(lines))
with path.open("a", buffering=1) as file:
    for step in range(len(lines) + 1 + (skip if lines else 0), total + 1):
        file.write(json.dumps({"step": step}) + "\\n")
        time.sleep(0.05)
print("done")
"""
TOTAL = 12


class FakePlace:
    """Starts the script in place of commands."""

    code = "x"

    def __init__(self, folder):
        self.folder, self.skip = folder, 0

    def start(self, words, cwd):
        workdir = next(word for word in words if word.startswith("--workdir=")).split("=")[1]
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, workdir, str(TOTAL), str(self.skip)],
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def end(self):
        pass


def _steps(workdir):
    return collections.Counter(line["step"] for line in read_lines(workdir / "lines.jsonl"))


@pytest.fixture
def drills(tmp_path, monkeypatch):
    job = Job(
        "fake", TOTAL, "lines.jsonl", 1, _steps, _steps,
        lambda said, workdir: len(read_lines(workdir / "lines.jsonl")),
    )  # fmt: skip
    monkeypatch.setattr(drill, "Place", FakePlace)
    monkeypatch.setattr(drill, "JOBS", {"fake": job})
    monkeypatch.setattr(drill, "DRILLS", [Drill("1", "kill", ("fake",), kill_it)])
    return job


def test_moments_are_taken_once_and_the_table_counts_them(drills, tmp_path, capsys):
    words = [f"--out={tmp_path}", "--moments=1"]
    assert drill.main(words) == 0
    (row,) = Moments(tmp_path / "moments.jsonl").rows
    assert (row["survived"], row["samples_wrong"]) == (True, 0)
    assert row["recover_s"] > 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 1. kill | fake | 1 | 1 | 0 | 0 |")
    assert drill.main(words) == 0
    assert len(Moments(tmp_path / "moments.jsonl").rows) == 1


def test_a_job_that_loses_a_step_is_not_survived(drills, tmp_path, monkeypatch):
    monkeypatch.setattr(FakePlace, "skip", 1, raising=False)
    monkeypatch.setattr(FakePlace, "__init__", lambda self, folder: setattr(self, "folder", folder))
    assert drill.main([f"--out={tmp_path}", "--moments=1"]) == 1
    (row,) = Moments(tmp_path / "moments.jsonl").rows
    assert not row["survived"]
    assert "differs from the undisturbed run" in row["fault"]


def test_what_is_compared():
    assert compare({"a": b"1", "b": 2}, {"a": b"1", "b": 2}) == ""
    assert compare({"a": b"1", "b": 3}, {"a": b"1", "b": 2}) == "b"
    assert "other arrays: ['c']" in compare({"a": 1, "c": 1}, {"a": 1})
    once = collections.Counter([1, 2, 3])
    assert count_wrong(collections.Counter([1, 2, 2]), once) == 2  # One is lost, one repeated.


def test_numbers_of_drills_are_unique_and_their_rewards_are_python():
    numbers = [one.number for one in DRILLS]
    assert len(set(numbers)) == len(numbers)
    names = {}
    exec(REWARDS, names)
    assert names["equal"]([], ["a", "b"]) == [1.0, 1.0]
    assert all(dataclasses.is_dataclass(one) and one.jobs for one in DRILLS)
    assert pathlib.Path(drill.HERE, "../../launch/drill.sh").exists()


def test_a_soak_tells_what_is_flat_from_what_grows():
    """Growth while a run warms up counts for nothing, later a tenth of the memory does."""
    warm = [(unit, 100.0 + min(unit, 30), 20, 5, min(unit, 9)) for unit in range(0, 101, 2)]
    assert soak.find_faults(soak.find_growth(warm)) == []
    for place, field in enumerate(soak.FIELDS, 1):
        grown = [
            tuple(value + (unit / 8 if at == place else 0) for at, value in enumerate(row))
            for unit, row in ((row[0], row) for row in warm)
        ]
        (fault,) = soak.find_faults(soak.find_growth(grown))
        assert fault.startswith(f"{field} grew by ")
