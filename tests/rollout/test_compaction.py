"""Batch grids: which are compiled, and where live completions move."""

import numpy as np
import pytest

from videorft_jax.rollout.compaction import Grid, choose_grids, fits, place


def finish(costs, lengths):
    """Share of computed slots that nobody needed, completions of these lengths [D, b, R]."""
    grid, executed, useful = next(iter(costs)), 0, 0
    for step in range(1, lengths.max()):
        live = (lengths > step).sum(-1)
        best = min((b for b in costs if fits(live, b)), key=costs.get)
        grid = best if costs[best] < costs[grid] else grid
        executed += grid.size * len(lengths)
        useful += live.sum()
    return 1 - useful / executed


@pytest.mark.parametrize(("prompts", "shards", "most"), [(2, 1, 0.15), (8, 1, 0.15), (8, 4, 0.22)])
def test_grids_keep_the_waste_low(prompts, shards, most):
    """Lengths uniform in 8..64, where one grid wastes over 30 %; shards move together."""
    chosen = choose_grids(prompts, 8, shards, 8, lambda grid: grid.size + 0.5 * grid.rows)
    assert chosen[0] == Grid(prompts, 8)
    assert len(chosen) <= 8
    costs = {grid: grid.size + 0.5 * grid.rows for grid in chosen}
    rng = np.random.default_rng(0)
    waste = [finish(costs, rng.integers(8, 65, (shards, prompts, 8))) for _ in range(10)]
    assert np.mean(waste) < most
    static = finish({chosen[0]: 1.0}, rng.integers(8, 65, (shards, prompts, 8)))
    assert static > 0.3


def test_place_keeps_every_live_completion_with_its_prompt():
    rng = np.random.default_rng(0)
    source = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # two shards, three prompts, four completions
    live = rng.random(source.shape) < 0.5
    grid = Grid(5, 2)
    assert fits(live.sum(-1), grid)
    new, from_row, from_slot = place(source, live, 4, grid)
    np.testing.assert_array_equal(np.sort(new[new >= 0]), np.sort(source[live]))
    for shard in range(2):
        flat, rows = source[shard].reshape(-1), new[shard]
        held = rows >= 0
        np.testing.assert_array_equal(flat[from_slot[shard].reshape(5, 2)[held]], rows[held])
        for row, origin in zip(rows, from_row[shard], strict=True):
            assert (source[shard, origin, 0] // 4 == row[row >= 0] // 4).all()
