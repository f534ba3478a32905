"""Clips of moving things over a background, and the ways in which others re-publish them."""

import io

import av
import numpy as np
from PIL import Image

SIZE = (160, 112)  # width, height
SECONDS, RATE = 8, 4


def make_frames(seed, background=None):
    """uint8 [n, h, w, 3]: three boxes that wander over a smooth picture, that of `background`."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    own = np.random.default_rng(seed if background is None else background)
    coarse = own.integers(0, 255, (6, 8, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
    count = SECONDS * RATE
    frames = np.repeat(picture[None], count, 0)
    for _ in range(3):
        size = rng.integers(18, 36, 2)
        colour = rng.integers(0, 255, 3)
        path = np.cumsum(rng.normal(0, 1.0, (count, 2)), 0) + rng.normal(0, 0.6, 2) * np.arange(
            count
        )[:, None] + rng.uniform(0, 1, 2) * (width, height)  # fmt: skip
        for i, (x, y) in enumerate(path):
            left, top = int(x) % (width - size[0]), int(y) % (height - size[1])
            frames[i, top : top + size[1], left : left + size[0]] = colour
    return frames


def encode(frames, rate=RATE, crf=20):
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
        out.mux(stream.encode())
    return target.getvalue()


def shrink(frames):
    size = (frames.shape[2] // 2, frames.shape[1] // 2)
    return np.array([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def add_logo(frames):
    changed = frames.copy()
    changed[:, 6:20, -34:-6] = (250, 240, 20)
    return changed


def letterbox(frames, level=0):
    return np.pad(frames, ((0, 0), (20, 20), (0, 0), (0, 0)), constant_values=level)


CHANGES = {
    "re-encoded": lambda frames: encode(shrink(frames), crf=35),
    "half rate": lambda frames: encode(frames[::2], rate=RATE // 2),
    "logo": lambda frames: encode(add_logo(frames)),
    "letterboxed": lambda frames: encode(letterbox(frames)),
    "mirrored": lambda frames: encode(frames[:, :, ::-1]),
}
