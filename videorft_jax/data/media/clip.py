"""A decoded clip, and the resize that every frame goes through.

Frames are converted to RGB at full size and then resized by Pillow's bicubic, whose filter is the
antialiased one of torchvision (a = -0.5, support scaled, 8-bit fixed point). The result is within
2/255 of that of transformers' processors, on noise too. Scaling inside swscale is faster and off by
tens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from videorft_jax.data.media.contract import MediaContract
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


def resize_planes(frame: np.ndarray, height: int, width: int) -> Sequence[np.ndarray]:
    """uint8 [h, w, 3] -> its three planes, uint8 [height, width], antialiased bicubic.

    Widths come first and heights second, as in PyTorch. The order matters, because values are cut
    to 0 to 255 in between: on noise the other order is off by up to 20 grey levels, and Pillow from
    version 13 on takes it where it costs less, so that each side is resized by a call of its own.
    Planes are handed out, since Pillow gives them as fast as pixels and patches are cut from them
    faster, without a copy of the clip in between.
    """
    if frame.shape[:2] == (height, width):
        return frame.transpose(2, 0, 1)
    image = Image.fromarray(frame)
    for size in ((width, image.height), (width, height)):
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
    planes = [np.frombuffer(image.tobytes("raw", channel), np.uint8) for channel in "RGB"]
    return [plane.reshape(height, width) for plane in planes]


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
