"""Which frames are taken and how large they become, as in qwen-vl-utils: arithmetic alone.

The reader and the probe call the same functions, so that what is measured is what is loaded.
"""

import math
from typing import NamedTuple

import numpy as np

from videorft_jax.data.media.contract import MediaContract, MediaError

MAX_ASPECT = 200  # qwen-vl-utils MAX_RATIO
RESIZED_TOKENS = (4, 16384)  # qwen-vl-utils' bounds where a part names its own size


def target_size(
    height: int, width: int, num_frames: int, contract: MediaContract, image: bool = False
) -> tuple[int, int]:
    """(height, width) after the resize; sides are multiples of contract.factor.

    The arithmetic is that of qwen-vl-utils (fetch_video, fetch_image, smart_resize): Python's
    round half to even, then floor when too large and ceil when too small, so that the result can
    lie a little outside the bounds. A frame's upper bound also shrinks with total_pixels / n * 2
    but never below 1.05 * min_pixels. Where the contract names a size, that one is rounded within
    bounds of its own, and the size of the source does not matter. A contract with a budget for the
    whole clip has the arithmetic of transformers' processor. Raises MediaError aspect_ratio above
    200.
    """
    factor = contract.factor
    if contract.resized_height is not None and contract.resized_width is not None:
        height, width = contract.resized_height, contract.resized_width
        least, most = (tokens * factor**2 for tokens in RESIZED_TOKENS)
    elif contract.budget == "clip" and not image:
        return _size_in_clip(height, width, num_frames, contract)
    elif image:
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


def _size_in_clip(height, width, num_frames, contract):
    """(height, width) such that all frames together keep to the budget: `smart_resize` of
    transformers' processor, which counts the frames rounded to whole pairs in the comparison and as
    they are in the scale."""
    factor, step = contract.factor, contract.temporal_patch_size
    if min(height, width) < factor:  # first scaled up to the unit
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError("aspect_ratio", f"{width}x{height} is beyond {MAX_ASPECT}:1")
    rows, columns = (round(side / factor) * factor for side in (height, width))
    frames = round(num_frames / step) * step
    most = min(contract.total_pixels, num_frames * contract.max_pixels)
    if frames * rows * columns > most:
        shrink = math.sqrt(num_frames * height * width / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif frames * rows * columns < contract.min_pixels:
        grow = math.sqrt(contract.min_pixels / (num_frames * height * width))
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
    """How many of `total` frames are taken: always even under the rule of qwen-vl-utils
    (smart_nframes), any number from two under that of transformers' processor. Raises MediaError
    too_few_frames when the clip cannot give them."""
    step = contract.temporal_patch_size
    if contract.sampling == "hf":
        num = contract.num_frames or int(total / rate * contract.fps)
        if contract.num_frames is None:
            num = min(max(num, contract.min_frames), contract.max_frames, total)
    elif contract.num_frames is not None:
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
    """int64 [num]: round(linspace(first, last, num)), both ends included.

    With an even `num` no half ever occurs, so that exact integers need no rounding rule. With an
    odd one NumPy's rule decides, halves to even, as in transformers' processor.
    """
    if num % 2:
        return np.linspace(first, last, num).round().astype(np.int64)
    steps = np.arange(num, dtype=np.int64) * (last - first)
    return first + (2 * steps + num - 1) // (2 * (num - 1))


class Sampling(NamedTuple):
    """The frames that a contract takes of a clip: indices int64 [n] into the frames of the file, in
    order of presentation; fps, the true rate of the sample; stamps, the seconds of each frame pair
    as the prompt writes them; times, those at which each frame is shown."""

    indices: np.ndarray
    fps: float
    stamps: tuple[float, ...]
    times: tuple[float, ...]


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
    native = rate
    first, last = frame_range(seconds, rate, start, end)
    total = last - first + 1
    if total > 1 and not has_constant_rate(seconds, rate):
        rate = (total - 1) / (seconds[last] - seconds[first])
    num = num_sampled(total, rate, contract)
    indices = sample_indices(first, last, num)
    times = indices / native if contract.stamps == "index" else seconds[indices]
    stamps = pair_times(times, contract.temporal_patch_size)
    shown = tuple(map(float, seconds[indices]))
    return Sampling(indices, float(num / total * rate), stamps, shown)


def pair_times(times: np.ndarray, size: int) -> tuple[float, ...]:
    """The middle between the first and the last frame of every `size` frames, in seconds; an
    incomplete last group repeats its last frame."""
    times = [*times, *[times[-1]] * (-len(times) % size)]
    return tuple(float((times[i] + times[i + size - 1]) / 2) for i in range(0, len(times), size))
