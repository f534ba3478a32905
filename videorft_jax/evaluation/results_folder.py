"""The folder of an evaluation: every output as it comes, and the results at the end.

    completions.jsonl    rows of `evaluate_records`; process p > 0 writes completions-p.jsonl
    results.json         settings from the start, results when all records are done

An evaluation goes on where it was stopped: rows that are there whole are kept, and only with the
settings they were made with. Records that could not be read are tried again, as their media may
have been mended. When all is done, the rows of all processes stand in completions.jsonl in the
order of the records, so that the file is the same however often the run was stopped and however
many processes took part.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from videorft_jax.parallel.processes import gather

COMPLETIONS, RESULTS = "completions.jsonl", "results.json"


class ResultsFolder:
    """Opens or goes on with an evaluation of `settings`, a dict of dicts that JSON can hold.

    `rows` are those found, of all processes whose files are in this folder. Raises ValueError, on
    every process, when the folder holds another evaluation or the completions of another command.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict[str, dict], num_rollouts: int):
        self.folder, self.settings = pathlib.Path(folder), json.loads(json.dumps(settings))
        self._file = None
        number = jax.process_index()
        self._own = self.folder / (f"completions-{number}.jsonl" if number else COMPLETIONS)
        problems = gather("" if number else self._start())
        if problems[0]:
            raise ValueError(problems[0])
        self.rows: list[dict[str, Any]] = []
        for path in sorted({self._own, *self.folder.glob("completions*.jsonl")}):
            if path.exists():
                rows = [row for row in read_rows(path, num_rollouts) if not row["reason"]]
                self.rows += rows
                if path == self._own:
                    _replace(path, _to_lines(rows))
        gather(0)  # all have read before any writes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self._own.open("a", encoding="utf-8")

    def _start(self):
        """Settings in place; what is wrong with the folder, or ""."""
        path = self.folder / RESULTS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / "checkpoints").exists():
                return f"{self.folder}: holds a run of training; choose another workdir"
            begun = any(rows.stat().st_size for rows in self.folder.glob("completions*.jsonl"))
            if path.exists() and begun:
                found = json.loads(path.read_text(encoding="utf-8"))["settings"]
                return _compare(found, self.settings, path)
            if begun:
                return (
                    f"{self.folder}: has completions without {RESULTS}, of another command; "
                    "choose another workdir"
                )
            self._write({"results": None})
        except OSError as error:
            return f"{self.folder}: cannot be written ({error}); choose another workdir"
        except (ValueError, KeyError, TypeError):
            return f"{path}: is not of an evaluation; choose another workdir"
        return ""

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends rows of this process; they are in the file when it returns."""
        self.rows += rows
        self._file.write(_to_lines(rows))
        self._file.flush()

    def gather_rows(self) -> list[dict[str, Any]]:
        """All rows of all processes, in order of the records."""
        rows = {(row["index"], row["rollout"]): row for part in gather(self.rows) for row in part}
        return [rows[name] for name in sorted(rows)]

    def finish(
        self, rows: Sequence[dict[str, Any]], results: dict[str, Any], performance: dict[str, Any]
    ) -> None:
        """Process 0 writes the rows of all processes into one file, and the results; those about
        the machine stay when nothing new was run."""
        self.close()
        if not jax.process_index():
            _replace(self.folder / COMPLETIONS, _to_lines(rows))
            self._finish_results(results, performance)
        gather(0)  # the rows are safe before the files of the processes go
        for path in self.folder.glob("completions-*.jsonl"):
            path.unlink(missing_ok=True)

    def _finish_results(self, results, performance):
        if not performance:
            before = json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
            performance = before.get("performance", {})
        self._write({"results": results, "performance": performance})

    def _write(self, body):
        text = json.dumps({"settings": self.settings} | body, indent=1, allow_nan=False)
        _replace(self.folder / RESULTS, text + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _to_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _replace(path, text):
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_rows(path: pathlib.Path, num_rollouts: int) -> list[dict[str, Any]]:
    """Rows of the records that are there whole.

    A record is whole with a line for each of its completions, or one that says why it has none.
    """
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # behind the last newline: cut off, or nothing
        try:
            row = json.loads(line)
            lines.append((row["index"], row["outcome"], row))
        except (ValueError, KeyError, TypeError):
            break
    rows = []
    for _, group in itertools.groupby(lines, key=lambda line: line[0]):
        group = list(group)
        if group[0][1] != "quarantined" and len(group) != num_rollouts:
            break
        rows += [row for *_, row in group]
    return rows


def check_begun(folder: pathlib.Path, settings: dict[str, dict]) -> None:
    """Raises ValueError where a folder has completions that were made with other values of these
    settings, which are some of those of the evaluation."""
    path = folder / RESULTS
    begun = any(rows.stat().st_size for rows in folder.glob("completions*.jsonl"))
    if not begun or not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        own = {
            part: {name: found.get(part, {}).get(name) for name in settings[part]}
            for part in settings
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # `ResultsFolder` says what is wrong with it.
    if problem := _compare(own, settings, path):
        raise ValueError(problem)


def exchange_records(folder: pathlib.Path, before: str, after: str) -> None:
    """Lets a begun evaluation of the records with the digest `before` go on with those of the
    digest `after`, which ask the same."""
    path = folder / RESULTS
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["settings"]["records"]["sha256"] == before:
            body["settings"]["records"]["sha256"] = after
            _replace(path, json.dumps(body, indent=1, allow_nan=False) + "\n")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # Nothing is begun, or `ResultsFolder` says what is wrong with it.


def _compare(found, settings, path):
    there, here = (
        {f"{section}.{name}": value for section, own in body.items() for name, value in own.items()}
        for body in (found, settings)
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return (
                f"{path}: {name} is {there.get(name)!r} there and {here.get(name)!r} in this run; "
                "use the same value or another workdir"
            )
    return ""
