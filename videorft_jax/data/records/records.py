"""The VideoRFT record: its schema, its checks, and random access to files of any length.

One design decision is worth knowing: in memory `process` and `solution` are bare text. The
`<think>` and `<answer>` tags that files carry (or lack, repeat or nest) are taken off once, here,
and put back by `Record.to_row` and by `data.prompts`; no other code ever meets them. A JSONL file
is never loaded: `RecordSource` keeps 16 bytes per row and reads rows where they lie.
"""

import dataclasses
import json
import math
import operator
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
DATA_TYPES = ("image", "video")
MAX_ROW_BYTES = 1 << 24  # a longer line is a file that is not JSONL, not a record
CHUNK_BYTES = 1 << 24
SHORTEST_ROW = 16  # a line below this many bytes may be blank and is looked at while indexing

# field: (accepted types, required, what to write instead)
SCHEMA: dict[str, tuple[tuple[type, ...], bool, str]] = {
    "problem_id": ((int, str), True, "give each row an integer or string id"),
    "problem": ((str,), True, "write the question as a non-empty string"),
    "data_type": ((str,), True, f"write one of {', '.join(DATA_TYPES)}"),
    "problem_type": ((str,), True, f"write one of {', '.join(PROBLEM_TYPES)}"),
    "options": ((list, type(None)), False, 'write a list such as ["A. red", "B. blue"], or []'),
    "process": ((str, type(None)), False, "write the reasoning as <think>...</think>, or leave it"),
    "solution": ((str,), True, "write the answer as a string, <answer>...</answer>"),
    "path": ((str,), True, "write the media path relative to the data root, as ./clips/a.mp4"),
    "data_source": ((str, type(None)), False, "write the source's name as a string, or leave it"),
    "start": ((int, float, type(None)), False, "write seconds from the start of the clip"),
    "end": ((int, float, type(None)), False, "write seconds, larger than start"),
}
LABEL = re.compile(r"\s*\(?([A-Za-z])\s*[.):：、]\s*(.*)", re.DOTALL)
DUPLICATE_KEY = "\0duplicate"


class RecordError(ValueError):
    """One fault of one row. `reason` is one of missing, type, value, tags, json, encoding, length
    and duplicate, so that faults can be counted; `str()` is one line with place and remedy."""

    def __init__(self, where: str, field: str, reason: str, value: Any, remedy: str):
        super().__init__(where, field, reason, value, remedy)
        self.where, self.field, self.reason, self.remedy = where, field, reason, remedy
        self.value = value if isinstance(value, str) else repr(value)

    def __str__(self) -> str:
        value = self.value.encode("unicode_escape", "backslashreplace").decode()
        value = value if len(value) <= 80 else value[:77] + "..."
        return f"{self.where}: {self.field}: bad {self.reason}: {value}; {self.remedy}"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One question about one video or image. `start` and `end` are seconds within the clip;
    `extra` holds the row's other fields unchanged, for user rewards and benchmark breakdowns."""

    problem_id: int | str
    problem: str
    data_type: str
    problem_type: str
    options: tuple[str, ...]
    process: str
    solution: str
    path: str
    data_source: str = ""
    start: float | None = None
    end: float | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def to_row(self) -> dict[str, Any]:
        """The row of a VideoRFT file: tags put back, absent times left out."""
        row = {field: getattr(self, field) for field in SCHEMA}
        row["options"] = list(self.options)
        row["process"] = f"<think>{self.process}</think>" if self.process else ""
        row["solution"] = f"<answer>{self.solution}</answer>"
        for field in ("start", "end"):
            if row[field] is None:
                del row[field]
        return row | dict(self.extra)


def unwrap(text: str, tag: str) -> str:
    """Bare text of `<tag>text</tag>`, stripped; linear in the length of `text`.

    Text without the tag is returned as it is. Nested and repeated tags around one and the same
    text count as one. Case of the tags does not matter.

    Raises:
      ValueError: unbalanced tags, text outside them, or blocks that disagree.
    """
    pieces = re.split(f"(</?{tag}>)", text, flags=re.IGNORECASE)
    if len(pieces) == 1:
        return text.strip()
    depth, blocks = 0, []
    for index, piece in enumerate(pieces):
        if index % 2:
            depth += -1 if piece.startswith("</") else 1
            if depth < 0:
                raise ValueError(f"</{tag}> before <{tag}>")
            if depth == 1 and not piece.startswith("</"):
                blocks.append([])
        elif piece.strip():
            if not depth:
                raise ValueError(f"text outside <{tag}>")
            blocks[-1].append(piece.strip())
    if depth:
        raise ValueError(f"<{tag}> is not closed")
    if any(len(block) > 1 for block in blocks) or len({tuple(block) for block in blocks}) > 1:
        raise ValueError(f"several different <{tag}> texts")
    return blocks[0][0] if blocks[0] else ""


