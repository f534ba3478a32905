"""What of a pool is known from the benchmarks that it must not teach: by clip and by text.

A clip of a benchmark is known by its bytes, by its id where its name is one of YouTube's, and by
its fingerprint. Question, options and answer that all agree are the same item. A question that
agrees by itself is only noted, since "What happens next?" is asked of any clip.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from videorft_jax.evaluation.benchmarks.catalogue import find_task, load_items
from videorft_jax.evaluation.benchmarks.task import without_letters

WORDS = 8  # A question that shares a run of so many words with a benchmark is kept out.
CONTAINED = 0.5  # share of such runs of a question from which it is noted
VIDEO_ID = re.compile(r"(?=.*[A-Z])(?=.*[a-z])[A-Za-z0-9_-]{11}")
DROPS = ("file", "id", "hash", "text")  # the others are notes


class Hit(NamedTuple):
    """One item of a benchmark that is known from a record: how is file, id, hash, text or
    question; score is the share of frames or of runs of words that agree."""

    benchmark: str
    id: str
    how: str
    score: float


@dataclasses.dataclass(frozen=True)
class BenchmarkClip:
    """A media file of a benchmark, below `folder`; `id` is the first item that shows it."""

    benchmark: str
    id: str
    folder: str
    path: str
    kind: str


class BenchmarkTexts:
    """The questions of benchmarks, and the clips that they show."""

    def __init__(self, benchmarks: Sequence[tuple[str, str]]):
        """benchmarks: (name of a benchmark or of a record file, data root). Raises ValueError for
        one that is not there, since a set would else be called clean in error."""
        self._whole: dict[str, tuple[str, str]] = {}
        self._questions: dict[str, tuple[str, str]] = {}
        self._runs: dict[str, tuple[str, str]] = {}
        self.clips: list[BenchmarkClip] = []
        for name, root in benchmarks:
            task = find_task(name)
            folder, items = load_items(task, root or os.path.dirname(os.path.abspath(name)))
            shown: dict[str, BenchmarkClip] = {}
            for item in items:
                place = (task.name, item.id)
                self._whole.setdefault(_whole(item.question, item.options, item.gold), place)
                self._questions.setdefault(_plain(item.question), place)
                for run in _runs(item.question, item.options):
                    self._runs.setdefault(run, place)
                for part in item.media:
                    path = str(part["path"])
                    clip = BenchmarkClip(*place, str(folder), path, part.get("type", "video"))
                    shown.setdefault(path, clip)
            self.clips += shown.values()

    def find(self, question: str, options: Sequence[str], solution: str) -> list[Hit]:
        """Hits of one record's text."""
        plain = without_letters(options)
        if place := self._whole.get(_whole(question, plain, solution)):
            return [Hit(*place, "text", 1.0)]
        if place := self._questions.get(_plain(question)):
            return [Hit(*place, "question", 1.0)]
        runs = _runs(question, plain)
        known = [self._runs[run] for run in runs if run in self._runs]
        if runs and len(known) >= CONTAINED * len(runs):
            return [Hit(*known[0], "question", round(len(known) / len(runs), 4))]
        return []


def read_video_id(path: str) -> str:
    """The id in a file's name where it looks like one of YouTube's, else ""."""
    stem = pathlib.PurePath(path).stem
    return stem if VIDEO_ID.fullmatch(stem) else ""


def _plain(text: str) -> str:
    """Words without case, spacing or punctuation."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _whole(question: str, options: Sequence[str], answer: str) -> str:
    """Question, options in any order and the text of the answer."""
    letter = answer.strip().strip("().").upper()
    if options and len(letter) == 1 and 0 <= (index := ord(letter) - ord("A")) < len(options):
        answer = options[index]
    return "\0".join([_plain(question), *sorted(map(_plain, options)), _plain(answer)])


def _runs(question: str, options: Sequence[str]) -> set[str]:
    words = _plain(" ".join([question, *options])).split()
    return {" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
