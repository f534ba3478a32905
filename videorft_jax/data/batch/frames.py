"""Frames of a batch that is already cut into patches: back out of them, and in another order.

Inside a patch the values stand in the order channel, frame of the pair, row, column.
"""

import math

import numpy as np
from PIL import Image

from videorft_jax.data.batch.batch import Batch


def _patch_side(batch: Batch) -> int:
    """Pixels a side of a patch of X = 3 * 2 * side^2 values."""
    return math.isqrt(batch.patches.shape[-1] // 6)


def _runs(batch: Batch, row: int) -> list[slice]:
    """The frame pairs of a row, split where the grid changes: clips of different sizes."""
    valid = batch.patch_valid[row]
    pairs = int(valid.any((1, 2)).sum())
    starts = [i for i in range(pairs) if not i or not np.array_equal(valid[i], valid[i - 1])]
    return list(map(slice, starts, [*starts[1:], pairs]))


def rebuild_frames(batch: Batch, row: int) -> np.ndarray | None:
    """uint8 [2 F, h, w, 3], the frames of the clips of a row; None when it holds none.

    An image is two equal frames, and a clip with an odd number of them ends in its last one twice.
    Clips of another size than the first are resized to the first one's.
    """
    runs = [_rebuild(batch, row, run) for run in _runs(batch, row)]
    if not runs:
        return None
    height, width = runs[0].shape[1:3]
    return np.concatenate([_fit(frames, width, height) for frames in runs])


def _rebuild(batch: Batch, row: int, run: slice) -> np.ndarray:
    where, side, pairs = batch.patch_hw[row], _patch_side(batch), run.stop - run.start
    used = batch.patch_valid[row][run.start]
    high, wide = where[run.start][used].max(0) + 1
    patches = batch.patches[row, run][:, used].reshape(pairs, -1, 3, 2, side, side)
    frames = np.empty((pairs, 2, high, side, wide, side, 3), np.uint8)
    y, x = where[run.start][used].T
    frames[:, :, y, :, x] = patches.transpose(1, 0, 3, 4, 5, 2)
    return frames.reshape(2 * pairs, high * side, wide * side, 3)


def _fit(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames]
    )


def shuffle_frames(batch: Batch, keys: list[tuple[int, ...]]) -> Batch:
    """The batch with the frames of each row's clip in random order, drawn from the row's key; of
    clips of different sizes, each by itself.

    Positions stay: the model is told that the shuffled frames follow each other in time.
    """
    patches, size = batch.patches.copy(), _patch_side(batch) ** 2
    for row, key in enumerate(keys):
        random = np.random.default_rng(key)
        for run in _runs(batch, row):
            pairs = run.stop - run.start
            frames = patches[row, run].reshape(pairs, -1, 3, 2, size)
            frames = np.moveaxis(frames, 3, 1).reshape(2 * pairs, -1, 3, size)
            frames = frames[random.permutation(2 * pairs)]
            frames = np.moveaxis(frames.reshape(pairs, 2, -1, 3, size), 1, 3)
            patches[row, run] = frames.reshape(patches[row, run].shape)
    return batch._replace(patches=patches)
