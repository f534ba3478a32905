"""From a path to frames ready for the model: sampling, pixel budget, resize, error reasons.

One design decision is worth knowing: frames are converted to RGB at full size and then reduced by
Pillow's bicubic, whose filter is the antialiased one of torchvision (a = -0.5, support scaled,
8-bit fixed point), to within 2/255 on noise. Scaling inside swscale is faster and off by tens.
"""

import math
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from videorft_jax.data.media.contract import REASONS, Limits, MediaContract, MediaError, open_media
from videorft_jax.data.media.decode import VideoFile
from videorft_jax.data.media.isolate import read_isolated

__all__ = [
    "REASONS", "Clip", "Limits", "MediaContract", "MediaError", "frame_range", "load_media",
    "num_sampled", "read_image", "read_video", "resize_frames", "sample_indices", "target_size",
]  # fmt: skip
MAX_ASPECT = 200  # qwen-vl-utils MAX_RATIO
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # JPEG includes the MPO of phones
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}


class Clip(NamedTuple):
    """Sampled, resized frames.

    planes: of each of the n frames red, green and blue, uint8 [h, w], as they leave the resize;
    `frames` makes one array of them, uint8 [n, h, w, 3]. timestamps float64 [n] seconds after the
    file's first frame; fps the true rate of the sample, n / number of frames in the range * native
    rate (that of the range where the rate varies); indices int64 [n] into the file's frames in
    order of presentation; source_size (height, width) before the resize and after rotation. An
    image has one frame at 0 s and fps 2, so that a grid step lasts 1 s.
    """

    planes: Sequence[Sequence[np.ndarray]]
    timestamps: np.ndarray
    fps: float
    indices: np.ndarray
    source_size: tuple[int, int]

    @property
    def frames(self) -> np.ndarray:
        return _merge(self.planes)


def target_size(
    height: int, width: int, num_frames: int, contract: MediaContract, image: bool = False
) -> tuple[int, int]:
    """(height, width) after the resize; sides are multiples of contract.factor.

    The arithmetic is that of qwen-vl-utils (fetch_video, fetch_image, smart_resize): Python's
    round half to even, then floor when too large and ceil when too small, so that the result can
    lie a little outside the bounds. A frame's upper bound also shrinks with total_pixels / n * 2
    but never below 1.05 * min_pixels. Raises MediaError aspect_ratio above 200.
    """
    factor = contract.factor
    if image:
        least, most = contract.image_min_pixels, contract.image_max_pixels
    else:
        least = contract.min_pixels
        share = contract.total_pixels / num_frames * contract.temporal_patch_size
        most = max(min(contract.max_pixels, share), int(least * 1.05))
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError("aspect_ratio", f"{width}x{height} is beyond {MAX_ASPECT}:1")
    rows = max(factor, round(height / factor) * factor)
    columns = max(factor, round(width / factor) * factor)
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def _resize(frame: np.ndarray, height: int, width: int) -> Sequence[np.ndarray]:
    """uint8 [h, w, 3] -> its three planes, uint8 [height, width]: Pillow hands out planes as fast
    as pixels, and `layout` cuts them into patches faster, without a copy of the clip between."""
    if frame.shape[:2] == (height, width):
        return frame.transpose(2, 0, 1)
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    planes = [np.frombuffer(image.tobytes("raw", channel), np.uint8) for channel in "RGB"]
    return [plane.reshape(height, width) for plane in planes]


