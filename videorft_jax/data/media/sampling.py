"""Which frames are taken and how large they become, as in qwen-vl-utils: arithmetic alone.

The reader and the probe call the same functions, so that what is measured is what is loaded.
"""

import math
from typing import NamedTuple

import numpy as np

from videorft_jax.data.media.contract import MediaContract, MediaError

MAX_ASPECT = 200  # qwen-vl-utils MAX_RATIO


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


class Sampling(NamedTuple):
    """The frames that a contract takes of a clip: indices int64 [n] into the frames of the file, in
    order of presentation, and fps, the true rate of the sample."""

    indices: np.ndarray
    fps: float


def sample_frames(
    seconds: np.ndarray,
    rate: float,
    contract: MediaContract,
    start: float | None = None,
    end: float | None = None,
) -> Sampling:
    """Samples [start, end] of a clip whose frames are shown at `seconds`, float64 [num_frames].

    rate: native frames per second of the whole file. Where the rate varies, the range has a rate of
    its own, by which the number of frames and their fps are counted. Raises MediaError empty_range
    and too_few_frames.
    """
    first, last = frame_range(seconds, rate, start, end)
    total = last - first + 1
    if total > 1 and not has_constant_rate(seconds, rate):
        rate = (total - 1) / (seconds[last] - seconds[first])
    num = num_sampled(total, rate, contract)
    return Sampling(sample_indices(first, last, num), float(num / total * rate))
