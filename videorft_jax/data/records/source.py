"""Random access to record files of any length.

A JSONL file is never loaded: `RecordSource` keeps 16 bytes per row and reads rows where they lie.
"""

import abc
import json
import operator
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.formats import convert_row, detect_format
from videorft_jax.data.records.records import (
    Record,
    RecordError,
    check_row,
    parse_row,
)
from videorft_jax.data.records.tables import read_table, unique_keys

MAX_ROW_BYTES = 1 << 24  # A file with a longer line is no JSONL.
CHUNK_BYTES = 1 << 24
FIRST_ROWS = 100  # The format is that of the first of them that can be read.
SHORTEST_ROW = 16  # Lines of fewer bytes may be blank, so that indexing looks at them.


class Source(Protocol):
    """Random access to records, as the loader wants it. `source[i]` raises RecordError for a bad
    row. A source that may hold the media themselves also has `media(i)`, a file's bytes or None,
    and `fingerprint`, a string that changes when its contents do, or None where it holds only
    paths."""

    data_root: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def where(self, index: int) -> str: ...


def media_of(source: Source, index: int, item: MediaItem) -> str | bytes | tuple[str, ...]:
    """An item's path, or the bytes of its file where the source holds them."""
    read = getattr(source, "media", None)
    return item.path if read is None else read(index) or item.path


class FirstRecords:
    """A source of the first `count` records of another, or of all where there are fewer. Media that
    the source holds itself stay with it."""

    def __init__(self, source: Source, count: int):
        self.source, self.count = source, min(count, len(source))
        self.data_root = source.data_root

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.source[index]

    def where(self, index: int) -> str:
        return self.source.where(index)

    def media(self, index: int) -> str | bytes | None:
        read = getattr(self.source, "media", None)
        return read(index) if read else None

    @property
    def fingerprint(self) -> str | None:
        return getattr(self.source, "fingerprint", None)


