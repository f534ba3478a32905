"""Frames of a batch that is already cut into patches: back out of them, and in another order.

Channels, frame of the pair, row and column of a pixel are the order inside a patch of 1176 values.
"""

import numpy as np

from videorft_jax.data.batch.batch import Batch

PATCH = 14


def rebuild_frames(batch: Batch, row: int) -> np.ndarray | None:
    """uint8 [2 F, h, w, 3], the frames of the one clip of a row; None when it holds none.

    An image is two equal frames, and a clip with an odd number of them ends in its last one twice.
    """
    valid, where = batch.patch_valid[row], batch.patch_hw[row]
    pairs = int(valid.any((1, 2)).sum())
    if not pairs:
        return None
    used = valid[0]  # every pair of a clip has the same grid
    high, wide = where[0][used].max(0) + 1
    patches = batch.patches[row, :pairs][:, used].reshape(pairs, -1, 3, 2, PATCH, PATCH)
    frames = np.empty((pairs, 2, high, PATCH, wide, PATCH, 3), np.uint8)
    y, x = where[0][used].T
    frames[:, :, y, :, x] = patches.transpose(1, 0, 3, 4, 5, 2)
    return frames.reshape(2 * pairs, high * PATCH, wide * PATCH, 3)


def shuffle_frames(batch: Batch, keys: list[tuple[int, ...]]) -> Batch:
    """The batch with the frames of each row's one clip in random order, drawn from the row's key.

    Positions stay: the model is told that the shuffled frames follow each other in time.
    """
    patches = batch.patches.copy()
    for row, key in enumerate(keys):
        pairs = int(batch.patch_valid[row].any((1, 2)).sum())
        if not pairs:
            continue
        frames = patches[row, :pairs].reshape(pairs, -1, 3, 2, PATCH**2)
        frames = np.moveaxis(frames, 3, 1).reshape(2 * pairs, -1, 3, PATCH**2)
        frames = frames[np.random.default_rng(key).permutation(2 * pairs)]
        frames = np.moveaxis(frames.reshape(pairs, 2, -1, 3, PATCH**2), 1, 3)
        patches[row, :pairs] = frames.reshape(patches[row, :pairs].shape)
    return batch._replace(patches=patches)
