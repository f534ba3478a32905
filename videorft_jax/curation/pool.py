"""Stage 0, the pool: which records are asked about, which are left out, and on which side they are.

A clip is known by the sha256 of its file. Duplicates, the match against benchmarks and the split
all go by it, so that no clip is on both sides of the split.
"""

import array
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from videorft_jax.curation.requests import digest
from videorft_jax.curation.store import Store
from videorft_jax.data.media.contract import Limits, MediaError
from videorft_jax.data.media.files import open_media
from videorft_jax.data.records.records import Record, RecordError
from videorft_jax.data.records.source import RecordSource

BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record of the pool.

    index: its row in the file. record: sha256 over all that makes it this question. media: sha256
    of the file. dup_of: the first record with the same clip and question. contaminated: how it is
    known from a benchmark: "file", or "text" for question, options and answer alike; "" otherwise.
    split: train or val, by the clip.
    """

    index: int
    name: str
    media: str
    record: Record
    dup_of: str = ""
    contaminated: str = ""
    split: str = "train"

    @property
    def is_used(self) -> bool:
        return self.split == "train" and not self.dup_of and not self.contaminated

    def to_row(self) -> dict:
        return {
            "record": self.name, "index": self.index, "media": self.media,
            "source": self.record.data_source, "problem_type": self.record.problem_type,
            "dup_of": self.dup_of, "contaminated": self.contaminated, "split": self.split,
        }  # fmt: skip


def read_pool(
    source: RecordSource, store: Store, benchmarks: Sequence[RecordSource], val_fraction: float
) -> Iterator[Entry | RecordError | MediaError]:
    """Entries in the order of the file; in the place of one that cannot be used, the reason.
    Digests of files are kept in the store by path, size and time of change."""
    files, texts = set(), set()
    for benchmark in benchmarks:
        for index in range(len(benchmark)):
            record = benchmark[index]
            texts.add(_text(record))
            files.update(
                hash_media(benchmark.data_root, item.path, store)
                for item in record.media
                if isinstance(item.path, str)
            )
    first: dict[bytes, int] = {}  # Digests of clip and question, cut short, and their rows.
    for index in range(len(source)):
        try:
            entry = read_entry(source, index, store)
        except (RecordError, MediaError) as error:
            yield error
            continue
        record, media = entry.record, entry.media
        same = digest([media, record.start, record.end, _text(record)])
        row = first.setdefault(bytes.fromhex(same[:32]), index)
        known = "file" if media in files else "text" if _text(record) in texts else ""
        share = int(hashlib.sha256(f"split {media}".encode()).hexdigest()[:8], 16) / 2**32
        yield dataclasses.replace(
            entry,
            dup_of="" if row == index else read_entry(source, row, store).name,
            contaminated=known,
            split="val" if share < val_fraction else "train",
        )


def read_entry(source: RecordSource, index: int, store: Store) -> Entry:
    """One row as an entry by itself, of which nothing is known yet but its record and its clip.
    Raises RecordError or MediaError."""
    record = source[index]
    if len(record.media) > 1 or record.turns or not isinstance(record.path, str):
        detail = "several clips, or a chat; curation asks one question about one clip"
        raise MediaError("unsupported", detail, source.where(index))
    media = hash_media(source.data_root, record.path, store)
    name = digest(
        [record.data_source, record.problem_id, _question(record), record.solution, media,
         record.start, record.end]
    )  # fmt: skip
    return Entry(index, name, media, record)


def order_used(pool: Iterable[Entry | ValueError]) -> np.ndarray:
    """The rows of the entries that are asked about, those of one clip together, in the order in
    which the clips appear: int64 [entries]. Entries themselves would fill the memory."""
    rows, clips = array.array("q"), array.array("Q")
    for entry in pool:
        if isinstance(entry, Entry) and entry.is_used:
            rows.append(entry.index)
            clips.append(int(entry.media[:16], 16))
    if not rows:
        return np.zeros(0, np.int64)
    _, first, clip = np.unique(np.asarray(clips), return_index=True, return_inverse=True)
    return np.asarray(rows)[np.argsort(first[clip], kind="stable")]


def _question(record: Record) -> list:
    return [record.problem, list(record.options)]


def _text(record: Record) -> str:
    """Question, options and answer without case, spacing or punctuation."""
    words = [record.problem, *record.options, record.solution]
    return " ".join(
        "".join(c if c.isalnum() else " " for c in word.casefold()).strip() for word in words
    )


def hash_media(root: str, path: str, store: Store) -> str:
    """sha256 of a media file below `root`. Raises MediaError."""
    with open_media(path, root, Limits()) as file:
        status = os.fstat(file)

        def read() -> str:
            found = hashlib.sha256()
            offset = 0
            while block := os.pread(file, BLOCK, offset):
                found.update(block)
                offset += len(block)
            return found.hexdigest()

        where = f"{os.path.realpath(root)}/{path} {status.st_size} {status.st_mtime_ns}"
        return store.derive("sha256", where, read)