def label_options(options: Iterable[str]) -> list[tuple[str, str]]:
    """(letter, text) of each option. The options' own labels are used when all of them carry one
    in the order A, B, C; otherwise ("J. Doe", "4. of May") the label belongs to the text."""
    options = [option.strip() for option in options]
    matches = [LABEL.fullmatch(option) for option in options]
    letters = [chr(ord("A") + i) for i in range(len(options))]
    if all(matches) and [match[1].upper() for match in matches] == letters:
        return [(match[1].upper(), match[2].strip()) for match in matches]
    return list(zip(letters, options, strict=True))


def parse_row(row: Any, where: str = "record") -> Record:
    """A checked record from one decoded row. Raises the first of `find_errors` as RecordError."""
    errors, values = _check(row, where)
    if errors:
        raise errors[0]
    return Record(**values)


def find_errors(row: Any, where: str = "record") -> list[RecordError]:
    """Every fault of one decoded row; `where` opens each message."""
    return _check(row, where)[0]


def _check(row: Any, where: str) -> tuple[list[RecordError], dict[str, Any]]:
    if not isinstance(row, dict):
        remedy = "write one JSON object per row"
        return [RecordError(where, "row", "type", row, remedy)], {}
    errors: list[RecordError] = []

    def fail(field: str, reason: str, value: Any, remedy: str = "") -> None:
        errors.append(RecordError(where, field, reason, value, remedy or SCHEMA[field][2]))

    values: dict[str, Any] = {}
    for field, (types, required, _) in SCHEMA.items():
        value = row.get(field)
        if field not in row:
            if required:
                fail(field, "missing", "absent")
        elif not isinstance(value, types) or isinstance(value, bool):
            fail(field, "type", value)
        elif isinstance(value, str) and not _is_text(value):
            fail(field, "encoding", value, "remove lone surrogates and NUL characters")
        elif isinstance(value, str) and required and not value.strip():
            fail(field, "value", value)
        else:
            values[field] = value
    if DUPLICATE_KEY in row:
        fail("row", "value", row[DUPLICATE_KEY], "name each field once")
    extra = {key: value for key, value in row.items() if key not in SCHEMA}
    for key, value in extra.items():
        if isinstance(value, float) and not math.isfinite(value):
            fail(str(key), "value", value, "write a finite number or null")

    for field, allowed in (("data_type", DATA_TYPES), ("problem_type", PROBLEM_TYPES)):
        if values.get(field, allowed[0]) not in allowed:
            fail(field, "value", values.pop(field))
    options = values.get("options") or ()
    if not all(isinstance(text, str) and text.strip() and _is_text(text) for text in options):
        fail("options", "type", options)
        options = ()
    elif len(options) > 26:
        fail("options", "value", f"{len(options)} options", "write at most 26, one a letter")
    for field, tag, other in (("process", "think", "answer"), ("solution", "answer", "think")):
        present = bool(values.get(field))
        try:
            values[field] = unwrap(values.get(field) or "", tag)
        except ValueError as error:
            fail(field, "tags", values.pop(field), f"{error}: write one <{tag}>...</{tag}>")
        else:
            if re.search(f"</?{other}>", values[field], re.IGNORECASE):
                fail(field, "tags", values.pop(field), f"move the <{other}> part to its own field")
            elif field == "solution" and present and not values[field]:
                fail(field, "value", row[field])
    if values.get("problem_type") == "multiple choice" and options and values.get("solution"):
        letters = [letter for letter, _ in label_options(options)]
        if values["solution"].upper() not in letters:
            remedy = f"write one letter of {letters[0]} to {letters[-1]} alone"
            fail("solution", "value", values["solution"], remedy)
    if values.get("problem_type") in ("numerical", "regression"):
        answer = values.get("solution", "").strip("+-").casefold()
        if answer in ("nan", "inf", "infinity"):
            fail("solution", "value", values["solution"], "write a finite number")
    _check_times(values, fail)

    values |= {"options": tuple(options), "data_source": values.get("data_source") or ""}
    return errors, values | {"extra": extra}


def _check_times(values: dict[str, Any], fail: Any) -> None:
    for field in ("start", "end"):
        time = values.get(field)
        if time is None:
            continue
        if values.get("data_type") == "image":
            fail(field, "value", time, "remove it: an image has no time")
        elif not math.isfinite(time) or time < 0:
            fail(field, "value", time)
    start, end = values.get("start") or 0.0, values.get("end")
    if end is not None and math.isfinite(start) and math.isfinite(end) and end <= start:
        fail("end", "value", end)


def _is_text(value: str) -> bool:
    return "\0" not in value and value == value.encode("utf-8", "ignore").decode()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            row[DUPLICATE_KEY] = key
        row[key] = value
    return row


