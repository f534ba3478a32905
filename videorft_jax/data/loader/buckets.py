"""Which shapes to compile, and which samples share a row: integer arithmetic on sizes, no pixels.

Everything is decided from the measured sizes of all samples
before anything is decoded. The buckets (the shapes that the accelerator compiles) are chosen once
and hold for every epoch; which samples meet in a row is a pure function of (sizes, seed, epoch).
A batch index alone therefore says what is in the batch, on any number of processes and workers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from videorft_jax.models.geometry import WINDOW_TOKENS

# A visual token costs four patches of the 0.63 B tower beside one token of a 3 B to 7 B decoder.
VISION_COST = 0.5
LOOKAHEAD = 2048  # Samples packed together: more pack tighter, fewer mix less of the epoch.
NUM_TRIED = 512  # samples on which a shape is tried before it is chosen
MAX_CLASSES = 200  # distinct shapes from which merging starts
SHORTEST = 0.75  # Packed rows have at least this share of `row_tokens`.


class Sizes(NamedTuple):
    """What each sample needs of a row, int64 [N] each: tokens (text and visual), frame pairs,
    windows per frame pair."""

    tokens: np.ndarray
    pairs: np.ndarray
    windows: np.ndarray

    def take(self, index: np.ndarray) -> "Sizes":
        return Sizes(*(np.asarray(size)[index] for size in self))


class Bucket(NamedTuple):
    """One compiled shape: `rows` rows (of all processes together) of `length` tokens, `pairs`
    frame pairs and `windows` windows: B, T, F, W."""

    length: int
    pairs: int
    windows: int
    rows: int

    @property
    def cost(self) -> float:
        """What a row costs, in decoder tokens."""
        return float(_cost(self.length, self.pairs, self.windows))

    def price(self, sizes: Sizes, packed: bool) -> np.ndarray:
        """float64 [N], what each sample costs here: a row, or when packed the share of a row that
        it takes up; infinite where it does not fit."""
        share = np.maximum(sizes.tokens / self.length, sizes.pairs / max(self.pairs, 1))
        fits = (share <= 1) & (sizes.windows <= self.windows)
        return np.where(fits, self.cost * (share if packed else 1), np.inf)


def _cost(length, pairs, windows):
    return length + VISION_COST * WINDOW_TOKENS * pairs * windows


def mix(seed: int, epoch: int, purpose: int, index: np.ndarray) -> np.ndarray:
    """uint64 [n] random keys of `index`, each a function of (seed, epoch, purpose, index) alone.
    Splitmix64 (Steele, Lea and Flood 2014) applied once per part."""
    state = np.zeros(np.shape(index), np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, purpose, index):
            state = state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(seed: int, epoch: int, purpose: int, index: np.ndarray) -> np.ndarray:
    """`index` in random order; the same whatever NumPy's version or the order it came in."""
    index = np.sort(index)
    return index[np.argsort(mix(seed, epoch, purpose, index), kind="stable")]


def choose_buckets(
    sizes: Sizes, rows: int, row_tokens: int, max_buckets: int, multiple: int, packed: bool
) -> tuple[Bucket, ...]:
    """At most `max_buckets` shapes that hold every sample at the least cost of an epoch, the
    padding of each bucket's last batch included.

    rows: of a batch, all processes together. packed: several samples may share a row, which then
    has between 0.75 * row_tokens and row_tokens tokens; otherwise rows are as short as the samples
    allow. multiple: lengths are multiples of this (128 suits an accelerator's lanes).
    Raises ValueError when a number is not positive, or a sample is longer than row_tokens.
    """
    for name, value in (("rows", rows), ("max_buckets", max_buckets), ("multiple", multiple)):
        if value < 1:
            raise ValueError(f"buckets: {name} is {value}; give at least 1")
    if row_tokens % multiple or row_tokens < multiple:
        raise ValueError(f"buckets: row_tokens {row_tokens} is no multiple of {multiple}")
    if not len(sizes.tokens):
        raise ValueError("buckets: no samples; every record is bad, see the quarantine file")
    if sizes.tokens.max() > row_tokens:
        raise ValueError(
            f"buckets: a sample has {sizes.tokens.max()} tokens; raise row_tokens ({row_tokens})"
        )
    classes = _window_classes(sizes) if packed else _shape_classes(sizes, multiple)
    best, best_cost = (), np.inf
    for groups in _merge(*classes, max_buckets):
        if packed:
            found = [_packed_shape(sizes.take(g), rows, row_tokens, multiple) for g in groups]
        else:
            found = [_tight_shape(sizes.take(g), rows, multiple) for g in groups]
        cost = sum(cost for _, cost in found)
        if cost < best_cost:
            best, best_cost = tuple(sorted({bucket for bucket, _ in found})), cost
    return tuple(sorted(best, key=lambda bucket: (bucket.cost, bucket)))


