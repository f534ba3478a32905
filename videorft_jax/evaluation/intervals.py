"""95 % intervals of mean scores and of their differences.

Questions about one clip are not independent, so the variance of a mean is that over clips. From it
follows the effective number of questions: how many independent ones would vary as much. The
interval is Clopper's and Pearson's for that number, corrected for the few clips that the variance
itself was estimated from (Korn and Graubard 1998, "Confidence intervals for proportions with small
expected number of positive counts estimated from survey data"). It also holds where nearly all
answers are right, and is never without width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

METHOD = "Korn-Graubard over clips"
_LEVEL = 0.975


class Interval(NamedTuple):
    """A mean and the ends of its interval; NaN where there is nothing to take the mean of."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], clips: Sequence[str]) -> Interval:
    """The mean of scores in [0, 1] and its interval; `clips` names the clip of each score.

    A score may be a fraction. With a single clip nothing is known about how clips differ: the clip
    then counts as one question. Raises ValueError for scores outside [0, 1].
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return Interval(math.nan, math.nan, math.nan)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"interval: scores from {values.min()} to {values.max()}; give 0 to 1")
    mean, number = float(values.mean()), _effective_number(values, clips)
    right, wrong = mean * number, (1 - mean) * number
    low = stats.beta.ppf(1 - _LEVEL, right, wrong + 1) if right > 0 else 0.0
    high = stats.beta.ppf(_LEVEL, right + 1, wrong) if wrong > 0 else 1.0
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def difference_interval(differences: Sequence[float], clips: Sequence[str]) -> Interval:
    """The mean of paired differences in [-1, 1] and its interval.

    The difference is that of two shares, of what was gained and of what was lost. Each has the
    interval of `mean_interval`, and the two are joined by the method of variance estimates
    recovery (Zou and Donner 2008), with the correlation that two shares of one whole have. Clips
    that are better throughout correlate them more; the t interval over clips is taken where it is
    the wider one.
    """
    differences = np.asarray(differences, np.float64)
    gain = mean_interval(np.maximum(differences, 0), clips)
    loss = mean_interval(np.maximum(-differences, 0), clips)
    if math.isnan(gain.mean):
        return gain
    rest = (1 - gain.mean) * (1 - loss.mean)
    together = math.sqrt(gain.mean * loss.mean / rest) if rest > 0 else 0.0

    def width(first, second):
        return math.sqrt(first**2 + second**2 + 2 * min(together, 1.0) * first * second)

    mean = float(differences.mean())
    variance, num_clips = _variance(differences, clips)
    half = stats.t.ppf(_LEVEL, num_clips - 1) * math.sqrt(variance) if num_clips > 1 else 0.0
    low = mean - max(half, width(gain.mean - gain.low, loss.high - loss.mean))
    high = mean + max(half, width(gain.high - gain.mean, loss.mean - loss.low))
    return Interval(mean, max(-1.0, low), min(1.0, high))


def _effective_number(values: np.ndarray, clips: Sequence[str]) -> float:
    """How many independent questions would vary as much as these do over clips, corrected for the
    degrees of freedom. Where all clips have one mean the number is that of the clips, the least it
    can be."""
    variance, num_clips = _variance(values, clips)
    total, mean = len(values), values.mean()
    if num_clips == 1:
        return 1.0
    spread = mean * (1 - mean)
    single = max(values.var(ddof=1) / total, 1e-12)  # if questions were independent
    number = spread / max(variance, single) if variance > 1e-12 else float(num_clips)
    first, second = (stats.t.ppf(_LEVEL, df) for df in (total - 1, num_clips - 1))
    return max(number * (first / second) ** 2, min(1.0, float(num_clips)))


def _variance(values: np.ndarray, clips: Sequence[str]) -> tuple[float, int]:
    """(variance of the mean when clips are drawn anew, number of clips); 0 with a single clip."""
    place = np.unique(np.asarray(clips), return_inverse=True)[1]
    sums, sizes = np.bincount(place, values), np.bincount(place)
    residuals = sums - sizes * values.mean()
    num_clips = len(sums)
    scale = num_clips / max(num_clips - 1, 1) / len(values) ** 2
    return float(scale * (residuals**2).sum()), num_clips
