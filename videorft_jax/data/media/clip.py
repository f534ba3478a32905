"""A decoded clip: its sampled frames after the resize, and what is known of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import target_size


class Clip(NamedTuple):
    """Sampled, resized frames.

    planes: of each of the n frames red, green and blue, uint8 [h, w], as they leave the resize;
    `frames` makes one array of them, uint8 [n, h, w, 3]. timestamps float64 [n] seconds after the
    file's first frame; fps the true rate of the sample, n / number of frames in the range * native
    rate (that of the range where the rate varies); indices int64 [n] into the file's frames in
    order of presentation; source_size (height, width) before the resize and after rotation; stamps
    the seconds of each frame pair as a prompt writes them. An image has one frame at 0 s and fps 2,
    so that a grid step lasts 1 s, and no stamps.
    """

    planes: Sequence[Sequence[np.ndarray]]
    timestamps: np.ndarray
    fps: float
    indices: np.ndarray
    source_size: tuple[int, int]
    stamps: tuple[float, ...] = ()

    @property
    def frames(self) -> np.ndarray:
        return merge_planes(self.planes)


def merge_planes(planes: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """[n][3] of uint8 [h, w] -> uint8 [n, h, w, 3], the pixels of all frames in one array."""
    frames = np.empty((len(planes), 3, *planes[0][0].shape), np.uint8)
    for frame, channels in zip(frames, planes, strict=True):
        for plane, channel in zip(frame, channels, strict=True):
            plane[...] = channel
    return frames.transpose(0, 2, 3, 1)


def resize_frames(frames: np.ndarray, contract: MediaContract, image: bool = False) -> np.ndarray:
    """uint8 [n, h, w, 3] -> uint8 [n, h', w', 3] of `target_size`, antialiased bicubic."""
    size = target_size(*frames.shape[1:3], len(frames), contract, image)
    return merge_planes([resize_planes(frame, *size) for frame in frames])
