"""What a benchmark is to us: where its files lie, and the questions in them."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from videorft_jax.data.records.tables import is_table, read_table
from videorft_jax.evaluation.benchmarks.subtitles import Subtitles
from videorft_jax.evaluation.benchmarks.wording import LETTERS, Wording


@dataclasses.dataclass(frozen=True)
class Item:
    """An item is one question of a benchmark.

    Attributes:
      id: unique within the benchmark.
      question: its text, without options where they are apart.
      kind: a question type that `score_outputs` knows.
      gold: a letter where there are options, else the answer.
      media: what is shown, in order: dicts with type, path relative to the benchmark's folder and,
        of a part of a clip, start and end in seconds; of a folder of frames, fps.
      options: texts without letters.
      option_lines: the options with letters as the files have them, where the paper's prompt shows
        them so.
      categories: what results are broken down by.
      wording: how the benchmark's own code asks; None for a record file, which has no code.
      subtitles: the lines of the clip that the benchmark's own code may show.
      picture: the bytes of an image file that its own code shows behind the clip.
      judged: what a judge is asked about the output, of a captioning item.
      problem: what is wrong with the row, "" for nothing.
    """

    id: str
    question: str
    kind: str
    gold: str
    media: tuple[Mapping[str, Any], ...]
    options: tuple[str, ...] = ()
    option_lines: tuple[str, ...] = ()
    categories: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wording: Wording | None = None
    subtitles: Subtitles | None = None
    picture: bytes = b""
    judged: str = ""
    problem: str = ""

    @property
    def cluster(self) -> str:
        """Names the clip, since questions about one clip are not independent."""
        return str(self.media[0]["path"])


@dataclasses.dataclass(frozen=True)
class Task:
    """A task is a benchmark: where its files lie, and how they are read.

    Attributes:
      name: what commands call it.
      title: its name in papers.
      num_rows: the rows of its release.
      files: annotation files, as patterns below the benchmark's folder; one of them must be there.
      folders: names that users give the benchmark's folder below the data root.
      source: where to get the files.
      licence: the terms of the annotations and media.
      read: gives the questions of a folder.
    """

    name: str
    title: str
    num_rows: int
    files: tuple[str, ...]
    folders: tuple[str, ...]
    source: str
    licence: str
    read: Callable[[pathlib.Path], Iterator[Item]]

    def find_folder(
        self, data_root: str | pathlib.Path, others: Collection[str] = ()
    ) -> pathlib.Path | None:
        """The benchmark's folder: one of `folders` below the data root, or the data root itself,
        whichever first holds an annotation file; None where none does. What lies in the folders of
        `others` below the data root is not this benchmark's."""
        root = pathlib.Path(data_root)
        for folder in (*(root / name for name in self.folders), root):
            for path in (path for pattern in self.files for path in folder.glob(pattern)):
                if folder != root or path.relative_to(root).parts[0] not in others:
                    return folder
        return None


def read_rows(path: pathlib.Path) -> Sequence[Any]:
    """Reads the content of a JSON file, or the rows of a JSONL or parquet file. Raises ValueError
    for any other."""
    if is_table(str(path)):
        return read_table(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; download the file again") from None


def find_files(folder: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
    """Returns the files of the first pattern that has any, in order of their names."""
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def find_media(folder: pathlib.Path, *names: str) -> dict[str, Any]:
    """Makes a video item at the first of `names` that exists, or at the first of them."""
    name = next((name for name in names if (folder / name).exists()), names[0])
    return {"type": "video", "path": name}


def choose(gold: str, options: Sequence[str]) -> tuple[str, str]:
    """Returns (letter of the first option with the gold text, what is wrong with the row)."""
    plain = [option.strip() for option in options]
    if gold.strip() not in plain:
        return "", f"its gold answer {gold!r} is no candidate"
    repeated = len(set(plain)) < len(plain)
    return LETTERS[plain.index(gold.strip())], "it repeats a candidate" if repeated else ""


def without_letters(options: Sequence[str] | str | None) -> tuple[str, ...]:
    """Takes the options' own letters, "A. " or "(A) ", off where all have them. They come as a
    list, or as a text with a line for each."""
    if isinstance(options, str):
        options = options.strip().split("\n")
    options = [str(option).strip() for option in options or ()]
    marks = [(f"{letter}.", f"({letter})", f"{letter}:", f"{letter})") for letter in LETTERS]
    found = [
        next((option[len(mark) :].strip() for mark in own if option.startswith(mark)), None)
        for option, own in zip(options, marks, strict=False)
    ]
    return tuple(options if None in found else found)
