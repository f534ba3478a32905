"""95 % intervals of mean scores.

Questions about one clip are not independent, so it is clips that are drawn again, all questions of
one together (the cluster bootstrap; clustered errors are what Miller 2024, "Adding error bars to
evals", asks for). Where every clip has one question and every score is 0 or 1 it is Wilson's
interval, which also holds where nearly all answers are right.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054  # the normal's 97.5th percentile
NUM_DRAWS = 10_000
_BLOCK = 1 << 22  # numbers drawn at once


class Interval(NamedTuple):
    """NaN where there is nothing to take the mean of."""

    mean: float
    low: float
    high: float


def wilson(num_right: int, total: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927)."""
    if not total:
        return Interval(math.nan, math.nan, math.nan)
    share, square = num_right / total, Z95**2 / total
    centre = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    # Rounding may leave an end just beyond the mean that it should be at.
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def bootstrap_mean(
    values: Sequence[float],
    clips: Sequence[str],
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """The mean of `values` and its percentile bootstrap interval; values of equal `clips` are drawn
    together. Values that are all the same give an interval without width."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return Interval(math.nan, math.nan, math.nan)
    number = np.unique(np.asarray(clips), return_inverse=True)[1]
    sums, sizes = np.bincount(number, values), np.bincount(number)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, num_draws, step := max(1, _BLOCK // len(sums))):
        shape = (min(step, num_draws - start), len(sums))
        picked = rng.integers(len(sums), size=shape)
        means.append(sums[picked].sum(1) / sizes[picked].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Interval(float(values.mean()), float(low), float(high))


def mean_interval(
    values: Sequence[float], clips: Sequence[str], *, seed: int = 0
) -> tuple[Interval, str]:
    """The interval of scores in [0, 1] and the name of how it was made; see the module."""
    if len(set(clips)) == len(clips) and set(values) <= {0.0, 1.0}:
        return wilson(round(sum(values)), len(values)), "Wilson"
    return bootstrap_mean(values, clips, seed=seed), "bootstrap over clips"
