"""Decoded frames on disk, for data that is read more often than once: `videorft cache`.

One design decision is worth knowing: a clip is found by what is in its file (sha256), not by its
name, and a cache belongs to one media contract, stored beside it and compared field by field. So a
cache can be moved, or shared by several record files, and never gives frames of other settings.
Entries are ArrayRecord records (random access, checksummed, zstd): a JSON header and raw bytes.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from videorft_jax.data.loader.measure import Source, media_of, patience
from videorft_jax.data.loader.watchdog import Progress, call_within
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError, open_media
from videorft_jax.data.media.video import Clip, load_media
from videorft_jax.data.records.quarantine import Failure
from videorft_jax.data.records.records import Record, RecordError

logger = logging.getLogger(__name__)
FORMAT = 1
OPTIONS = "group_size:1,zstd:1"  # one clip a chunk; zstd 1 is 10 times as fast as the default
SHARD_CLIPS = 256
BLOCK = 1 << 20


class _Frames(NamedTuple):
    """A clip ready to be written; frames None where the cache holds it already."""

    key: str
    name: list  # path, size, mtime_ns, sha256
    payload: bytes | None


class FrameCache:
    """A finished cache, opened for reading; pickles. `get` misses what was not cached.

    Raises ValueError when the folder is no frame cache or was written under another contract, whose
    differing fields are named.
    """

    def __init__(self, folder: str | os.PathLike, contract: MediaContract):
        self.folder = os.path.abspath(folder)
        self.contract = _read_contract(self.folder)
        if self.contract is None:
            raise ValueError(f"{folder}: no frame cache; write one with `videorft cache`")
        self.check_contract(contract)
        self._position, self._digests, shards = _read_index(self.folder)
        self._sizes = {size for _, size, _ in self._digests}
        try:
            self._shards = (
                array_record_data_source.ArrayRecordDataSource(shards) if shards else None
            )
        except RuntimeError as error:
            raise self._damaged(f"a shard is not readable ({error})") from None

    def __len__(self) -> int:
        return len(self._position)

    def check_contract(self, contract: MediaContract) -> None:
        """Raises ValueError naming the fields that differ."""
        if contract.digest != self.contract.digest:
            raise ValueError(
                f"{self.folder}: cached under another media contract"
                f" ({self.contract.diff(contract)}); use that contract or write another cache"
            )

    def get(self, media: str | bytes, record: Record, root: str) -> Clip | None:
        """The record's clip, or None. Raises ValueError when the entry is damaged."""
        digest = self._digest(media, root)
        position = self._position.get(_key(digest, record)) if digest else None
        if position is None:
            return None
        try:
            return unpack_clip(self._shards[position])
        except (RuntimeError, ValueError) as error:  # array_record's own checksums
            raise self._damaged(f"entry {position} is damaged ({error})") from None

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"{self.folder}: {what}; delete the folder and run `videorft cache` again"
        )

    def _digest(self, media: str | bytes, root: str) -> str | None:
        if isinstance(media, bytes):
            return hashlib.sha256(media).hexdigest()
        try:
            status = os.stat(os.path.join(root, media))
        except (OSError, ValueError):
            return None
        name = (media, status.st_size, status.st_mtime_ns)
        if name not in self._digests and status.st_size in self._sizes:
            try:
                self._digests[name] = _hash_media(media, root, Limits())
            except MediaError:
                return None
        return self._digests.get(name)


def pack_clip(clip: Clip) -> bytes:
    """A clip as one line of JSON and the raw bytes of its frames."""
    frames = clip.frames
    header = {
        "format": FORMAT,
        "shape": list(frames.shape),
        "timestamps": clip.timestamps.tolist(),
        "fps": float(clip.fps),
        "indices": clip.indices.tolist(),
        "source_size": [int(side) for side in clip.source_size],
    }
    return json.dumps(header).encode() + b"\n" + frames.tobytes()


