"""Which batch shapes to compile for decoding, and which completions sit where; NumPy only.

A batch bucket is a grid of rows x slots: a row holds one prompt's keys and values, its slots
completions of that prompt. As completions finish, the live ones move into a smaller bucket; a
prompt may then take several rows of fewer slots. Every part of the mesh (shard) moves its own
completions, so nothing crosses devices, and all parts change bucket together.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_ORDERS, _LEVELS = 8, 48  # random finishing orders, and live counts looked at in each
_SHARES = tuple(2.0**-n * part for n in range(20) for part in (1, 7 / 8, 3 / 4, 5 / 8))


class Bucket(NamedTuple):
    """Shape of one shard's batch."""

    rows: int
    slots: int

    @property
    def size(self) -> int:
        return self.rows * self.slots


def fits(live: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Whether live completions, int [..., D, b] of each prompt of each shard, fit: bool [...]."""
    return (-(-live // bucket.slots)).sum(-1).max(-1) <= bucket.rows


def choose_buckets(
    prompts: int, rollouts: int, shards: int, count: int, cost: Callable[[Bucket], float]
) -> tuple[Bucket, ...]:
    """At most `count` buckets, the full one first, largest cost first.

    Greedily those that most reduce the summed `cost` (of one step) of a rollout whose completions
    finish in random order, one after another; the same on every process.
    """
    full = Bucket(prompts, rollouts)
    candidates = {
        Bucket(int(np.ceil(full.size * share / slots)), slots)
        for share in _SHARES
        for slots in {-(-rollouts // 2**n) for n in range(20)}
    }
    limit = cost(full)
    candidates = sorted(c for c in candidates if c.size < full.size and cost(c) < limit)
    live = _random_counts(prompts, rollouts, shards)
    best, chosen = np.full(len(live), limit), [full]
    prices = [np.where(fits(live, c), cost(c), np.inf) for c in candidates]
    while len(chosen) < count and candidates:
        totals = [np.minimum(best, price).sum() for price in prices]
        pick = int(np.argmin(totals))
        if totals[pick] > 0.995 * best.sum():  # not worth a compile
            break
        best = np.minimum(best, prices[pick])
        chosen.append(candidates[pick])
    return tuple(sorted(chosen, key=lambda bucket: (-cost(bucket), bucket)))


def _random_counts(prompts, rollouts, shards):
    """int [N, D, b]: live completions of each prompt at evenly spaced moments."""
    rng, total = np.random.default_rng(0), shards * prompts * rollouts
    levels = np.unique(np.linspace(1, total, _LEVELS).astype(int))
    counts = []
    for _ in range(_ORDERS):
        owner = rng.permutation(total) // rollouts
        counts += [np.bincount(owner[:n], minlength=shards * prompts) for n in levels]
    return np.reshape(counts, (-1, shards, prompts))


def place(source: np.ndarray, live: np.ndarray, rollouts: int, bucket: Bucket):
    """Moves the live completions into `bucket`.

    source: int [D, G, r], completion (prompt * rollouts + number) in each slot, -1 = none; live:
    bool likewise. Returns the new source, which row each row's prompt comes from, int32 [D, rows],
    and which slot (row * r + slot) each slot comes from, int32 [D, rows * slots], within the shard;
    empty places repeat the first.
    """
    shards, _, slots = source.shape
    new = np.full((shards, bucket.rows, bucket.slots), -1, source.dtype)
    from_row = np.zeros((shards, bucket.rows), np.int32)
    from_slot = np.zeros((shards, bucket.rows, bucket.slots), np.int32)
    for shard in range(shards):
        held = np.flatnonzero(live[shard])
        held = held[np.argsort(source[shard].reshape(-1)[held])]
        ids = source[shard].reshape(-1)[held]
        row = 0
        for prompt in np.unique(ids // rollouts):
            own = held[ids // rollouts == prompt]
            for start in range(0, len(own), bucket.slots):
                part = own[start : start + bucket.slots]
                from_row[shard, row] = part[0] // slots
                from_slot[shard, row, : len(part)] = part
                new[shard, row, : len(part)] = source[shard].reshape(-1)[part]
                row += 1
    return new, from_row, from_slot.reshape(shards, -1)