class RecordSource:
    """Random access to a record file: `source[i]` is a `Record`, or RecordError for a bad row.

    JSONL is read through a byte-offset index (one pass, 16 bytes a row) with `os.pread`, so any
    number of threads may share a source; a pickled source travels with its index and reopens the
    file. Blank lines, a byte-order mark and CRLF are accepted. A file that opens with `[` is a
    JSON list and is loaded whole (about five times its size in memory: turn large ones into JSONL).
    Rows are numbered from 0, in messages too, blank lines not counted. Ids need not be unique:
    rows are addressed by position, and `iter_errors` reports repeated ids.

    Args:
      path: the file.
      data_root: folder that record paths are relative to; default: the file's own folder.

    Raises:
      ValueError: missing, not a regular file, empty, compressed, UTF-16, or changed since indexed.
    """

    def __init__(self, path: str | os.PathLike, data_root: str | os.PathLike | None = None):
        self.path = os.path.abspath(path)
        self.data_root = os.path.abspath(data_root or os.path.dirname(self.path))
        self._fingerprint = None
        self._open()
        head = os.pread(self._file, 1 << 16, 0)
        if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
            raise ValueError(f"{path}: is compressed; decompress it first")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{path}: is UTF-16; convert it to UTF-8")
        bom = 3 * head.startswith(b"\xef\xbb\xbf")
        self._is_list = head[bom:].lstrip().startswith(b"[")
        self._starts, self._ends = np.zeros((2, 0), np.int64)
        if self._is_list:
            self._load_list()
        else:
            self._index_lines(bom)
        if not len(self):
            raise ValueError(f"{path}: no records; write one JSON object a line")

    def _open(self) -> None:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise ValueError(
                f"{self.path}: {error.strerror}; give the record file's path"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{self.path}: not a regular file; give a .json or .jsonl file")
        fingerprint = (status.st_size, status.st_mtime_ns)
        if self._fingerprint not in (None, fingerprint):
            raise ValueError(f"{self.path}: changed since it was indexed; start again")
        self._fingerprint = fingerprint
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}; make the file readable") from None

    def _index_lines(self, bom: int) -> None:
        size = self._fingerprint[0]
        ends = []
        offset = bom
        while chunk := os.pread(self._file, CHUNK_BYTES, offset):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + offset)
            offset += len(chunk)
        ends = np.concatenate([*ends, [size]]).astype(np.int64)
        starts = np.concatenate([[bom], ends[:-1] + 1]).astype(np.int64)
        keep = ends - starts >= SHORTEST_ROW
        for row in np.flatnonzero(~keep):
            keep[row] = bool(os.pread(self._file, ends[row] - starts[row], starts[row]).strip())
        self._starts, self._ends = starts[keep], ends[keep]

    def _load_list(self) -> None:
        with open(self.path, "rb") as file:
            data = file.read()
        try:
            rows = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: not a JSON list: {error}; repair the file") from None
        if not isinstance(rows, list):
            raise ValueError(f"{self.path}: opens with [ but is no list; write a list of objects")
        self._rows = rows

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_file", "_rows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        if self._is_list:
            self._load_list()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._rows) if self._is_list else len(self._starts)

    def __repr__(self) -> str:
        return f"RecordSource({self.path!r}, data_root={self.data_root!r})"

    def __getitem__(self, index: int) -> Record:
        return parse_row(self.row(index), self.where(index))

    def where(self, index: int) -> str:
        """How messages name row `index`."""
        return f"{os.path.basename(self.path)} row {index}"

    def row(self, index: int) -> Any:
        """The decoded, unchecked row. Raises RecordError (encoding, json, length) or IndexError."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: row {index} of {len(self)}")
        if self._is_list:
            return self._rows[index]
        start, size = int(self._starts[index]), int(self._ends[index] - self._starts[index])
        if size > MAX_ROW_BYTES:
            remedy = f"write one record a line, below {MAX_ROW_BYTES} bytes"
            raise RecordError(self.where(index), "row", "length", f"{size} bytes", remedy)
        data = os.pread(self._file, size, start)
        try:
            return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
        except UnicodeDecodeError as error:
            value, remedy = f"byte {error.start} of {data[:40]!r}", "convert the file to UTF-8"
            raise RecordError(self.where(index), "row", "encoding", value, remedy) from None
        except (ValueError, RecursionError) as error:
            value = data[:60].decode("utf-8", "replace")
            remedy = f"{error}: write one JSON object a line"
            raise RecordError(self.where(index), "row", "json", value, remedy) from None

    def iter_errors(self) -> Iterator[RecordError]:
        """Every fault in row order; a problem_id that an earlier sound row has is one."""
        first_seen: dict[int | str, int] = {}
        for index in range(len(self)):
            try:
                errors, values = _check(self.row(index), self.where(index))
            except RecordError as error:
                errors, values = [error], {}
            yield from errors
            if not errors:
                row = first_seen.setdefault(values["problem_id"], index)
                if row != index:
                    remedy = f"first used by row {row}: give each row its own id"
                    value = values["problem_id"]
                    yield RecordError(self.where(index), "problem_id", "duplicate", value, remedy)


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> int:
    """Writes JSONL through a temporary file and a rename; returns the number of rows."""
    temporary = f"{path}.{os.getpid()}.tmp"
    count = 0
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record.to_row(), ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    os.replace(temporary, path)
    return count
