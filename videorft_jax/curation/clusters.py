"""Clusters of clips: which media files of a pool, and of benchmarks, show the same thing.

Files are one by their sha256, and videos by their fingerprints. All pairs of a large pool would be
too many, so that only clips are compared which share parts of several hashes.
"""

import array
import collections
import hashlib
from collections.abc import Iterator

import numpy as np

from videorft_jax.curation.fingerprint import LEAST_FRAMES, View, find_match

BANDS = 4  # A band has 16 bits; hashes that differ in up to three bits share at least one.
PLAIN = (0, 0xFFFF)  # Flat parts of a picture give these, so that they tell nothing.


class FingerprintIndex:
    """Fingerprints that can be asked for those of the same clip.

    `load` gives the views of a number, as they lie in a store: the memory holds 4 bytes for each
    band of each hash.
    """

    def __init__(self, load):
        self._load = load
        self._buckets: dict[int, array.array] = collections.defaultdict(lambda: array.array("I"))

    def add(self, number: int, views: list[View]) -> None:
        """Keeps a clip under a number below 2**32."""
        for band in _bands(views, is_mirrored=False):
            self._buckets[band].append(number)

    def find(self, views: list[View]) -> Iterator[tuple[int, float]]:
        """(number, share of frames that match) of each clip that is the same, by number."""
        hits: collections.Counter = collections.Counter()
        for is_mirrored in (False, True):
            own: collections.Counter = collections.Counter()
            for band in _bands(views, is_mirrored):
                own.update(set(self._buckets.get(band, ())))
            hits |= own
        for number in sorted(number for number, count in hits.items() if count >= LEAST_FRAMES):
            if score := find_match(views, self._load(number)):
                yield number, score


def _bands(views: list[View], is_mirrored: bool) -> list[int]:
    """The parts of all hashes, one number for each frame and band that is not plain."""
    hashes = [view.mirrored if is_mirrored else view.hashes for view in views]
    found = []
    together = np.concatenate([np.zeros(0, np.uint64), *hashes])
    for band in range(BANDS):
        parts = together >> np.uint64(16 * band) & np.uint64(0xFFFF)
        found += [int(part) << 2 | band for part in parts if part not in PLAIN]
    return found


class Clusters:
    """Union-find over media digests; a cluster is called by the smallest digest in it. Files that
    stand alone take no memory."""

    def __init__(self):
        self._parent: dict[str, str] = {}

    def find(self, media: str) -> str:
        """The name of the cluster of a file."""
        while (parent := self._parent.get(media, media)) != media:
            media = parent
        return media

    def join(self, one: str, other: str) -> None:
        """Makes one cluster of those of two files."""
        first, second = sorted((self.find(one), self.find(other)))
        if first != second:
            self._parent[second] = first

    def side(self, media: str, val_fraction: float) -> str:
        """train or val: decided by the cluster, so that no clip is on both sides."""
        name = f"split {self.find(media)}"
        share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
        return "val" if share < val_fraction else "train"