def unpack_clip(payload: bytes) -> Clip:
    """Inverse of `pack_clip`; the frames are a read-only view. Raises ValueError."""
    header, _, pixels = payload.partition(b"\n")
    try:
        fields = json.loads(header)
        frames = np.frombuffer(pixels, np.uint8).reshape(fields["shape"])
        times = np.array(fields["timestamps"], np.float64)
        indices = np.array(fields["indices"], np.int64)
        planes = frames.transpose(0, 3, 1, 2)
        clip = Clip(planes, times, fields["fps"], indices, tuple(fields["source_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no cached clip: {error}") from None
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, this program reads {FORMAT}")
    return clip


def _key(digest: str, record: Record) -> str:
    return f"{digest}|{record.data_type}|{record.start}|{record.end}"


def _hash_media(media: str | bytes, root: str, limits: Limits) -> str:
    if isinstance(media, bytes):
        return hashlib.sha256(media).hexdigest()
    digest = hashlib.sha256()
    with open_media(media, root, limits) as descriptor:
        while block := os.read(descriptor, BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_contract(folder: str) -> MediaContract | None:
    try:
        with open(os.path.join(folder, "cache.json"), encoding="utf-8") as file:
            claim = json.load(file)
        if claim["format"] != FORMAT:
            raise ValueError(f"format {claim['format']}, this program reads {FORMAT}")
        return MediaContract.from_dict(claim["contract"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: cache.json: {error}; delete the folder") from None


def _read_index(folder: str) -> tuple[dict[str, int], dict[tuple, str], list[str]]:
    """({key: position}, {(path, size, mtime_ns): sha256}, shards) of the finished shards."""
    positions, digests, shards, total = {}, {}, [], 0
    for name in sorted(os.listdir(folder)):
        if not (name.startswith("clips-") and name.endswith(".json")):
            continue
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            index = json.load(file)
        for position, key in enumerate(index["keys"]):
            positions[key] = total + position
        digests |= {tuple(entry[:3]): entry[3] for entry in index["names"]}
        if index["keys"]:
            total += len(index["keys"])
            shards.append(os.path.join(folder, name.replace(".json", ".array_record")))
    return positions, digests, shards


def _write_text(path: str, text: str) -> None:
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


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


def write_cache(
    source: Source,
    contract: MediaContract,
    folder: str | os.PathLike,
    *,
    threads: int,
    limits: Limits = Limits(),  # noqa: B008, frozen
    isolate: bool = False,
) -> tuple[int, list[Failure]]:
    """Caches the clip of every record; what is there already is kept, so a stopped run goes on.
    Returns the number of clips added, and the records whose clip cannot be read.
    Raises ValueError when the folder holds a cache of another contract."""
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    if _read_contract(folder) is None:
        claim = {"format": FORMAT, "contract": contract.to_dict()}
        _write_text(os.path.join(folder, "cache.json"), json.dumps(claim, indent=1))
    cache = FrameCache(folder, contract)
    keys, names = set(cache._position), dict(cache._digests)
    numbers = [int(n[6:11]) for n in os.listdir(folder) if n.startswith("clips-")]
    number = max(numbers, default=-1) + 1

    def work(index: int) -> _Frames | Failure | None:
        try:
            record = source[index]
        except RecordError as error:
            return Failure(index, source.where(index), "schema", str(error))
        try:
            return call_within(patience(limits, isolate), read, index, record)
        except TimeoutError as error:
            return Failure(index, record.path, "timeout", str(error))
        except MediaError as error:
            return Failure(index, record.path, error.reason, error.detail)

    def read(index: int, record: Record) -> _Frames | None:
        media, root = media_of(source, index, record), source.data_root
        name = (record.path, -1, -1)
        if not isinstance(media, bytes):
            try:
                status = os.stat(os.path.join(root, media))
                name = (media, status.st_size, status.st_mtime_ns)
            except (OSError, ValueError):
                pass  # open_media says it better
        if name in names and _key(names[name], record) in keys:
            return None
        digest = _hash_media(media, root, limits)
        key, entry = _key(digest, record), [*name, digest]
        if key in keys:
            return _Frames(key, entry, None)
        span = {"kind": record.data_type, "start": record.start, "end": record.end}
        clip = load_media(media, root, contract, **span, limits=limits, isolate=isolate)
        if isinstance(clip, MediaError):
            raise clip
        return _Frames(key, entry, pack_clip(clip))

    added, failures, progress = 0, [], Progress("caching clips", len(source))
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(source), SHARD_CLIPS):
            chunk = range(start, min(start + SHARD_CLIPS, len(source)))
            shard = _Shard(folder, number)
            for index, item in zip(chunk, pool.map(work, chunk), strict=True):
                if isinstance(item, Failure):
                    failures.append(item)
                elif item is not None:
                    if item.key in keys:  # the same clip twice in this chunk
                        item = item._replace(payload=None)
                    keys.add(item.key)
                    names[tuple(item.name[:3])] = item.name[3]
                    shard.add(item)
                progress(index + 1)
            added += shard.close()
            number += 1
    return added, failures
