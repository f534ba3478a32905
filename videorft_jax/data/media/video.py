"""From a video file to frames ready for the model: sampling, colours, rotation and resize.

`read_video` decodes every frame that the contract takes, and `look_at_video` only the first of
them. Both choose frames by one `_Sampler`, so that a clip is loaded in the shape it was measured.
"""

import numbers
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.decode import VideoFile
from videorft_jax.data.media.files import guarded, read_guarded
from videorft_jax.data.media.pictures import (
    Pictures,
    is_animation,
    is_frames,
    open_animation,
    open_frames,
    read_pictures,
    sample_pictures,
)
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import Sampling, sample_frames, target_size

T = TypeVar("T")
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}


def read_video(
    source: str | os.PathLike | bytes | Sequence[str],
    contract: MediaContract,
    start: float | None = None,
    end: float | None = None,
    *,
    fps: float | None = None,
    root: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> Clip:
    """Reads the frames that the contract asks for, bit-identical to decoding the whole file.

    source: a path (below `root` if one is given, see `open_media`), the bytes of a file, or the
    frames themselves as a folder or list of pictures, shown at `fps` frames a second. Animated GIF,
    WebP and PNG are clips too. start and end are seconds. Rotation is applied, pixel aspect is not
    (as in decord). Pictures of more than 8 bits are rounded to 8 by swscale; HDR (PQ, HLG) is not
    tone-mapped, as in decord and qwen-vl-utils. Only local plain files are read. Raises MediaError,
    whose `reason` is a key of REASONS, and nothing else for bad input; ValueError where the
    contract is none or a time no number.
    """
    _check_arguments(contract, start=start, end=end, fps=fps)

    def of_file(file: VideoFile) -> Clip:
        return decode_clip(file, contract, start, end)

    def of_pictures(pictures: Pictures) -> Clip:
        return read_pictures(pictures, contract, start, end)

    return _open(of_file, of_pictures, source, root, fps, limits)


def _check_arguments(contract, **times):
    """Raises ValueError for what a caller confused: it would be called a fault of the file."""
    if not isinstance(contract, MediaContract):
        what = type(contract).__name__
        raise ValueError(
            f"read_video: contract is a {what}; give a MediaContract, such as evaluate()"
        )
    for name, value in times.items():
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if value is not None and not is_number:
            raise ValueError(f"read_video: {name} is a {type(value).__name__}; give a number")


class Look(NamedTuple):
    """What a video becomes under a contract: its sampled frames, and (height, width) of the first
    of them after rotation and before the resize."""

    sampling: Sampling
    source_size: tuple[int, int]


def look_at_video(
    source: str | os.PathLike | bytes | Sequence[str],
    contract: MediaContract,
    start: float | None = None,
    end: float | None = None,
    *,
    fps: float | None = None,
    root: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> Look:
    """Chooses frames as `read_video` does, and decodes only the first of them."""

    def of_file(file: VideoFile) -> Look:
        sampler = _Sampler(limits, contract, start, end)
        choose = lambda seconds, rate: sampler.choose(seconds, rate)[:1]  # noqa: E731
        found = file.read(choose, sampler.measure)
        return Look(sampler.sampling, found.images[0])

    def of_pictures(pictures: Pictures) -> Look:
        return Look(*sample_pictures(pictures, contract, start, end))

    return _open(of_file, of_pictures, source, root, fps, limits)


def _open(
    of_file: Callable[[VideoFile], T],
    of_pictures: Callable[[Pictures], T],
    source: str | os.PathLike | bytes | Sequence[str],
    root: str | os.PathLike | None,
    fps: float | None,
    limits: Limits,
) -> T:
    """The answer of one of two functions, by what the source is."""
    if is_frames(source, root):
        return guarded(lambda: of_pictures(open_frames(source, root, fps, limits)), source)

    def read(name: str | bytes) -> T:
        if is_animation(name):
            with open_animation(name, limits) as pictures:
                return of_pictures(pictures)
        with VideoFile(name, limits) as file:
            return of_file(file)

    return read_guarded(read, source, root, limits)


def decode_clip(
    file: VideoFile, contract: MediaContract, start: float | None, end: float | None
) -> Clip:
    """The clip of an opened file; see `read_video`."""
    sampler = _Sampler(file.limits, contract, start, end)
    scaler = VideoReformatter()  # one for the clip: PyAV otherwise makes a context for each frame

    def convert(frame: av.VideoFrame) -> Sequence[np.ndarray]:
        sampler.measure(frame)
        image = scaler.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
        image = np.rot90(image, k=frame.rotation // 90)
        return resize_planes(np.ascontiguousarray(image), *sampler.target_size)

    found = file.read(sampler.choose, convert)
    fps, stamps = sampler.sampling.fps, sampler.sampling.stamps
    return Clip(found.images, found.seconds, fps, found.indices, sampler.source_size, stamps)


class _Sampler:
    """Chooses the frames of one clip when its timestamps are known, and remembers the choice.

    The first frame of the sample decides the size that all of them are resized to, also where a
    stream changes its size on the way.
    """

    def __init__(self, limits: Limits, contract: MediaContract, start, end):
        self._limits, self._contract, self._span = limits, contract, (start, end)
        self.sampling: Sampling | None = None
        self.source_size: tuple[int, int] | None = None

    def choose(self, seconds: np.ndarray, rate: float) -> np.ndarray:
        """Indices of the frames to decode. A reader that finds other timestamps while decoding
        asks again; sizes are then taken anew, unless the frames are the same."""
        before = self.sampling
        self.sampling = sample_frames(seconds, rate, self._contract, *self._span)
        indices = self.sampling.indices
        length = float(seconds[indices[-1]] - seconds[indices[0]])
        if length > self._limits.max_seconds:
            raise MediaError("too_long", f"{length:.0f} s > {self._limits.max_seconds:.0f} s")
        if before is None or not np.array_equal(before.indices, indices):
            self.source_size = None
        return indices

    def measure(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(height, width) of a frame as it is shown. Raises MediaError too_many_pixels and
        unsupported."""
        if frame.width * frame.height > self._limits.max_source_pixels:
            raise MediaError("too_many_pixels", f"a frame of {frame.width}x{frame.height}")
        if frame.rotation % 90:
            raise MediaError("unsupported", f"rotated by {frame.rotation} degrees")
        sides = (frame.height, frame.width)
        size = sides[::-1] if frame.rotation % 180 else sides
        self.source_size = self.source_size or size
        return size

    @property
    def target_size(self) -> tuple[int, int]:
        return target_size(*self.source_size, len(self.sampling.indices), self._contract)
