"""Simulates what it would save to compact completions across shards.

python benchmarks/shards.py [--rounds 3] [--json]

Every shard moves its own live completions into a smaller batch, and all change together once the
fullest one fits, so that shards whose completions ended early decode empty slots. The peer deals
all live completions out evenly before every token, and its moves cost nothing: no real program can
save more. Time is that of 7B's decode steps by the engine's own price of a batch, which is mostly
the weights that every step reads. Lengths are made: of one spread, of a heavy tail, and of groups
that differ as a whole, which is the worst for shards.
"""

import argparse
import json

import host
import numpy as np

from videorft_jax.metrics import flops
from videorft_jax.models.family import published_config
from videorft_jax.rollout.compaction import choose_grids, fits

LENGTH, NEW, ROLLOUTS, BUCKETS, BALANCE = 1280, 768, 8, 6, 250
# shards and prompts of each: v6e-16 on the training's mesh and on the planner's, v5p-8, v5p-64
MACHINES = {"16 x 4": (16, 4), "4 x 16": (4, 16), "4 x 8": (4, 8), "32 x 4": (32, 4)}


def lengths(kind, rng, count):
    """Tokens of completions [count, R], cut at the most there may be."""
    size = (count, ROLLOUTS)
    if kind == "one spread":
        drawn = rng.normal(350, 120, size)
    elif kind == "heavy tail":
        drawn = np.exp(rng.normal(np.log(250), 0.6, size))
    else:
        drawn = np.exp(rng.normal(np.log(250), 0.5, (count, 1)) + rng.normal(0, 0.3, size))
    return np.clip(drawn, 20, NEW).astype(int)


def dealt(live, shards):
    """The same live completions [shards, prompts], dealt out evenly, whole groups first:
    [shards, all prompts]."""
    flat = np.repeat(np.arange(live.size), live.ravel())
    most = max(1, -(-len(flat) // shards))
    counts = np.zeros((shards, live.size), int)
    np.add.at(counts, (np.arange(len(flat)) // most, flat), 1)
    return counts


def simulate(kind, shards, prompts, rounds, config):
    """(seconds now, seconds dealt out) in the unit of the price, over all rounds."""

    def price(grid):
        cost = flops.decode_cost(config, np.full(grid.rows, LENGTH), np.full(grid, NEW))
        return cost.bytes + cost.forward / BALANCE

    grids = choose_grids(prompts, ROLLOUTS, shards, BUCKETS, price)
    prices = [price(grid) for grid in grids]
    rng, totals = np.random.default_rng(0), np.zeros(2)
    for _ in range(rounds):
        drawn = lengths(kind, rng, shards * prompts)
        for place in range(1, drawn.max()):
            live = (drawn > place).sum(1).reshape(shards, prompts)
            for number, counts in enumerate((live, dealt(live, shards))):
                held = [p for g, p in zip(grids, prices, strict=True) if fits(counts, g)]
                totals[number] += min(held) if held else prices[0]
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    config, found = published_config("7b"), {}
    for kind in ("one spread", "heavy tail", "groups differ"):
        for name, (shards, prompts) in MACHINES.items():
            now, even = simulate(kind, shards, prompts, own.rounds, config)
            found[f"{kind}, {name}"] = {"ours": now, "peer": even, "ratio": even / now}
            print(f"{kind}, {name} prompts: decoding could take {1 - even / now:.1%} less")
    if own.json:
        parts = {part: {k: v[part] for k, v in found.items()} for part in ("ours", "peer", "ratio")}
        shape = {"length": LENGTH, "new": NEW, "rollouts": ROLLOUTS, "rounds": own.rounds}
        print(json.dumps({"machine": host.describe(), "shape": shape, **parts}))


if __name__ == "__main__":
    main()
