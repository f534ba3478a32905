"""Memory for the pixels of batches: filled by many threads at once, and used again.

Fresh memory for every batch would cost more than filling it, because the system clears each page
first, so that blocks of memory are kept and lent again. A block is lent as an array whose base is a
lease. Every view of that array, and whatever looks at its memory without a copy (`jax.device_put`
on a CPU does), keeps the lease alive, and when the last of them is gone the block is free. No code
has to give memory back.
"""

import collections
import math
import threading

import numpy as np

from videorft_jax.data.batch.layout import Sample
from videorft_jax.data.loader.buckets import Bucket
from videorft_jax.data.loader.schedule import Schedule
from videorft_jax.models.geometry import Geometry

KEPT = 3  # So many unused blocks are kept; about as many are filled or read at a time.


def patches_shape(bucket: Bucket, geometry: Geometry) -> tuple[int, ...]:
    """[B, F, W, 64, X] of a bucket's batches."""
    return bucket.rows, bucket.pairs, bucket.windows, geometry.slots, geometry.patch_dim


class _Lease:
    """The owner of an array's memory in NumPy's eyes."""

    def __init__(self, block: np.ndarray, shape: tuple[int, ...], free: collections.deque):
        self.__array_interface__ = block.__array_interface__ | {"shape": shape}
        self._block, self._free = block, free

    def __del__(self):
        self._free.append(self._block)  # Any thread may do so; a full deque drops its oldest.


class Pool:
    """Arrays of at most `size` bytes, uint8 of any content, in blocks that are used again."""

    def __init__(self, size: int):
        self._size = size
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=KEPT)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory that no other array looks at. From any thread."""
        if math.prod(shape) > self._size:
            raise ValueError(f"pool: {shape} is more than {self._size} bytes; make it larger")
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(self._size, np.uint8)
        return np.asarray(_Lease(block, shape, self._free))


class Trays:
    """Pixels of the batches under assembly, each in memory of its own until it is taken.

    schedule: of this process. pairs int64 [S]: frame pairs of each slot's sample.
    """

    def __init__(self, schedule: Schedule, pairs: np.ndarray, pool: Pool, geometry: Geometry):
        self._schedule, self._pool, self._geometry = schedule, pool, geometry
        self._batch = np.repeat(np.arange(len(schedule)), np.diff(schedule.starts))
        end = np.cumsum(pairs)
        new = np.flatnonzero(np.diff(self._batch, prepend=-1) | np.diff(schedule.row, prepend=-1))
        before = np.repeat((end - pairs)[new], np.diff(new, append=len(pairs)))
        self._first = end - pairs - before  # frame pair in the row
        self._open: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def put(self, slot: int, sample: Sample) -> Sample:
        """Cuts the sample's pixels into the place that the schedule gives them."""
        patches = self._get(int(self._batch[slot]))
        row, pair, media = int(self._schedule.row[slot]), int(self._first[slot]), []
        for item in sample.media:
            place = patches[row, pair : pair + item.grid[0]]
            item.cut(place)
            media.append(item._replace(planes=None, slots=place))
            pair += item.grid[0]
        return sample._replace(media=tuple(media))

    def take(self, batch: int) -> np.ndarray:
        """uint8 [B, F, W, 64, X] of batch number `batch`, to be put in no more."""
        self._get(batch)
        with self._lock:
            return self._open.pop(batch)

    def _get(self, batch: int) -> np.ndarray:
        with self._lock:
            if batch not in self._open:
                bucket = self._schedule.buckets[self._schedule.bucket[batch]]
                self._open[batch] = self._pool.take(patches_shape(bucket, self._geometry))
            return self._open[batch]
