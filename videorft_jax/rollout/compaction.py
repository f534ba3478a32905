"""Chooses the batch shapes that decoding is compiled for, and where each completion sits in them.

A batch grid has rows and slots: a row holds the keys and values of one prompt, its slots hold
completions of that prompt. As completions finish, the live ones move into a smaller grid, in
which a prompt may take several rows of fewer slots. Every part of the mesh (a shard) moves its own
completions, so nothing crosses devices, and all shards change grid together; `benchmarks/shards.py`
says how little it would save to deal them out across shards. NumPy only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_ORDERS, _LEVELS = 8, 48  # simulated finishing orders, and the moments looked at in each
# The sizes that are considered for a grid, as shares of the full one.
_SHARES = tuple(2.0**-n * part for n in range(20) for part in (1, 7 / 8, 3 / 4, 5 / 8))


class Grid(NamedTuple):
    """The shape of one shard's decoding batch."""

    rows: int
    slots: int

    @property
    def size(self) -> int:
        return self.rows * self.slots


def fits(live: np.ndarray, grid: Grid) -> np.ndarray:
    """Tells whether the live completions fit into `grid`, bool [...].

    live: int [..., shards, prompts], how many completions of each prompt of each shard live.
    """
    return (-(-live // grid.slots)).sum(-1).max(-1) <= grid.rows


def choose_grids(
    prompts: int, rollouts: int, shards: int, count: int, cost: Callable[[Grid], float]
) -> tuple[Grid, ...]:
    """Chooses at most `count` grids, the costliest first, which is the full one.

    A grid is added while it shortens a simulated rollout whose completions finish one after
    another in random order; each time the one that shortens it most. `cost` is the time of one
    decode step in a grid. The choice is the same on every process.
    """
    full = Grid(prompts, rollouts)
    smaller = {
        Grid(int(np.ceil(full.size * share / slots)), slots)
        for share in _SHARES
        for slots in {-(-rollouts // 2**n) for n in range(20)}
    }
    limit = cost(full)
    candidates = sorted(c for c in smaller if c.size < full.size and cost(c) < limit)
    live = _random_counts(prompts, rollouts, shards)
    best, chosen = np.full(len(live), limit), [full]
    prices = [np.where(fits(live, c), cost(c), np.inf) for c in candidates]
    while len(chosen) < count and candidates:
        totals = [np.minimum(best, price).sum() for price in prices]
        pick = int(np.argmin(totals))
        if totals[pick] > 0.995 * best.sum():  # Half a percent is not worth a compilation.
            break
        best = np.minimum(best, prices[pick])
        chosen.append(candidates[pick])
    return tuple(sorted(chosen, key=lambda grid: (-cost(grid), grid)))


def _random_counts(prompts, rollouts, shards):
    """Simulates rollouts: int [moments, shards, prompts], how many completions of each prompt live
    at evenly spaced moments."""
    rng, total = np.random.default_rng(0), shards * prompts * rollouts
    levels = np.unique(np.linspace(1, total, _LEVELS).astype(int))
    counts = []
    for _ in range(_ORDERS):
        owner = rng.permutation(total) // rollouts
        counts += [np.bincount(owner[:n], minlength=shards * prompts) for n in levels]
    return np.reshape(counts, (-1, shards, prompts))


def place(source: np.ndarray, live: np.ndarray, rollouts: int, grid: Grid):
    """Gives each live completion a slot of `grid`.

    source: int [shards, G, r], the completion (prompt * rollouts + number) in each slot of the
    present grid, -1 for none. live: bool of the same shape, which of them go on.

    Returns the new source [shards, rows, slots]; from_row int32 [shards, rows], the present row
    whose prompt each new row takes; from_slot int32 [shards, rows * slots], the present slot
    (row * r + slot) whose completion each new slot takes. Both count within the shard; empty places
    repeat place 0.

    With 2 completions a prompt and one shard, source [[0, 1], [2, 3]] of which 1 and 2 live goes
    into 2 rows of 1 slot as source [[1], [2]], from_row [0, 1], from_slot [1, 2].
    """
    shards, _, slots = source.shape
    new = np.full((shards, grid.rows, grid.slots), -1, source.dtype)
    from_row = np.zeros((shards, grid.rows), np.int32)
    from_slot = np.zeros((shards, grid.rows, grid.slots), np.int32)
    for shard in range(shards):
        held = np.flatnonzero(live[shard])
        held = held[np.argsort(source[shard].reshape(-1)[held])]
        ids = source[shard].reshape(-1)[held]
        row = 0
        for prompt in np.unique(ids // rollouts):
            own = held[ids // rollouts == prompt]
            for start in range(0, len(own), grid.slots):
                part = own[start : start + grid.slots]
                from_row[shard, row] = part[0] // slots
                from_slot[shard, row, : len(part)] = part
                new[shard, row, : len(part)] = source[shard].reshape(-1)[part]
                row += 1
    return new, from_row, from_slot.reshape(shards, -1)
