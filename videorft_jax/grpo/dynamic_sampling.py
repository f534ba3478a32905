"""Dynamic sampling (DAPO): which groups of several draws an update learns from.

A group whose completions all earn the same teaches nothing. With `grpo.max_draws` above 1 further
batches are drawn to replace such groups. Batches have different shapes; here they are padded to one
that holds all of them, so that a group's chance to be trained on does not depend on how common its
shape is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.geometry import WINDOW_TOKENS

TAKEN, LEFT, PASSED = range(3)  # where a drawn group goes: this update, the next one, none


def find_differing(
    scores: Mapping[str, np.ndarray], total: np.ndarray, taking: np.ndarray, name: str
) -> np.ndarray:
    """Tells in which groups the reward called `name` differs between completions, bool [B].

    scores: name -> float [B, R], NaN where a reward has no value. total: float [B, R], compared
    where no reward has that name. taking: bool [B, R], the completions that are learnt from; others
    do not count.
    """
    values = scores.get(name, total)
    taking = taking & np.isfinite(values)
    low = np.where(taking, values, np.inf).min(1)
    high = np.where(taking, values, -np.inf).max(1)
    return high > low


def choose_rows(differing: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Picks `count` groups, int [count] in the order in which they were drawn, and tells which are
    left for the next update, int [at most `count`].

    differing: bool [N]. The first that differ are taken, whatever their shape; where there are too
    few of them, the first others fill the update. The next `count` that differ are left.
    """
    order = np.argsort(~differing, kind="stable")
    left = order[count : 2 * count]
    return np.sort(order[:count]), left[differing[left]]


def find_shape(batches: Sequence[Batch]) -> tuple[int, ...]:
    """Returns the largest T, F and W among batches."""
    shapes = [(batch.tokens.shape[1], *batch.patches.shape[1:3]) for batch in batches]
    return tuple(map(max, zip(*shapes, strict=True)))


def join_batches(batches: Sequence[Batch], shape: Sequence[int]) -> Batch:
    """Stacks the rows of batches, each padded to `shape`, a T, F and W that hold them all."""
    padded = [pad_batch(batch, *shape) for batch in batches]
    return Batch(*(np.concatenate(leaves) for leaves in zip(*padded, strict=True)))


def pad_batch(batch: Batch, length: int, pairs: int, windows: int) -> Batch:
    """Pads rows to T = length, F = pairs and W = windows; nothing that is computed changes."""
    own = batch.patches.shape[2]

    def widen(leaf, dims, fill=0):
        leaf = np.asarray(leaf)
        width = [(0, 0)] * leaf.ndim
        for dim, size in dims.items():
            width[dim] = (0, size - leaf.shape[dim])
        return np.pad(leaf, width, constant_values=fill)

    index = np.asarray(batch.visual_index)
    if own and own != windows:  # A visual token is found by its frame pair and its slot in it.
        pair, slot = np.divmod(index, own * WINDOW_TOKENS)
        index = np.where(index >= 0, pair * windows * WINDOW_TOKENS + slot, -1).astype(index.dtype)
    text, pixels = {1: length}, {1: pairs, 2: windows}
    return Batch(
        tokens=widen(batch.tokens, text),
        segment_ids=widen(batch.segment_ids, text),
        positions=widen(batch.positions, {2: length}),
        loss_mask=widen(batch.loss_mask, text),
        visual_index=widen(index, text, -1),
        patches=widen(batch.patches, pixels),
        patch_valid=widen(batch.patch_valid, pixels),
        patch_hw=widen(batch.patch_hw, pixels),
    )