def _shape_classes(sizes: Sizes, multiple: int) -> tuple[np.ndarray, np.ndarray, Callable]:
    while True:
        rounded = -(-sizes.tokens // multiple) * multiple
        keys = np.stack([rounded, sizes.pairs, sizes.windows], axis=1)
        shapes, member = np.unique(keys, axis=0, return_inverse=True)
        if len(shapes) <= MAX_CLASSES or multiple >= sizes.tokens.max():
            return shapes, member.reshape(-1), lambda shape, _: _cost(*np.moveaxis(shape, -1, 0))
        multiple *= 2


def _window_classes(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, Callable]:
    shapes, member = np.unique(sizes.windows, return_inverse=True)
    pairs = np.bincount(member, sizes.pairs) / np.bincount(member)  # mean of each class
    return (
        shapes[:, None],
        member.reshape(-1),
        lambda shape, own: _cost(0, pairs[own], shape[..., 0]),
    )


def _merge(shapes: np.ndarray, member: np.ndarray, cost: Callable, max_buckets: int):
    """Merges classes of samples two by two, the cheapest pair first, and yields each grouping that
    has at most `max_buckets` groups, as index arrays into the samples.

    cost: (shape, class) -> what one sample of the class costs in a row of that shape.

    For example, let 10 samples have 100 tokens, 1 have 120 and 5 have 400, and let a sample cost
    the tokens of its shape. Merging the first two classes pads 10 samples by 20 tokens and costs
    200; merging the last two pads 1 sample by 280. So the first two merge, to 11 samples of 120.
    """
    count = np.bincount(member, minlength=len(shapes)).astype(float)
    own = np.arange(len(shapes))
    while True:
        if len(shapes) <= max_buckets:
            yield [np.flatnonzero(member == group) for group in range(len(shapes))]
        if len(shapes) == 1:
            return
        both = np.maximum(shapes[:, None], shapes[None])
        rise = count * (
            cost(both, own[None]) - cost(shapes, own)[None]
        )  # What padding to the common shape costs.
        rise = rise + rise.T
        rise[np.tril_indices(len(shapes))] = np.inf
        first, second = np.unravel_index(np.argmin(rise), rise.shape)
        if count[second] > count[first]:
            own[first] = own[second]
        shapes[first], count[first] = both[first, second], count[first] + count[second]
        member = np.where(member == second, first, member)
        member = member - (member > second)
        shapes, count, own = (np.delete(a, second, axis=0) for a in (shapes, count, own))


def _tight_shape(sizes: Sizes, rows: int, multiple: int) -> tuple[Bucket, float]:
    length = -(-int(sizes.tokens.max()) // multiple) * multiple
    bucket = Bucket(length, int(sizes.pairs.max()), int(sizes.windows.max()), rows)
    return bucket, -(-len(sizes.tokens) // rows) * rows * bucket.cost


def _packed_shape(sizes: Sizes, rows: int, row_tokens: int, multiple: int) -> tuple[Bucket, float]:
    """The cheapest of a few lengths and frame-pair counts, by packing samples on trial."""
    total, windows = len(sizes.tokens), int(sizes.windows.max())
    tried = sizes.take(np.unique(np.linspace(0, total - 1, min(total, NUM_TRIED)).astype(int)))
    least = max(int(SHORTEST * row_tokens), int(sizes.tokens.max()))
    least = -(-least // multiple) * multiple
    step = max(1, (row_tokens - least) // multiple // 8) * multiple
    best, best_cost = None, np.inf
    for length in range(row_tokens, least - 1, -step):
        packed = pack_rows(tried, length, int(tried.pairs.sum()))
        needs = np.array([tried.pairs[row].sum() for row in packed])
        for pairs in {int(np.quantile(needs, q, method="higher")) for q in (0.5, 0.8, 1.0)}:
            pairs = max(pairs, int(sizes.pairs.max()))
            count = len(pack_rows(tried, length, pairs)) * total / len(tried.tokens)
            bucket = Bucket(length, pairs, windows, rows)
            cost = np.ceil(np.ceil(count) / rows) * rows * bucket.cost
            if cost < best_cost:
                best, best_cost = bucket, cost
    return best, best_cost


def pack_rows(sizes: Sizes, length: int, pairs: int) -> list[np.ndarray]:
    """Best-fit decreasing: rows of at most `length` tokens and `pairs` frame pairs, as arrays of
    indices into `sizes`, in each row rising."""
    share = np.maximum(sizes.tokens / length, sizes.pairs / pairs)
    order = np.argsort(-share, kind="stable")
    free_tokens, free_pairs = np.full(len(order), length), np.full(len(order), pairs)
    rows: list[list[int]] = []
    for i in order:
        tokens, frames = sizes.tokens[i], sizes.pairs[i]
        left = free_tokens[: len(rows)] - tokens
        fits = (left >= 0) & (free_pairs[: len(rows)] >= frames)
        if fits.any():
            row = int(np.argmin(np.where(fits, left, np.iinfo(np.int64).max)))
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(int(i))
        free_tokens[row] -= tokens
        free_pairs[row] -= frames
    return [np.sort(np.array(row, np.int64)) for row in rows]
