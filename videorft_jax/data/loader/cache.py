"""Decoded frames on disk, for data that is read more often than once: `videorft cache`.

A clip is found by the sha256 of its file, whatever the file is called, and a cache belongs to one
media contract, which is stored beside it and compared field by field. A cache can therefore be
moved, or shared by several record files, and never gives frames of other settings. Entries are
ArrayRecord records (random access, checksummed, zstd): a JSON header and raw bytes.
"""

import hashlib
import json
import os

import numpy as np
from array_record.python import array_record_data_source

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import describe_file, list_files, open_media
from videorft_jax.data.records.chats import MediaItem

FORMAT = 1
BLOCK = 1 << 20


class FrameCache:
    """A finished cache, opened for reading; pickles. `get` misses what was not cached.

    positions: place of each clip by its key; digests: sha256 of each file by (path, size,
    mtime_ns). Raises ValueError when the folder is no frame cache or was written under another
    contract, whose differing fields are named.
    """

    def __init__(self, folder: str | os.PathLike, contract: MediaContract):
        self.folder = os.path.abspath(folder)
        self.contract = read_contract(self.folder)
        if self.contract is None:
            raise ValueError(f"{folder}: no frame cache; write one with `videorft cache`")
        self.check_contract(contract)
        self.positions, self.digests, shards = read_index(self.folder)
        self._sizes = {size for _, size, _ in self.digests}
        try:
            self._shards = (
                array_record_data_source.ArrayRecordDataSource(shards) if shards else None
            )
        except RuntimeError as error:
            raise self._damaged(f"a shard is not readable ({error})") from None

    def __len__(self) -> int:
        return len(self.positions)

    def check_contract(self, contract: MediaContract) -> None:
        """Raises ValueError naming the fields that differ."""
        if contract.digest != self.contract.digest:
            raise ValueError(
                f"{self.folder}: cached under another media contract"
                f" ({self.contract.diff(contract)}); use that contract or write another cache"
            )

    def get(self, media: str | bytes, item: MediaItem, root: str) -> Clip | None:
        """The item's clip, or None. Raises ValueError when the entry is damaged."""
        digest = self._find_digest(media, root)
        position = self.positions.get(cache_key(digest, item)) if digest else None
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

    def _find_digest(self, media: str | bytes, root: str) -> str | None:
        if isinstance(media, bytes):
            return hashlib.sha256(media).hexdigest()
        name = describe_file(media, root)
        if name is None:
            return None
        if name not in self.digests and name[1] in self._sizes:
            try:
                self.digests[name] = hash_media(media, root, Limits())
            except MediaError:
                return None
        return self.digests.get(name)


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
        "stamps": list(clip.stamps),
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
        sides, stamps = tuple(fields["source_size"]), tuple(fields.get("stamps", ()))
        clip = Clip(planes, times, fields["fps"], indices, sides, stamps)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no cached clip: {error}") from None
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, this program reads {FORMAT}")
    return clip


def cache_key(digest: str, item: MediaItem) -> str:
    """The name of an entry: the clip's digest and all that the record says of how it is read."""
    rate = "" if item.fps is None else f"|{item.fps}"
    size = "" if item.resized is None else "|{}x{}".format(*item.resized)
    return f"{digest}|{item.kind}|{item.start}|{item.end}{rate}{size}"


def hash_media(media: str | bytes, root: str, limits: Limits) -> str:
    """The sha256 of a file, of a file's bytes, or of all pictures of a folder or list in order.
    Raises MediaError where one cannot be opened."""
    if isinstance(media, bytes):
        return hashlib.sha256(media).hexdigest()
    digest = hashlib.sha256()
    for name in list_files(media, root, limits):
        with open_media(name, root, limits) as descriptor:
            while block := os.read(descriptor, BLOCK):
                digest.update(block)
    return digest.hexdigest()


def read_contract(folder: str) -> MediaContract | None:
    """The contract under which a folder's frames were cached; None where it holds no cache. Raises
    ValueError for a damaged one."""
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


def read_index(folder: str) -> tuple[dict[str, int], dict[tuple, str], list[str]]:
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
