"""Opens any source of records by its name: a file, a folder, or a TFDS data set."""

import hashlib
import logging
import os

from videorft_jax.data.records.formats import FORMATS
from videorft_jax.data.records.source import RecordSource, Source, TableSource
from videorft_jax.data.records.tables import is_table

log = logging.getLogger(__name__)


def digest_records(name: str | os.PathLike) -> str:
    """sha256 of a file of records; of a folder or TFDS data set that of its files, by name."""
    name = os.fspath(name)
    if name.startswith("tfds:"):
        from videorft_jax.data.records.tfds import find_folder

        name = find_folder(name.removeprefix("tfds:"))
    if not os.path.isdir(name):
        with open(name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for folder, folders, files in os.walk(name):
        folders.sort()
        for part in sorted(files):
            path = os.path.join(folder, part)
            whole.update(f"{os.path.relpath(path, name)} {digest_records(path)}\n".encode())
    return whole.hexdigest()


def open_records(
    name: str | os.PathLike, data_root: str | os.PathLike | None = None, form: str = "auto"
) -> Source:
    """The records of `name`.

    name: a JSON or JSONL file, also compressed (.gz, .zst), CSV, TSV, parquet, Arrow, the folder of
    a Hugging Face data set, or tfds:NAME, a data set that `videorft tfds` has built. data_root:
    folder of the media; default: the file's own. form: one of FORMATS; "auto" goes by the first
    row, and says so. Raises ValueError, one line.
    """
    if form not in FORMATS:
        raise ValueError(f"data.format is {form!r}; choose one of {', '.join(FORMATS)}")
    name = os.fspath(name)
    if name.startswith("tfds:"):
        from videorft_jax.data.records.tfds import TfdsSource, find_folder  # heavy to import

        return TfdsSource(find_folder(name.removeprefix("tfds:")), data_root=data_root)
    kind = TableSource if is_table(name) else RecordSource
    source = kind(name, data_root, form)
    if source.form != "videorft":
        log.info("%s: %d rows, read as format %s", name, len(source), source.form)
    return source
