"""Writes a frame cache: every clip of a source is decoded once, and a stopped run goes on.

An entry of a shard exists when the shard's index does, which is renamed into place last.
"""

import concurrent.futures
import json
import os
from collections.abc import Callable
from typing import NamedTuple

from array_record.python import array_record_module

from videorft_jax.data.loader.cache import (
    FORMAT,
    FrameCache,
    cache_key,
    hash_media,
    pack_clip,
    read_contract,
)
from videorft_jax.data.loader.watchdog import call_within
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import describe_file
from videorft_jax.data.media.load import load_media, patience
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.quarantine import Failure
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import Source, media_of

OPTIONS = "group_size:1,zstd:1"  # one clip a chunk; zstd 1 is 10 times as fast as the default
SHARD_RECORDS = 256


class _Frames(NamedTuple):
    """A clip ready to be written; payload None where the cache holds it already."""

    key: str
    name: list  # path, size, mtime_ns, sha256
    payload: bytes | None


def write_cache(
    source: Source,
    contract: MediaContract,
    folder: str | os.PathLike,
    *,
    threads: int,
    limits: Limits = Limits(),  # noqa: B008, frozen
    isolate: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, list[Failure]]:
    """Caches the clips of every record; what is there already is kept.

    progress: is told how many records are done. Returns the number of clips added, and the records
    of which a clip cannot be read. Raises ValueError when the folder holds a cache of another
    contract.
    """
    writer = _Writer(source, contract, os.path.abspath(folder), limits, isolate)
    added, failures = 0, []
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(source), SHARD_RECORDS):
            chunk = range(start, min(start + SHARD_RECORDS, len(source)))
            shard = writer.open_shard()
            for index, found in zip(chunk, pool.map(writer.read_record, chunk), strict=True):
                if isinstance(found, Failure):
                    failures.append(found)
                else:
                    for frames in found:
                        shard.add(writer.remember(frames))
                progress(index + 1)
            added += shard.close()
    return added, failures


class _Writer:
    """What the cache holds so far, and how a record becomes entries of it."""

    def __init__(
        self, source: Source, contract: MediaContract, folder: str, limits: Limits, isolate: bool
    ):
        os.makedirs(folder, exist_ok=True)
        if read_contract(folder) is None:
            if os.listdir(folder):
                raise ValueError(
                    f"{folder}: is there already and holds no frame cache; choose another folder"
                )
            claim = {"format": FORMAT, "contract": contract.to_dict()}
            _write_text(os.path.join(folder, "cache.json"), json.dumps(claim, indent=1))
        cache = FrameCache(folder, contract)
        self._source, self._contract, self._folder = source, contract, folder
        self._limits, self._isolate = limits, isolate
        self._keys, self._names = set(cache.positions), dict(cache.digests)
        numbers = [int(n[6:11]) for n in os.listdir(folder) if n.startswith("clips-")]
        self._next_shard = max(numbers, default=-1) + 1

    def open_shard(self) -> "_Shard":
        self._next_shard += 1
        return _Shard(self._folder, self._next_shard - 1)

    def read_record(self, index: int) -> list[_Frames] | Failure:
        """The entries of one record that the cache lacks. From any thread."""
        try:
            record = self._source[index]
        except RecordError as error:
            return Failure(index, self._source.where(index), "schema", str(error))
        found = []
        for item in record.media:
            try:
                wait = patience(self._limits, self._isolate)
                frames = call_within(wait, self._read_item, index, item)
            except TimeoutError as error:
                return Failure(index, item.name, "timeout", str(error))
            except MediaError as error:
                return Failure(index, item.name, error.reason, error.detail)
            if frames is not None:
                found.append(frames)
        return found

    def remember(self, frames: _Frames) -> _Frames:
        """The entry, without its payload where the same clip was met before in this run."""
        if frames.key in self._keys:
            frames = frames._replace(payload=None)
        self._keys.add(frames.key)
        self._names[tuple(frames.name[:3])] = frames.name[3]
        return frames

    def _read_item(self, index: int, item: MediaItem) -> _Frames | None:
        media, root = media_of(self._source, index, item), self._source.data_root
        name = (item.name, -1, -1)  # Bytes, and files that are not there, are known so.
        if not isinstance(media, bytes):
            name = describe_file(media, root) or name
        if name in self._names and cache_key(self._names[name], item) in self._keys:
            return None
        digest = hash_media(media, root, self._limits)
        key, entry = cache_key(digest, item), [*name, digest]
        if key in self._keys:
            return _Frames(key, entry, None)
        how = item.load_arguments(self._contract) | {"limits": self._limits}
        clip = load_media(media, root, **how, isolate=self._isolate)
        if isinstance(clip, MediaError):
            raise clip
        return _Frames(key, entry, pack_clip(clip))


class _Shard:
    """Writes one shard. Its index is renamed into place last: a shard without one does not
    exist."""

    def __init__(self, folder: str, number: int):
        self._stem = os.path.join(folder, f"clips-{number:05d}")
        self._writer = None
        self._keys: list[str] = []
        self._names: list[list] = []

    def add(self, item: _Frames) -> None:
        self._names.append(item.name)
        if item.payload is not None:
            if self._writer is None:
                path = self._stem + ".array_record"
                self._writer = array_record_module.ArrayRecordWriter(path, OPTIONS)
            self._writer.write(item.payload)
            self._keys.append(item.key)

    def close(self) -> int:
        """Returns the number of clips written."""
        if self._writer is not None:
            self._writer.close()
        if self._names:
            index = {"keys": self._keys, "names": self._names}
            _write_text(self._stem + ".json", json.dumps(index))
        return len(self._keys)


def _write_text(path: str, text: str) -> None:
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)
