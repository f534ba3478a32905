"""Frames of a batch that is already cut into patches: back out of them, and in another order.

Inside a patch the values stand in the order channel, frame of the pair, row, column.
"""

import math

import numpy as np

from videorft_jax.data.batch.batch import Batch


def _patch_side(batch: Batch) -> int:
    """Pixels a side of a patch of X = 3 * 2 * side^2 values."""
    return math.isqrt(batch.patches.shape[-1] // 6)


def rebuild_frames(batch: Batch, row: int) -> np.ndarray | None:
    """uint8 [2 F, h, w, 3], the frames of the one clip of a row; None when it holds none.

    An image is two equal frames, and a clip with an odd number of them ends in its last one twice.
    """
    valid, where, side = batch.patch_valid[row], batch.patch_hw[row], _patch_side(batch)
    pairs = int(valid.any((1, 2)).sum())
    if not pairs:
        return None
    used = valid[0]  # every pair of a clip has the same grid
    high, wide = where[0][used].max(0) + 1
    patches = batch.patches[row, :pairs][:, used].reshape(pairs, -1, 3, 2, side, side)
    frames = np.empty((pairs, 2, high, side, wide, side, 3), np.uint8)
    y, x = where[0][used].T
    frames[:, :, y, :, x] = patches.transpose(1, 0, 3, 4, 5, 2)
    return frames.reshape(2 * pairs, high * side, wide * side, 3)


def shuffle_frames(batch: Batch, keys: list[tuple[int, ...]]) -> Batch:
    """The batch with the frames of each row's one clip in random order, drawn from the row's key.

    Positions stay: the model is told that the shuffled frames follow each other in time.
    """
    patches, size = batch.patches.copy(), _patch_side(batch) ** 2
    for row, key in enumerate(keys):
        pairs = int(batch.patch_valid[row].any((1, 2)).sum())
        if not pairs:
            continue
        frames = patches[row, :pairs].reshape(pairs, -1, 3, 2, size)
        frames = np.moveaxis(frames, 3, 1).reshape(2 * pairs, -1, 3, size)
        frames = frames[np.random.default_rng(key).permutation(2 * pairs)]
        frames = np.moveaxis(frames.reshape(pairs, 2, -1, 3, size), 1, 3)
        patches[row, :pairs] = frames.reshape(patches[row, :pairs].shape)
    return batch._replace(patches=patches)
