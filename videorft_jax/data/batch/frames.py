"""Frames of a batch that is already cut into patches: back out of them, and in another order.

Inside a patch the values stand in the order channel, frame of the pair, row, column.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from videorft_jax.data.batch.batch import Batch


def _patch_side(batch: Batch) -> int:
    """Pixels a side of a patch of X = 3 * 2 * side^2 values."""
    return math.isqrt(batch.patches.shape[-1] // 6)


def _split(pairs: Sequence[int]) -> list[slice]:
    """The frame pairs of each item of a row, of which it has `pairs`."""
    ends = list(itertools.accumulate(pairs))
    return list(map(slice, [0, *ends[:-1]], ends))


def rebuild_frames(batch: Batch, row: int, pairs: Sequence[int]) -> np.ndarray | None:
    """uint8 [2 F, h, w, 3], the frames of all clips and images of a row; None when it holds none.

    `pairs` says how many frame pairs each of them has, see `Step.pairs`.

    An image is two equal frames, and a clip with an odd number of them ends in its last one twice.
    Clips of another size than the first are resized to the first one's.
    """
    runs = [_rebuild(batch, row, run) for run in _split(pairs)]
    if not runs:
        return None
    height, width = runs[0].shape[1:3]
    return np.concatenate([_fit(frames, width, height) for frames in runs])


def frame_size(batch: Batch, row: int, pair: int) -> tuple[int, int]:
    """(height, width) in pixels of the frames of one frame pair of a row."""
    used = batch.patch_valid[row, pair]
    high, wide = batch.patch_hw[row, pair][used].max(0) + 1
    return int(high) * _patch_side(batch), int(wide) * _patch_side(batch)


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


def shuffle_frames(
    batch: Batch, keys: Sequence[tuple[int, ...]], pairs: Sequence[Sequence[int]]
) -> Batch:
    """The batch with the frames of each clip in random order, drawn from its row's key.

    `pairs` has the frame pairs of each item of each row, see `Step.pairs`. Frames stay within their
    clip: of several, each is shuffled by itself, and an image stays as it is. Positions stay: the
    model is told that the shuffled frames follow each other in time.
    """
    patches, size = batch.patches.copy(), _patch_side(batch) ** 2
    for row, (key, counts) in enumerate(zip(keys, pairs, strict=True)):
        random = np.random.default_rng(key)
        for run in _split(counts):
            num = run.stop - run.start
            frames = patches[row, run].reshape(num, -1, 3, 2, size)
            frames = np.moveaxis(frames, 3, 1).reshape(2 * num, -1, 3, size)
            frames = frames[random.permutation(2 * num)]
            frames = np.moveaxis(frames.reshape(num, 2, -1, 3, size), 1, 3)
            patches[row, run] = frames.reshape(patches[row, run].shape)
    return batch._replace(patches=patches)
