"""The jobs that drills break: how far one is, where it went on, and what must come out the same."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import re
import sqlite3
from collections.abc import Callable

import curation_run
from drill_place import STEPS
from tiny_run import read_arrays

_MACHINE = ("perf/", "time/", "memory/")


def read_lines(path: pathlib.Path) -> list[dict]:
    """The whole lines of a JSONL file; one that is being written is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@dataclasses.dataclass(frozen=True)
class Job:
    """name: of the command. total: steps or records. file: grows as it goes on. result: workdir ->
    what is compared. samples: workdir -> (step or record, sample) pairs that were counted.
    resumed_at: (log, workdir) -> the steps or records that a restart did not repeat.
    """

    name: str
    total: int
    file: str
    per_unit: int
    result: Callable[[pathlib.Path], dict]
    samples: Callable[[pathlib.Path], collections.Counter]
    resumed_at: Callable[[str, pathlib.Path], int]
    form: str = "py"  # Recipes of curation are toml.

    def progress(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / self.file

    def count(self, workdir: pathlib.Path) -> int:
        path = self.progress(workdir)
        return path.read_bytes().count(b"\n") // self.per_unit if path.exists() else 0


def _trained(workdir):
    """Every array of the last checkpoint, and the curve without what the machine decides."""
    step = max(int(path.parent.name) for path in workdir.glob("checkpoints/*/manifest.json"))
    arrays = {path: array.tobytes() for path, array in read_arrays(workdir, step).items()}
    curve = [
        {name: value for name, value in line.items() if not name.startswith(_MACHINE)}
        for line in read_lines(workdir / "metrics.jsonl")
    ]
    return arrays | {"step": step, "curve": curve}


def _steps(workdir):
    return collections.Counter(line["step"] for line in read_lines(workdir / "metrics.jsonl"))


def _completions(workdir):
    rows = read_lines(workdir / "completions.jsonl")
    return collections.Counter((row["step"], row["problem_id"]) for row in rows)


def _drawn(workdir):
    text = (workdir / "completions.jsonl").read_bytes()
    return _trained(workdir) | {"completions": text}


def _trained_from(said, workdir):
    found = re.findall(r"steps (\d+) to \d+; the first", said)
    return int(found[-1]) - 1 if found else STEPS["sft"]


def _evaluated(workdir):
    results = json.loads((workdir / "results.json").read_text())["results"]
    return {"completions": (workdir / "completions.jsonl").read_bytes(), "results": results}


def _answers(workdir):
    rows = read_lines(workdir / "completions.jsonl")
    return collections.Counter((row["index"], row["rollout"]) for row in rows)


def _evaluated_from(said, workdir):
    return int(re.findall(r"(\d+) records are there", said)[-1])


class Curation(Job):
    """Its progress is the number of replies in its store."""

    def count(self, workdir: pathlib.Path) -> int:
        with contextlib.suppress(sqlite3.OperationalError):
            return count_paid(workdir)
        return 0


def count_paid(workdir: pathlib.Path) -> int:
    """The replies of curation that are kept."""
    uri = f"file:{workdir / 'store.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as store:
        return store.execute("SELECT COUNT(*) FROM attempt WHERE state='paid'").fetchone()[0]


def _verdicts(workdir):
    return collections.Counter(row["record"] for row in read_lines(workdir / "verdicts.jsonl"))


NO_JOB = Job("serve", 1, "", 1, dict, dict, lambda said, workdir: 0)
JOBS = {
    "sft": Job("sft", STEPS["sft"], "metrics.jsonl", 1, _trained, _steps, _trained_from),
    "grpo": Job("grpo", STEPS["grpo"], "metrics.jsonl", 1, _drawn, _completions, _trained_from),
    "evaluate": Job("evaluate", 10, "completions.jsonl", 2, _evaluated, _answers, _evaluated_from),
    "curate": Curation(
        "curate", 30, "", 1, curation_run.files, _verdicts, lambda _, workdir: 0, "toml"
    ),
    "serve": NO_JOB,
}


def compare(found: dict, expected: dict) -> str:
    """What differs first; "" where nothing does."""
    if found.keys() != expected.keys():
        return f"other arrays: {sorted(found.keys() ^ expected.keys())[:3]}"
    return next((name for name in expected if found[name] != expected[name]), "")


def count_wrong(found: collections.Counter, expected: collections.Counter) -> int:
    """Samples that were lost or counted twice."""
    return ((found - expected) + (expected - found)).total()
