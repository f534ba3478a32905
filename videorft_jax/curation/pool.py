"""Stage 0, the pool: which records are asked about, which are left out, and on which side they are.

A media file is known by its sha256. Files that show the same clip make a cluster. Duplicates, the
match against benchmarks and the split all go by it, so that no clip is on both sides of the split.
"""

import array
import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

import numpy as np

from videorft_jax.curation.clusters import Clusters, FingerprintIndex
from videorft_jax.curation.contamination import DROPS, BenchmarkTexts, Hit, read_video_id
from videorft_jax.curation.fingerprint import CONTRACT, View, make_views, pack, unpack
from videorft_jax.curation.near import NearTexts
from videorft_jax.curation.requests import digest
from videorft_jax.curation.store import Store
from videorft_jax.data.media.contract import Limits, MediaError
from videorft_jax.data.media.files import open_media
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.records import Record, RecordError
from videorft_jax.data.records.source import RecordSource, check_extra

logger = logging.getLogger(__name__)
BLOCK = 1 << 20
ALIKE = 0.8  # share of its shingles that a question shares with one in other words


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record of the pool.

    index: its row in the file. name: sha256 over all that makes it this question. media: sha256
    of the file. cluster: the smallest digest of the files that show the same clip. dup_of: the
    first record with the same clip, answer and, nearly, question. hits: the items of benchmarks
    that it is known from. split: train or val, by the cluster.
    """

    index: int
    name: str
    media: str
    record: Record
    cluster: str = ""
    dup_of: str = ""
    hits: tuple[Hit, ...] = ()
    split: str = "train"

    @property
    def contaminated(self) -> str:
        """How the record is known from a benchmark, so that it is left out; "" if it is not."""
        return next((hit.how for hit in self.hits if hit.how in DROPS), "")

    @property
    def is_used(self) -> bool:
        return self.split == "train" and not self.dup_of and not self.contaminated

    def to_row(self) -> dict:
        record = self.record
        return {
            "record": self.name, "index": self.index, "media": self.media, "cluster": self.cluster,
            "kind": record.data_type, "source": record.data_source,
            "problem_type": record.problem_type, "dup_of": self.dup_of,
            "contaminated": self.contaminated, "split": self.split,
        }  # fmt: skip


class Pool:
    """The records of a file, what clips they share with one another and with benchmarks.

    benchmarks: (name or record file, data root) of each. Digests and fingerprints of files are
    kept in the store by path, size and time of change. isolate: decode in a process of its own.
    """

    def __init__(
        self, source: RecordSource, store: Store, benchmarks: Sequence[tuple[str, str]],
        val_fraction: float, isolate: bool = False,
    ):  # fmt: skip
        self._source, self._store = source, store
        self._val_fraction, self._isolate = val_fraction, isolate
        self._texts = BenchmarkTexts(benchmarks)
        self.unseen_clips = 0  # media of benchmarks that are not on the disk
        self.clusters = Clusters()
        self._hits: dict[str, Hit] = {}
        self._compare()
        self._doubles = self._find_doubles()

    def _compare(self) -> None:
        """Finds the clusters, and the clips of benchmarks, in one walk over all media."""
        numbers: dict[bytes, int] = {}
        places: list[tuple[str, str]] = []

        def load(number: int) -> list[View]:
            return self._views(*places[number], media_of[number])

        media_of: list[str] = []
        index, ids, known, marks = FingerprintIndex(load), {}, {}, {}
        for clip in self._texts.clips:
            try:
                media = hash_media(clip.folder, clip.path, self._store)
            except MediaError:
                self.unseen_clips += 1
                continue
            known.setdefault(media, clip)
            if name := read_video_id(clip.path):
                ids.setdefault(name, clip)
            if clip.kind == "video" and (views := self._views(clip.folder, clip.path, media)):
                marks[len(media_of)] = clip
                index.add(len(media_of), views)
                media_of.append(media)
                places.append((clip.folder, clip.path))
        for row in range(len(self._source)):
            try:
                entry = read_entry(self._source, row, self._store)
            except (RecordError, MediaError):
                continue
            media, path = entry.media, entry.record.path
            key = bytes.fromhex(media[:32])
            if key in numbers:
                continue
            numbers[key] = 0
            if clip := known.get(media):
                self._hits[media] = Hit(clip.benchmark, clip.id, "file", 1.0)
            elif clip := ids.get(read_video_id(path)):
                self._hits[media] = Hit(clip.benchmark, clip.id, "id", 1.0)
            if entry.record.data_type != "video":
                continue
            views = self._views(self._source.data_root, path, media)
            for number, score in index.find(views):
                if clip := marks.get(number):
                    self._hits.setdefault(media, Hit(clip.benchmark, clip.id, "hash", score))
                else:
                    self.clusters.join(media, media_of[number])
            index.add(len(media_of), views)
            media_of.append(media)
            places.append((self._source.data_root, path))
        by_cluster = {self.clusters.find(media): hit for media, hit in self._hits.items()}
        self._hits = by_cluster
        if self.unseen_clips:
            logger.warning("%d media of benchmarks are not there", self.unseen_clips)

    def _views(self, root: str, path: str, media: str) -> list[View]:
        """The fingerprint of a video; empty for one that cannot be decoded, which is quarantined
        when it is described."""

        def make() -> list:
            clip = load_media(path, root, CONTRACT, isolate=self._isolate)
            return [] if isinstance(clip, MediaError) else pack(make_views(clip.frames))

        return unpack(self._store.derive("fingerprint", media, make))

    def _find_doubles(self) -> dict[int, int]:
        """Rows that ask nearly what an earlier row asks about the same clip, with the same answer:
        row -> the earlier one."""
        doubles: dict[int, int] = {}
        with NearTexts(ALIKE) as near:
            for index in range(len(self._source)):
                try:
                    entry = read_entry(self._source, index, self._store)
                except (RecordError, MediaError):
                    continue
                record = entry.record
                scope = f"{self.clusters.find(entry.media)} {record.start} {record.end}"
                scope += f" {_plain(record.solution)}"
                if found := near.find(text := _text(record), scope):
                    doubles[index] = found[0]
                else:
                    near.add(index, text, scope)
        return doubles

    def __iter__(self) -> Iterator[Entry | RecordError | MediaError]:
        """Entries in the order of the file; in the place of one that cannot be used, the reason."""
        source, store = self._source, self._store
        for index in range(len(source)):
            try:
                entry = read_entry(source, index, store)
            except (RecordError, MediaError) as error:
                yield error
                continue
            record, cluster = entry.record, self.clusters.find(entry.media)
            row = self._doubles.get(index, index)
            hits = self._texts.find(record.problem, record.options, record.solution)
            if hit := self._hits.get(cluster):
                hits.insert(0, hit)
            yield dataclasses.replace(
                entry,
                cluster=cluster,
                dup_of="" if row == index else read_entry(source, row, store).name,
                hits=tuple(hits),
                split=self.clusters.side(entry.media, self._val_fraction),
            )


def read_entry(source: RecordSource, index: int, store: Store) -> Entry:
    """One row as an entry by itself, of which nothing is known yet but its record and its clip.
    Raises RecordError or MediaError."""
    record = source[index]
    if len(record.media) > 1 or record.turns or not isinstance(record.path, str):
        detail = "several clips, or a chat; curation asks one question about one clip"
        raise MediaError("unsupported", detail, source.where(index))
    check_extra(record, source.where(index))  # The sets are written when all is paid for.
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
    return " ".join(map(_plain, [record.problem, *record.options, record.solution]))


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def hash_media(root: str, path: str, store: Store) -> str:
    """sha256 of a media file below `root`. Raises MediaError."""
    with open_media(path, root, Limits()) as file:
        status = os.fstat(file)

        def read() -> str:
            found = sha256()
            offset = 0
            while block := os.pread(file, BLOCK, offset):
                found.update(block)
                offset += len(block)
            return found.hexdigest()

        where = f"{os.path.realpath(root)}/{path} {status.st_size} {status.st_mtime_ns}"
        return store.derive("sha256", where, read)