def _merge(planes: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """[n][3] of uint8 [h, w] -> uint8 [n, h, w, 3]."""
    frames = np.empty((len(planes), 3, *planes[0][0].shape), np.uint8)
    for frame, channels in zip(frames, planes, strict=True):
        for plane, channel in zip(frame, channels, strict=True):
            plane[...] = channel
    return frames.transpose(0, 2, 3, 1)


def resize_frames(frames: np.ndarray, contract: MediaContract, image: bool = False) -> np.ndarray:
    """uint8 [n, h, w, 3] -> uint8 [n, h', w', 3] of `target_size`, antialiased bicubic."""
    size = target_size(*frames.shape[1:3], len(frames), contract, image)
    return _merge([_resize(frame, *size) for frame in frames])


def has_constant_rate(seconds: np.ndarray, rate: float) -> bool:
    """Whether each frame lies within half a frame of where the rate puts it."""
    return bool(np.abs(seconds - np.arange(len(seconds)) / rate).max() < 0.5 / rate)


def frame_range(
    seconds: np.ndarray, rate: float, start: float | None, end: float | None
) -> tuple[int, int]:
    """First and last frame (both included) of [start, end] seconds.

    At a constant rate as qwen-vl-utils: ceil(start * rate), floor(end * rate), clamped to the clip.
    At a variable rate, where that would name other moments, the timestamps decide. Raises
    MediaError empty_range when fewer than two frames are left.
    """
    total = len(seconds)
    if start is None and end is None:
        return 0, total - 1
    low, high = 0.0 if start is None else start, math.inf if end is None else end
    if not (math.isfinite(low) and low < high):
        raise MediaError("empty_range", f"start {start}, end {end}")
    if has_constant_rate(seconds, rate):
        length = total / rate
        first = math.ceil(max(0.0, min(low, length)) * rate)
        last = min(math.floor(max(0.0, min(high, length)) * rate), total - 1)
    else:
        first = int(np.searchsorted(seconds, low, side="left"))
        last = int(np.searchsorted(seconds, high, side="right")) - 1
    if first >= last:
        shown = f"{seconds[-1]:.3f} s"
        raise MediaError("empty_range", f"start {start}, end {end}, last frame at {shown}")
    return first, last


def num_sampled(total: int, rate: float, contract: MediaContract) -> int:
    """How many of `total` frames are taken: qwen-vl-utils smart_nframes, always even.
    Raises MediaError too_few_frames when the clip cannot give them."""
    step = contract.temporal_patch_size
    if contract.num_frames is not None:
        num = round(contract.num_frames / step) * step
    else:
        least = math.ceil(contract.min_frames / step) * step
        most = math.floor(contract.max_frames / step) * step
        num = min(max(total / rate * contract.fps, least), most, total)
        num = math.floor(num / step) * step
    if not step <= num <= total:
        raise MediaError("too_few_frames", f"{total} frames, need at least {max(num, step)}")
    return num


def sample_indices(first: int, last: int, num: int) -> np.ndarray:
    """int64 [num]: round(linspace(first, last, num)), both ends included, in exact integers.

    `num` is even, hence num - 1 odd and a half never occurs: no rounding rule is involved.
    """
    steps = np.arange(num, dtype=np.int64) * (last - first)
    return first + (2 * steps + num - 1) // (2 * (num - 1))


def read_video(
    source: str | os.PathLike | bytes,
    contract: MediaContract,
    start: float | None = None,
    end: float | None = None,
    *,
    root: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> Clip:
    """Reads the frames that the contract asks for, bit-identical to decoding the whole file.

    source: a path (below `root` if one is given, see `open_media`) or the bytes of a file. start
    and end are seconds. Rotation is applied, pixel aspect is not (as in decord). Only local plain
    files are read. Raises MediaError, whose `reason` is a key of REASONS, and nothing else for bad
    input.
    """

    def decode(name: str | bytes) -> Clip:
        with VideoFile(name, limits) as file:
            return _sample(file, contract, start, end)

    return _guarded(decode, source, root, limits)


def _sample(
    file: VideoFile, contract: MediaContract, start: float | None, end: float | None
) -> Clip:
    plan = {}
    scaler = VideoReformatter()  # one for the clip: PyAV otherwise makes a context per frame

    def choose(seconds: np.ndarray, rate: float) -> np.ndarray:
        first, last = frame_range(seconds, rate, start, end)
        total = last - first + 1
        if total > 1 and not has_constant_rate(seconds, rate):  # the range has a rate of its own
            rate = (total - 1) / (seconds[last] - seconds[first])
        num = num_sampled(total, rate, contract)
        plan.update(num=num, fps=float(num / total * rate))
        return sample_indices(first, last, num)

    def convert(frame: av.VideoFrame) -> Sequence[np.ndarray]:
        if frame.width * frame.height > file.limits.max_source_pixels:
            raise MediaError("too_many_pixels", f"a frame of {frame.width}x{frame.height}")
        if frame.rotation % 90:
            raise MediaError("unsupported", f"rotated by {frame.rotation} degrees")
        image = scaler.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
        image = np.rot90(image, k=frame.rotation // 90)
        source_size = plan.setdefault("source_size", image.shape[:2])
        size = target_size(*source_size, plan["num"], contract)
        return _resize(np.ascontiguousarray(image), *size)

    found = file.read(choose, convert)
    return Clip(found.images, found.seconds, plan["fps"], found.indices, plan["source_size"])


def read_image(
    source: str | os.PathLike | bytes,
    contract: MediaContract,
    *,
    root: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> Clip:
    """Reads a still image as a clip of one frame; layout repeats it.

    The camera's orientation is applied, transparency is laid on white (as qwen-vl-utils does), an
    animation is refused. Raises MediaError as `read_video`.
    """

    def decode(name: str | bytes) -> Clip:
        try:
            image = Image.open(
                BytesIO(name) if isinstance(name, bytes) else name, "r", IMAGE_FORMATS
            )
        except UnidentifiedImageError:
            raise MediaError("not_media", f"no image of {', '.join(IMAGE_FORMATS)}") from None
        with image:
            return _convert_image(image, contract, limits)

    return _guarded(decode, source, root, limits)


def _convert_image(image: Image.Image, contract: MediaContract, limits: Limits) -> Clip:
    if (
        image.width * image.height > limits.max_source_pixels
    ):  # known from the header, nothing decoded yet
        size = f"{image.width}x{image.height}"
        raise MediaError("too_many_pixels", f"{size} > {limits.max_source_pixels} pixels")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise MediaError(
            "unsupported", f"an animation of {image.n_frames} frames is no still image"
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        frame = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise MediaError(reason, str(error)) from None
    size = target_size(*frame.shape[:2], 1, contract, image=True)
    return Clip([_resize(frame, *size)], np.zeros(1), 2.0, np.zeros(1, np.int64), frame.shape[:2])


def _guarded(decode: Callable, source: str | os.PathLike | bytes, root, limits: Limits) -> Clip:
    """decode("/dev/fd/N" or bytes); every failure becomes a MediaError that names the clip."""
    path = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            if not source:
                raise MediaError("empty", "zero bytes")
            if len(source) > limits.max_bytes:
                raise MediaError("too_large", f"{len(source)} > {limits.max_bytes} bytes")
            return decode(source)
        if not isinstance(source, str | os.PathLike):
            raise MediaError("missing", f"a path is needed, got {type(source).__name__}")
        with open_media(source, root, limits) as descriptor:
            return decode(f"/dev/fd/{descriptor}")
    except MediaError as error:
        raise MediaError(error.reason, error.detail, path) from None
    except Image.DecompressionBombError as error:
        raise MediaError("too_many_pixels", str(error), path) from None
    except MemoryError:
        raise MediaError("memory", "no memory left while decoding", path) from None
    except (av.FFmpegError, OSError) as error:
        raise MediaError("corrupt", f"{type(error).__name__}: {error}", path) from None


def load_media(
    source: str | os.PathLike | bytes,
    root: str | os.PathLike,
    contract: MediaContract,
    *,
    kind: str = "video",
    start: float | None = None,
    end: float | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
    isolate: bool = False,
) -> Clip | MediaError:
    """What the pipeline calls per record: a Clip, or the MediaError to be quarantined; never raises
    for bad input. kind is the record's data_type, "video" or "image". With isolate, decoding runs
    in a process of its own that is killed past its limits of time and memory (about 0.3 s per clip;
    for media of unknown origin)."""
    if kind not in ("video", "image"):
        raise ValueError(f"load_media: kind is 'video' or 'image', got {kind!r}")
    try:
        if isolate:
            frames, *rest = read_isolated(source, root, contract, kind, start, end, limits)
            return Clip(frames.transpose(0, 3, 1, 2), *rest)
        if kind == "image":
            return read_image(source, contract, root=root, limits=limits)
        return read_video(source, contract, start, end, root=root, limits=limits)
    except MediaError as error:
        return error
