"""Clips that are no video files: folders and lists of pictures, and animated WebP and PNG."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Protocol

import numpy as np
from PIL import Image

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import list_files, open_media
from videorft_jax.data.media.image import check_pixels, open_image, shown_size, to_rgb
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import Sampling, sample_frames, target_size

SHORTEST_MS = 100  # Browsers show a frame so long where the file says 10 ms or less.


class Pictures(Protocol):
    """Frames that can be shown one by one: when each is shown, float64 [n] seconds, at what rate,
    its (height, width), and its pixels, uint8 [h, w, 3]."""

    seconds: np.ndarray
    rate: float

    def size(self, index: int) -> tuple[int, int]: ...
    def show(self, index: int) -> np.ndarray: ...


class FrameFiles:
    """Picture files shown at `rate` frames a second, in the order given."""

    def __init__(self, names: Sequence[str], root, rate: float, limits: Limits):
        self._names, self._root, self._limits = names, root, limits
        self.seconds, self.rate = np.arange(len(names)) / rate, rate

    def size(self, index: int) -> tuple[int, int]:
        with self._open(index) as image:
            return shown_size(image)

    def show(self, index: int) -> np.ndarray:
        with self._open(index) as image:
            return to_rgb(image)

    @contextlib.contextmanager
    def _open(self, index: int) -> Iterator[Image.Image]:
        with (
            open_media(self._names[index], self._root, self._limits) as descriptor,
            open_image(f"/dev/fd/{descriptor}", self._limits) as image,
        ):
            yield image


class Animation:
    """The frames of an animated picture, each as long as the file says. Frames are drawn over each
    other, so that they can only be shown in rising order."""

    def __init__(self, image: Image.Image):
        self._image, lengths = image, []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()  # WebP tells how long a frame is shown when it is decoded
            length = float(image.info.get("duration", 0))
            lengths.append(length if length > 10 else SHORTEST_MS)
        starts = np.concatenate([[0.0], np.cumsum(lengths)])
        self.seconds, self.rate = starts[:-1] / 1000, len(lengths) * 1000 / starts[-1]

    def size(self, index: int) -> tuple[int, int]:
        return self._image.height, self._image.width

    def show(self, index: int) -> np.ndarray:
        self._image.seek(index)
        return to_rgb(self._image)


def is_animation(name: str | bytes) -> bool:
    """Whether a file, by its first bytes, is a WebP or PNG picture, animated or not."""
    if isinstance(name, bytes):
        head = name[:12]
    else:
        with open(name, "rb") as file:
            head = file.read(12)
    return head[:8] == b"\x89PNG\r\n\x1a\n" or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


@contextlib.contextmanager
def open_animation(name: str | bytes, limits: Limits) -> Iterator[Animation]:
    """Opens an animated WebP or PNG picture as the frames of a clip. Raises MediaError not_media
    for a picture that does not move, and too_long."""
    file = BytesIO(name) if isinstance(name, bytes) else name
    with Image.open(file, "r", ("PNG", "WEBP")) as image:
        check_pixels(image, limits)
        if getattr(image, "n_frames", 1) < 2:
            raise MediaError("not_media", "a still picture; its data_type is image")
        if image.n_frames > limits.max_packets:
            raise MediaError("too_long", f"{image.n_frames} frames")
        yield Animation(image)


def is_frames(source, root) -> bool:
    """Whether a clip is a list of picture files, or a folder of them."""
    if isinstance(source, list | tuple):
        return True
    if isinstance(source, bytes) or not isinstance(source, str | os.PathLike):
        return False
    with contextlib.suppress(OSError, ValueError):
        return os.path.isdir(os.path.join(root or "", source))
    return False


def open_frames(source, root, fps: float | None, limits: Limits) -> FrameFiles:
    """The pictures of a list, or of a folder in the order of the numbers in their names. Raises
    MediaError not_regular without pictures or without a rate."""
    names = list_files(source, root, limits)
    if not names:
        raise MediaError("not_regular", "a folder without pictures")
    if len(names) > limits.max_packets:
        raise MediaError("too_long", f"{len(names)} pictures")
    if not fps or not fps > 0:
        raise MediaError("not_regular", "a folder or list of frames without fps, frames a second")
    return FrameFiles(names, root, float(fps), limits)


def sample_pictures(
    pictures: Pictures, contract: MediaContract, start: float | None, end: float | None
) -> tuple[Sampling, tuple[int, int]]:
    """The frames that a contract takes, and (height, width) of the first of them."""
    sampling = sample_frames(pictures.seconds, pictures.rate, contract, start, end)
    return sampling, pictures.size(int(sampling.indices[0]))


def read_pictures(
    pictures: Pictures, contract: MediaContract, start: float | None, end: float | None
) -> Clip:
    """The clip of a contract; pictures of another size than the first are resized to the same."""
    sampling, sides = sample_pictures(pictures, contract, start, end)
    size = target_size(*sides, len(sampling.indices), contract)
    planes = [resize_planes(pictures.show(int(i)), *size) for i in sampling.indices]
    seconds = pictures.seconds[sampling.indices]
    return Clip(planes, seconds, sampling.fps, sampling.indices, sides, sampling.stamps)