class Rows(abc.ABC):
    """A file of rows, numbered from 0: `source[i]` is the `Record` of row i, and raises RecordError
    where the row is bad. Ids need not be unique, because rows are addressed by position;
    `iter_errors` reports repeated ids."""

    path: str
    form: str  # one of formats.FORMATS but auto
    is_detected: bool  # The format was found out, so that a row that fits two is refused.

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def raw_row(self, index: int) -> Any:
        """The row as the file has it."""

    def row(self, index: int) -> Any:
        """The decoded, unchecked row in our own schema. Raises RecordError or IndexError."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: row {index} of {len(self)}")
        row, where = self.raw_row(index), self.where(index)
        if self.is_detected:
            detect_format(row, where)
        return convert_row(row, self.form, where, index)

    def __getitem__(self, index: int) -> Record:
        return parse_row(self.row(index), self.where(index))

    def where(self, index: int) -> str:
        """The name of row `index` in messages."""
        return f"{os.path.basename(self.path)} row {index}"

    def find_format(self, form: str) -> str:
        """The format asked for, or that of the first row that can be read. Raises RecordError
        where that row fits two formats."""
        self.is_detected = form == "auto"
        if not self.is_detected:
            return form
        for index in range(min(len(self), FIRST_ROWS)):
            try:
                row = self.raw_row(index)
            except RecordError:
                continue
            return detect_format(row, self.where(index))
        return "videorft"

    def iter_errors(self) -> Iterator[RecordError]:
        """Every fault in row order; a problem_id that an earlier sound row has is one."""
        first_seen: dict[int | str, int] = {}
        for index in range(len(self)):
            try:
                errors, values = check_row(self.row(index), self.where(index))
            except RecordError as error:
                errors, values = [error], {}
            yield from errors
            if not errors:
                row = first_seen.setdefault(values["problem_id"], index)
                if row != index:
                    remedy = f"first used by row {row}: give each row its own id"
                    value = values["problem_id"]
                    yield RecordError(self.where(index), "problem_id", "duplicate", value, remedy)


class TableSource(Rows):
    """Records of a file that is read into memory: compressed JSON, CSV, TSV, parquet, Arrow, or
    the folder of a Hugging Face data set. A pickled source reads the file again. Raises
    ValueError."""

    def __init__(
        self, path: str | os.PathLike, data_root: str | os.PathLike | None = None, form="auto"
    ):
        self.path = os.path.abspath(path)
        self.data_root = os.path.abspath(data_root or os.path.dirname(self.path))
        self._rows = read_table(self.path)
        if not len(self._rows):
            raise ValueError(f"{path}: no records")
        self.form = self.find_format(form)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = read_table(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"TableSource({self.path!r}, data_root={self.data_root!r})"

    def raw_row(self, index: int) -> Any:
        row = self._rows[index]
        if isinstance(row, ValueError):
            raise RecordError(
                self.where(index), "row", "json", str(row), "write one JSON object a line"
            )
        return row


class RecordSource(Rows):
    """Records of a JSON or JSONL file.

    JSONL is read through a byte-offset index (one pass, 16 bytes a row) with `os.pread`, so any
    number of threads may share a source; a pickled source travels with its index and reopens the
    file. Blank lines, a byte-order mark and CRLF are accepted. A file that opens with `[` is a
    JSON list and is loaded whole (about five times its size in memory: turn large ones into JSONL).
    Blank lines do not count as rows.

    Args:
      path: the file.
      data_root: folder that record paths are relative to; default: the file's own folder.
      form: one of `formats.FORMATS`.

    Raises:
      ValueError: missing, not a regular file, empty, compressed, UTF-16, or changed since indexed.
    """

    def __init__(
        self, path: str | os.PathLike, data_root: str | os.PathLike | None = None, form="auto"
    ):
        self.path = os.path.abspath(path)
        self.data_root = os.path.abspath(data_root or os.path.dirname(self.path))
        self._fingerprint = None
        self._open()
        head = os.pread(self._file, 1 << 16, 0)
        if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
            raise ValueError(f"{path}: is compressed under another name; let it end in .gz or .zst")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{path}: is UTF-16; convert it to UTF-8")
        if b"\0" in head[:1024]:
            raise ValueError(f"{path}: is no text; give JSON, JSONL, CSV, or an Arrow file")
        bom = 3 * head.startswith(b"\xef\xbb\xbf")
        self._is_list = head[bom:].lstrip().startswith(b"[")
        self._starts, self._ends = np.zeros((2, 0), np.int64)
        if self._is_list:
            self._load_list()
        else:
            self._index_lines(bom)
        if not len(self):
            raise ValueError(f"{path}: no records; write one JSON object a line")
        self.form = self.find_format(form)

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
            rows = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys)
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

    def __del__(self, close=os.close) -> None:  # Modules may be gone when the program ends.
        file = self.__dict__.pop("_file", None)
        if file is not None:
            try:  # noqa: SIM105, contextlib may be gone too
                close(file)
            except OSError:
                pass

    def __len__(self) -> int:
        return len(self._rows) if self._is_list else len(self._starts)

    def __repr__(self) -> str:
        return f"RecordSource({self.path!r}, data_root={self.data_root!r})"

    def raw_row(self, index: int) -> Any:
        """The decoded row. Raises RecordError (encoding, json, length)."""
        if self._is_list:
            return self._rows[index]
        start, size = int(self._starts[index]), int(self._ends[index] - self._starts[index])
        if size > MAX_ROW_BYTES:
            remedy = f"write one record a line, below {MAX_ROW_BYTES} bytes"
            raise RecordError(self.where(index), "row", "length", f"{size} bytes", remedy)
        data = os.pread(self._file, size, start)
        try:
            return json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
        except UnicodeDecodeError as error:
            value, remedy = f"byte {error.start} of {data[:40]!r}", "convert the file to UTF-8"
            raise RecordError(self.where(index), "row", "encoding", value, remedy) from None
        except (ValueError, RecursionError) as error:
            value = data[:60].decode("utf-8", "replace")
            remedy = f"{error}: write one JSON object a line"
            raise RecordError(self.where(index), "row", "json", value, remedy) from None


def check_extra(record: Record, where: str) -> None:
    """Raises RecordError for a field of the user's own that a file of records, which is JSON in
    UTF-8, cannot hold, such as a date of a parquet file or half of a surrogate pair."""
    for field, value in record.extra.items():
        try:
            json.dumps({field: value}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = "encoding" if isinstance(error, UnicodeError) else "type"
            remedy = "write it as texts, without lone surrogates, and finite numbers, or leave it"
            raise RecordError(where, str(field), reason, value, f"{remedy} out") from None


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> int:
    """Writes JSONL through a temporary file and a rename; returns the number of rows. Nothing is
    left of a file that is not written to its end."""
    temporary = pathlib.Path(f"{path}.{os.getpid()}.tmp")
    count = 0
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for record in records:
                row = record.to_row()
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count
