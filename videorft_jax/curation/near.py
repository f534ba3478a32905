"""Texts that are nearly one another: a question in other words, a chain that is a template.

Shingles of three words are hashed by MinHash (Broder 1997); texts that share a band of hashes are
compared by the share of equal hashes, which estimates the share of shingles that they have in
common. The index lies in a temporary SQLite file, so that a million texts take no memory.
"""

import itertools
import re
import sqlite3

import numpy as np
import rensa

NUM_HASHES, BANDS = 64, 16
SEED = 1
WORDS = 3  # in a shingle
_WORD = re.compile(r"\w+")


class NearTexts:
    """Texts that can be asked for those of the same scope that share at least `least` of their
    shingles; a context manager."""

    def __init__(self, least: float):
        self._least = least
        self._index = sqlite3.connect("", isolation_level=None)  # A private file, gone when closed.
        self._index.execute("CREATE TABLE text (number INTEGER PRIMARY KEY, hashes BLOB)")
        self._index.execute("CREATE TABLE band (hash BLOB, number INTEGER)")
        self._index.execute("CREATE INDEX bands ON band (hash)")

    def __enter__(self) -> "NearTexts":
        return self

    def __exit__(self, *_) -> None:
        self._index.close()

    def find(self, text: str, scope: str = "") -> list[int]:
        """Numbers of the texts that are nearly this one, in order."""
        hashes = _hash(text, scope)
        bands = _bands(hashes)
        marks = ",".join("?" * len(bands))
        rows = self._index.execute(
            f"SELECT DISTINCT t.number, t.hashes FROM band b JOIN text t USING (number) "
            f"WHERE b.hash IN ({marks}) ORDER BY t.number",
            bands,
        )
        found = ((number, np.frombuffer(own, np.uint32)) for number, own in rows)
        return [number for number, own in found if (own == hashes).mean() >= self._least]

    def add(self, number: int, text: str, scope: str = "") -> None:
        """Keeps a text under a number of its own."""
        hashes = _hash(text, scope)
        self._index.execute("INSERT INTO text VALUES (?, ?)", (number, hashes.tobytes()))
        rows = zip(_bands(hashes), itertools.repeat(number))
        self._index.executemany("INSERT INTO band VALUES (?, ?)", rows)


def _hash(text: str, scope: str) -> np.ndarray:
    """MinHash of the shingles, uint32 [NUM_HASHES]; texts of other scopes share none."""
    words = _WORD.findall(text.casefold())
    last = max(len(words) - WORDS + 1, 1)
    found = rensa.RMinHash(num_perm=NUM_HASHES, seed=SEED)
    found.update([" ".join([scope, *words[i : i + WORDS]]) for i in range(last)])
    return np.array(found.digest(), np.uint32)


def _bands(hashes: np.ndarray) -> list[bytes]:
    parts = hashes.reshape(BANDS, -1)
    return [bytes([band]) + part.tobytes() for band, part in enumerate(parts)]
