"""The files of a run, which take the place of older ones only when all of them are whole."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

from videorft_jax.curation.difficulty import FILE as DIFFICULTY
from videorft_jax.curation.difficulty import QUESTIONS

SFT, RL = "VideoRFT-CoT.jsonl", "VideoRFT-RL.jsonl"
SETS = {"cot": SFT, "rl": RL}  # The card and Croissant call them so.
FILES = (
    "pool.jsonl", "describe.jsonl", "think.jsonl", "revise.jsonl", "verdicts.jsonl", "dead.jsonl",
    "quarantine.jsonl", "contamination.jsonl", QUESTIONS, DIFFICULTY, SFT, RL,
)  # fmt: skip


class StageFiles:
    """Writes `FILES` into a folder under other names, and renames them where no error was raised.
    Use it as a context manager."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._open = {
            name: self._stack.enter_context(
                self.path(name).open("w", encoding="utf-8", newline="\n")
            )
            for name in FILES
        }

    def path(self, name: str) -> pathlib.Path:
        """Where the file lies until all are whole."""
        return self._folder / f"{name}.partial"

    def add(self, name: str, row: dict) -> None:
        """Writes one row."""
        self._open[name].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Makes what was written readable by others."""
        for file in self._open.values():
            file.flush()

    def rows(self, name: str) -> Iterator[dict]:
        """The rows of a file that was flushed."""
        with self.path(name).open(encoding="utf-8", newline="\n") as file:
            yield from map(json.loads, file)

    def __enter__(self) -> "StageFiles":
        return self

    def __exit__(self, kind, *_) -> None:
        self._stack.close()
        for name in FILES:
            if kind is None:
                os.replace(self.path(name), self._folder / name)
            else:
                self.path(name).unlink()
