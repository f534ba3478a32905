"""Rows of files that are no plain JSON: compressed JSON, CSV, Arrow, and Hugging Face folders.

Such a file is read into memory whole, parquet and Arrow in the columns in which they lie. Plain
JSONL is not read by this module but by `RecordSource`, which leaves it on disk.
"""

import csv
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Sequence
from typing import Any

from videorft_jax.data.records.records import DUPLICATE_KEY

LISTS = ("options", "media", "messages", "conversations", "prompt", "images", "videos")
NUMBERS = (
    "start", "end", "video_start", "video_end", "fps", "resized_height", "resized_width",
)  # fmt: skip
_CELLS = {".csv": ",", ".tsv": "\t"}  # What separates the cells of a line.
_COLUMNS = (".parquet", ".arrow", ".feather")
# Words by which `datasets` tells the split of a file from its name or folder, and the split.
_SPLITS = dict.fromkeys(("train", "training"), "train")
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLITS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")


def is_table(path: str) -> bool:
    """Whether a path is read by this module rather than as plain JSON."""
    return os.path.isdir(path) or path.lower().endswith((".gz", ".zst", *_CELLS, *_COLUMNS))


def read_table(path: str) -> Sequence[Any]:
    """The rows of a file or folder: dicts, or a ValueError in place of a row that is no JSON.

    Raises ValueError, one line, for what cannot be read.
    """
    try:
        if os.path.isdir(path) or path.lower().endswith(_COLUMNS):
            return _Columns(_read_arrow(path))
        if path.lower().endswith(tuple(_CELLS)):
            return _read_csv(path, _CELLS[path[-4:].lower()])
        return _read_json(path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(f"{path}: {error}; give a readable file") from None


class _Columns(Sequence):
    """Rows of an Arrow table, made when they are asked for."""

    def __init__(self, table):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._table.slice(index, 1).to_pylist()[0]
        return {name: value for name, value in row.items() if value is not None}


def _read_arrow(path: str):
    import pyarrow
    from pyarrow import parquet

    try:
        if not os.path.isdir(path):
            is_parquet = path.lower().endswith(".parquet")
            return parquet.read_table(path) if is_parquet else _read_ipc(pyarrow, path)
        files = sorted(glob.glob(os.path.join(path, "**", "*.parquet"), recursive=True))
        if files:
            _check_split(path, files)
            return pyarrow.concat_tables(map(parquet.read_table, files), promote_options="default")
        files = _arrow_files(path)
        if not files:
            raise ValueError("a folder without .arrow or .parquet files; give one of a data set")
        return pyarrow.concat_tables([_read_ipc(pyarrow, file) for file in files])
    except (pyarrow.ArrowException, ValueError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"{path}: {line}") from None


def _arrow_files(path: str) -> list[str]:
    """The shards of a data set that `datasets` saved, in the order of its state.json."""
    try:
        with open(os.path.join(path, "state.json"), encoding="utf-8") as file:
            names = [entry["filename"] for entry in json.load(file)["_data_files"]]
    except FileNotFoundError:
        parts = [
            name for name in sorted(os.listdir(path)) if os.path.isdir(os.path.join(path, name))
        ]
        if parts:
            found = ", ".join(parts[:5])
            raise ValueError(f"holds the splits {found}; give the folder of one") from None
        names = [name for name in sorted(os.listdir(path)) if name.endswith(".arrow")]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state.json: {error}; save the data set again") from None
    files = [os.path.join(path, name) for name in names]
    _check_split(path, files)
    return files


def _check_split(path: str, files: Sequence[str]) -> None:
    """Raises ValueError where the files are of several splits, told as `datasets` tells them: who
    trains on such a folder would train on its test set as well."""
    splits = {
        _SPLITS[word]
        for file in files
        for word in re.split(r"[\W_\d]+", os.path.relpath(file, path).lower())
        if word in _SPLITS
    }
    if len(splits) > 1:
        found = ", ".join(sorted(splits))
        raise ValueError(f"holds the splits {found}; give one file, or a folder of one split alone")


def _read_ipc(pyarrow, file: str):
    """The table of an Arrow file: a stream as `datasets` saves it, or the form of Feather."""
    with pyarrow.memory_map(file) as source:
        if source.read(6) == b"ARROW1":
            return pyarrow.ipc.open_file(source).read_all()
        source.seek(0)
        return pyarrow.ipc.open_stream(source).read_all()


def _read_csv(path: str, separator: str) -> list[dict[str, Any]]:
    """Cells are texts; lists are written as JSON, and empty cells are absent."""
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="\0surplus", delimiter=separator)
        names = reader.fieldnames or ()
        if len(names) == 1 and (found := re.search("[,;\t|]", names[0])):
            raise ValueError(
                f"{path}: its cells are separated by {found[0]!r}; separate them by commas in a "
                ".csv and by tabs in a .tsv"
            )
        for name in names:
            if name and names.count(name) > 1:
                raise ValueError(f"{path}: several columns {name!r}; name each once")
        rows = [
            {name: _cell(name, text) for name, text in row.items() if text not in ("", None)}
            for row in reader
        ]
    for number, row in enumerate(rows):
        if "\0surplus" in row:
            raise ValueError(
                f"{path}: row {number} has more cells than the header; quote its texts"
            )
    return rows


def _cell(name: str, text: Any) -> Any:
    if not isinstance(text, str):
        return text
    if name in LISTS and text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text  # the check of the row says what is expected
    if name in NUMBERS:
        try:
            return float(text)
        except ValueError:
            return text
    return int(text) if name in ("problem_id", "id") and text.isdecimal() else text


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON that holds the pairs; it says so where a key is there twice."""
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            row[DUPLICATE_KEY] = key
        row[key] = value
    return row


def _read_json(path: str) -> list[Any]:
    """JSONL or a JSON list, compressed by gzip or zstd."""
    if path.lower().endswith(".gz"):
        with gzip.open(path) as file:
            data = file.read()
    else:
        import pyarrow

        with pyarrow.input_stream(path, compression="zstd") as file:
            data = file.read()
    text = data.decode("utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            return json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a JSON list: {error}; repair the file") from None
    return [_read_line(line) for line in text.split("\n") if line.strip()]


def _read_line(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        return ValueError(f"{error}: {line[:60]}")
