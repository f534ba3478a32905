"""Every frame and picture is resized here, as PyTorch does it, to the last bit.

transformers' processors and qwen-vl-utils hand uint8 frames to torchvision, whose antialiased
bicubic works in whole numbers on a processor: weights are rounded to 16 bits, sums are rounded and
cut to 0 to 255 after the widths and once more after the heights. Pillow has the same filter with
finer weights and is off by one grey level in places; scaling inside swscale is off by tens.

Whole numbers below 2^24 are exact in float32, so that the sums can be left to BLAS whatever its
order of addition, which is as fast as Pillow.
"""

import functools
from typing import NamedTuple

import numpy as np

_BLOCK = 16  # values of a resized line that one product gives
_MOST_PRODUCTS = 1 << 18  # multiplications of a product, few enough for BLAS to stay in its thread


class _Product(NamedTuple):
    """A product makes the values first to last of a resized line from start to stop of the line.

    weights: [last - first, stop - start]. bias: [last - first], which is added.
    """

    first: int
    last: int
    start: int
    stop: int
    weights: np.ndarray
    bias: np.ndarray


def resize_planes(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a frame uint8 [h, w, 3]; returns its three planes, uint8 [3, height, width].

    Widths come first and heights second. The order matters, because values are cut to 0 to 255 in
    between: on noise the other order is off by up to 20 grey levels.
    """
    planes = np.ascontiguousarray(frame.transpose(2, 0, 1))
    if planes.shape[2] != width:
        rows = planes.reshape(-1, planes.shape[2])
        planes = _resize_lines(rows, width).reshape(3, -1, width)
    if planes.shape[1] != height:
        planes = np.stack([_resize_lines(plane.T, height).T for plane in planes])
    return planes


def _resize_lines(lines: np.ndarray, size: int) -> np.ndarray:
    """Resizes k lines, uint8 [k, n], to uint8 [k, size] in the memory order that they have."""
    products = _products(lines.shape[1], size)
    dtype, widest = products[0].weights.dtype, max(item.stop - item.start for item in products)
    resized = np.empty_like(lines, shape=(len(lines), size))
    step = max(_MOST_PRODUCTS // (_BLOCK * widest), 1)
    for begin in range(0, len(lines), step):
        values = lines[begin : begin + step].astype(dtype)
        values -= 128
        sums = np.empty_like(values, shape=(len(values), size))
        for first, last, start, stop, weights, bias in products:
            np.matmul(values[:, start:stop], weights.T, out=sums[:, first:last])
            sums[:, first:last] += bias
        np.floor(sums, out=sums)
        np.clip(sums, 0, 255, out=sums)
        resized[begin : begin + step] = sums
    return resized


@functools.lru_cache(64)
def _products(length: int, size: int) -> list[_Product]:
    """Makes the products that resize a line of `length` values to `size` values.

    Weights have up to 22 bits behind the point. Lines are moved to -128..127 before a product and
    back by its bias, so that no sum needs more than 24 bits in all where weights have at most 16,
    which is the case down to about a quarter of the length; below it the products are in float64.
    The bias holds the half of the rounding too.
    """
    starts, weights, bits = _weights(length, size)
    dtype = np.float32 if bits <= 16 else np.float64
    products = []
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        start = starts[first]
        stop = max(starts[i] + len(weights[i]) for i in range(first, last))
        matrix = np.zeros((last - first, stop - start))
        for i in range(first, last):
            offset = starts[i] - start
            matrix[i - first, offset : offset + len(weights[i])] = weights[i] / 2**bits
        bias = 128 * matrix.sum(1) + 0.5
        products.append(
            _Product(first, last, start, stop, matrix.astype(dtype), bias.astype(dtype))
        )
    return products


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
