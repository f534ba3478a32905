"""Reads clips and pictures, each once: a later request for the same one is given what was read.

A file is the same while its path, size and time of change are; bytes and arrays are the same where
their digests are. Requests that ask for one clip at one time wait for the first of them.
"""

import concurrent.futures
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.data.batch.patches import Media
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.image import read_image
from videorft_jax.serving.kept import Kept


class Clip(NamedTuple):
    """A clip or picture cut into patches, the seconds of its frame pairs, and its digest."""

    media: Media
    stamps: tuple[float, ...]
    digest: bytes


def digest(*arrays: np.ndarray) -> bytes:
    """16 bytes that other arrays do not have."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(f"{array.shape}{array.dtype}".encode())
        found.update(array)
    return found.digest()


class Clips:
    """What was read from files and requests, up to `limit` bytes of pixels.

    read: a part of a chat -> its pixels as pairs, and the times of them, as `Model.read_part`.
    contract: how pictures are read that become frames of a clip.
    """

    def __init__(self, read: Callable, contract: MediaContract, limit: int):
        self._read, self._contract = read, contract
        self._kept = Kept(limit)
        self._running: dict[Any, concurrent.futures.Future] = {}
        self._lock = threading.Lock()
        self.num_read = self.num_reused = 0

    def read(self, part: Mapping[str, Any]) -> Clip:
        """The clip or picture of a part. Raises ValueError for what cannot be read."""
        return self._once(("clip", *_name(part)), lambda: self._cut(part))

    def read_frame(self, part: Mapping[str, Any]) -> np.ndarray:
        """The pixels of a picture that is a frame of a clip, uint8 [h, w, 3]."""

        def decode():
            frame = read_image(part["image"], self._contract).frames[0]
            return frame, frame.nbytes, True

        return self._once(("frame", *_name(part)), decode)

    def _cut(self, part):
        media, stamps = self._read(part)
        slots = media.patches
        clip = Clip(media._replace(planes=None, slots=slots), stamps, digest(slots, media.hw))
        # Pixels that are given as an array were decoded before, as frames.
        is_decoded = not isinstance(part[part["type"]], np.ndarray)
        return clip, slots.nbytes, is_decoded

    def _once(self, name, make: Callable[[], tuple[Any, int, bool]]):
        """The result of this name, made where nobody has made it or is making it now."""
        with self._lock:
            found, running = self._kept.get(name), self._running.get(name)
            self.num_reused += found is not None or running is not None
            if found is None and running is None:
                self._running[name] = mine = concurrent.futures.Future()
        if found is not None:
            return found
        if running is not None:
            return running.result()
        try:
            result, size, is_decoded = make()
        except BaseException as error:
            mine.set_exception(error)
            with self._lock:
                del self._running[name]
            raise
        mine.set_result(result)
        with self._lock:
            self.num_read += is_decoded
            self._kept.put(name, result, size)
            del self._running[name]
        return result


def _name(part):
    """What tells a part from all others: its source, and the keys that change how it is read."""
    kind = part["type"]
    source = part[kind]
    if isinstance(source, np.ndarray):
        own: Any = digest(source)
    elif isinstance(source, bytes):
        own = hashlib.blake2b(source, digest_size=16).digest()
    else:
        try:
            found = os.stat(source)
        except OSError:
            raise ValueError("the file is there no more; ask again with another") from None
        own = (os.fspath(source), found.st_ino, found.st_size, found.st_mtime_ns)
    rest = sorted((name, repr(value)) for name, value in part.items() if name != kind)
    return kind, own, tuple(rest)
