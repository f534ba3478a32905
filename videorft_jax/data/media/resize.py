"""Every frame and picture is resized here, as PyTorch does it, to the last bit.

transformers' processors and qwen-vl-utils hand uint8 frames to torchvision, whose antialiased
bicubic works in whole numbers on a processor: weights are rounded to 16 bits, sums are rounded and
cut to 0 to 255 after the widths and once more after the heights. Pillow has the same filter with
finer weights and is off by one grey level in places; scaling inside swscale is off by tens.

Whole numbers below 2^24 are exact in float32, so that the sums can be left to BLAS whatever its
order of addition, which is as fast as Pillow.
"""

import functools
import threading
from typing import NamedTuple

import numpy as np

_BLOCK = 8  # values of a resized line that one product gives
_MOST_PRODUCTS = 1 << 18  # multiplications of a product, few enough for BLAS to stay in its thread


_memory = threading.local()


class _Product(NamedTuple):
    """A product makes the values first to last of a resized line from start to stop of the line;
    weights are [stop - start, last - first]."""

    first: int
    last: int
    start: int
    stop: int
    weights: np.ndarray


def resize_planes(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a frame uint8 [h, w, 3]; returns its three planes, uint8 [3, height, width].

    Widths come first and heights second. The order matters, because values are cut to 0 to 255 in
    between: on noise the other order is off by up to 20 grey levels.
    """
    planes = np.empty((3, height, width), np.uint8)
    for plane, out in zip(frame.transpose(2, 0, 1), planes, strict=True):
        rows = len(plane)
        if plane.shape[1] != width:
            narrow = out if rows == height else _scratch("narrow", (rows, width), np.uint8)
            _resize_lines(plane, narrow)
            plane = narrow
        if rows != height:
            _resize_lines(plane.T, out.T)
        elif plane is not out:
            out[...] = plane
    return planes


def _resize_lines(lines: np.ndarray, resized: np.ndarray) -> None:
    """Resizes k lines, uint8 [k, n], into uint8 [k, size]; both lie by rows or by columns."""
    products, bias = _products(lines.shape[1], resized.shape[1])
    widest = max(item.stop - item.start for item in products)
    step = max(_MOST_PRODUCTS // (_BLOCK * widest), 1)
    order = "F" if lines.strides[0] < lines.strides[1] else "C"
    for begin in range(0, len(lines), step):
        part = lines[begin : begin + step]
        moved = _scratch("moved", part.shape, np.uint8, order)
        moved[...] = part
        np.bitwise_xor(moved, 128, out=moved)  # as int8 it is the value less 128
        values = _scratch("values", part.shape, bias.dtype, order)
        values[...] = moved.view(np.int8)
        sums = _scratch("sums", (len(part), resized.shape[1]), bias.dtype, order)
        for first, last, start, stop, weights in products:
            np.matmul(values[:, start:stop], weights, out=sums[:, first:last])
        sums += bias
        np.clip(sums, 0, 255, out=sums)
        resized[begin : begin + step] = sums  # drops the digits behind the point


def _scratch(name: str, shape: tuple[int, int], dtype, order: str = "C") -> np.ndarray:
    """An array of any content, in memory that this thread uses again under the same name.

    Fresh memory of this size comes from the operating system page by page, which takes longer than
    the work in it.
    """
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    memory = getattr(_memory, name, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, np.uint8)
        setattr(_memory, name, memory)
    return memory[:size].view(dtype).reshape(shape, order=order)


@functools.lru_cache(64)
def _products(length: int, size: int) -> tuple[list[_Product], np.ndarray]:
    """Makes the products that resize a line of `length` values to `size` values, and the bias
    [size] that is added to their sums.

    Weights have up to 22 bits behind the point. Lines are moved to -128..127 before a product and
    back by its bias, so that no sum needs more than 24 bits in all where weights have at most 16,
    which is the case down to about a quarter of the length; below it the products are in float64.
    The bias holds the half of the rounding too.
    """
    starts, weights, bits = _weights(length, size)
    dtype = np.float32 if bits <= 16 else np.float64
    products, bias = [], np.empty(size, dtype)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        start = starts[first]
        stop = max(starts[i] + len(weights[i]) for i in range(first, last))
        matrix = np.zeros((stop - start, last - first))
        for i in range(first, last):
            offset = starts[i] - start
            matrix[offset : offset + len(weights[i]), i - first] = weights[i] / 2**bits
        bias[first:last] = 128 * matrix.sum(0) + 0.5
        products.append(_Product(first, last, start, stop, matrix.astype(dtype)))
    return products, bias


def _weights(length: int, size: int) -> tuple[list[int], list[np.ndarray], int]:
    """Returns where in the line each of `size` values begins, its weights, and their bits.

    Weights are whole numbers that count 2^-bits. The filter is Keys' cubic with a = -0.5, stretched
    where the line becomes shorter; bits is the most with which every weight fits into 16 bits.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    starts, weights = [], []
    for i in range(size):
        centre = scale * (i + 0.5)
        start = max(int(centre - 2 * stretch + 0.5), 0)
        stop = min(int(centre + 2 * stretch + 0.5), length)
        x = np.abs((np.arange(start, stop) - centre + 0.5) * (1 / stretch))
        inner = (1.5 * x - 2.5) * x * x + 1
        outer = (((x - 5) * x + 8) * x - 4) * -0.5
        values = np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
        starts.append(start)
        weights.append(values / np.add.accumulate(values)[-1])
    largest, bits = max(values.max() for values in weights), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    whole = [np.trunc(values * 2**bits + np.copysign(0.5, values)) for values in weights]
    return starts, whole, bits
