"""Frames cut into patches: where each patch of a frame pair stands in the windows of a batch.

The unit of vision is the frame pair. With square windows a pair is cut from its top left corner
into squares of 4 x 4 visual tokens, and the windows at the right and bottom edges leave some slots
unused. Without them the tokens of a pair fill windows of 16 row after row, and only the last window
has unused slots. Both forms need no permutation on the device and are exact for every grid, because
attention never crosses a frame pair.
"""

import functools
import itertools
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videorft_jax.models.geometry import WINDOW_TOKENS, WINDOWED_14, Geometry


class Media(NamedTuple):
    """One image or clip; its pixels are cut into slots where and when they are needed."""

    planes: Sequence[Sequence[np.ndarray]] | None  # [2 F][3] of uint8 [h, w], None once cut
    grid: tuple[int, int, int]  # frame pairs, visual tokens down, visual tokens across
    seconds_per_pair: float  # 2 / sampled fps; ignored for an image
    geometry: Geometry
    slots: np.ndarray | None = None  # uint8 [F, >= W, 64, X]
    splits: tuple[int, ...] = ()  # frame pairs, after the first, in front of which a text stands

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def num_windows(self) -> int:
        """The number of windows of each frame pair."""
        return math.prod(_window_grid(*self.grid[1:], self.geometry))

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """The grids of the stretches of visual tokens that stand together in the prompt: the whole
        clip, its parts where texts stand between them, or each frame pair where a timestamp comes
        before every one of them."""
        pairs, *frame = self.grid
        if self.geometry.timestamps:
            return [(1, *frame)] * pairs
        edges = itertools.pairwise((0, *self.splits, pairs))
        return [(end - begin, *frame) for begin, end in edges]

    def cut(self, out: np.ndarray) -> None:
        """Fills `out`, uint8 [F, >= W, 64, X] of any content: slots without a patch become 0.

        A patch holds its values in the order channel, frame, row, column, so that the scatter to
        slots moves runs of as many bytes as a patch is wide. Each pair is first brought, in the
        processor's cache, into the order in which the runs of a patch lie evenly spaced. That moves
        twice the bytes in two thirds of the time.

        For example, a pair of frames of 28 x 56 pixels has 2 x 4 patches of 14 x 14. It is brought
        into an array of 2 patch rows, 3 channels, 2 frames, 14 pixel rows and 56 columns. A run is
        the 14 bytes of one pixel row of one patch, and a patch is 3 * 2 * 14 = 84 runs.
        """
        out[:, self.num_windows :] = 0
        out = out[:, : self.num_windows]
        if self.slots is not None:
            if self.slots.ctypes.data != out.ctypes.data:
                out[...] = self.slots[:, : self.num_windows]
            return
        cut, (pairs, down, across) = self.geometry, self.grid
        num_runs = 3 * cut.temporal_patch * cut.patch  # pixel rows of a patch, over channels
        # patch row, channel, frame, row, column
        shape = (down * cut.merge, 3, cut.temporal_patch, cut.patch, across * cut.unit)
        pair = _scratch(math.prod(shape)).reshape(shape)
        frames = pair.transpose(2, 1, 0, 3, 4)
        runs = pair.view(f"V{cut.patch}").reshape(down, cut.merge, num_runs, across, cut.merge)
        moves = (_window_moves if cut.window else _plain_moves)(out, runs, self.grid, cut)
        for i in range(pairs):
            group = self.planes[cut.temporal_patch * i : cut.temporal_patch * (i + 1)]
            for frame, planes in enumerate(group):
                for channel, plane in enumerate(planes):
                    frames[frame, channel] = plane.reshape(frames.shape[2:])
            for place, part in moves:
                place[i] = part

    @property
    def patches(self) -> np.ndarray:
        """uint8 [F, W, 64, X]."""
        shape = (self.grid[0], self.num_windows, self.geometry.slots, self.geometry.patch_dim)
        out = np.empty(shape, np.uint8)
        self.cut(out)
        return out

    @property
    def hw(self) -> np.ndarray:
        """int32 [W, 64, 2], row and column of each slot's patch; 0 where unused."""
        return _slots(*self.grid[1:], self.geometry)[0]

    @property
    def valid(self) -> np.ndarray:
        """bool [W, 64], slots that hold a patch."""
        return _slots(*self.grid[1:], self.geometry)[1]

    @property
    def token_slots(self) -> np.ndarray:
        """int32 [2, num_tokens], frame pair and token slot inside it, in the prompt's order."""
        return _token_slots(self.grid, self.geometry)


_OWN = threading.local()  # Each thread keeps the memory in which it brings pairs into order.


def _scratch(size: int) -> np.ndarray:
    """uint8 [size] of any content, which the next call from this thread gives again. Fresh memory
    for every clip would have to be mapped, which costs about as much as filling it."""
    kept = getattr(_OWN, "kept", None)
    if kept is None or len(kept) < size:
        kept = _OWN.kept = np.empty(size, np.uint8)
    return kept[:size]


def _window_moves(out, runs, grid, cut):
    """(slots of all pairs, patches of one pair) to copy, for square windows: the whole windows of
    each direction and the narrower last ones. Slots at the edges are cleared."""
    pairs, down, across = grid
    side, merge, num_runs = cut.window, cut.merge, runs.shape[2]
    rows, columns = _window_grid(down, across, cut)
    windows = out.reshape(pairs, rows, columns, side, side, -1)
    windows[:, -1:, :, down - (rows - 1) * side :] = 0
    windows[:, :, -1:, :, across - (columns - 1) * side :] = 0
    # pair, window row, window column, token row, token column, patch row, patch column, run
    shape = (pairs, rows, columns, side, side, merge, merge, num_runs)
    slots = out.view(f"V{cut.patch}").reshape(shape)
    assert np.may_share_memory(slots, out)  # splitting axes never copies
    moves = []
    for row, high, num_high in _parts(down, side):
        for column, wide, num_wide in _parts(across, side):
            part = runs[row * side :, :, :, column * side :]
            part = part[: num_high * high, :, :, : num_wide * wide]
            # window row, token row, patch row, run, window column, token column, patch column
            part = part.reshape(num_high, high, merge, num_runs, num_wide, wide, merge)
            place = slots[:, row : row + num_high, column : column + num_wide, :high, :wide]
            moves.append((place, part.transpose(0, 4, 1, 5, 2, 6, 3)))
    return moves


def _plain_moves(out, runs, grid, cut):
    """As `_window_moves`, where the tokens of a pair stand row after row."""
    pairs, down, across = grid
    flat = out.reshape(pairs, -1, cut.merge**2 * cut.patch_dim)
    flat[:, down * across :] = 0
    slots = flat[:, : down * across].view(f"V{cut.patch}")
    shape = (pairs, down, across, cut.merge, cut.merge, runs.shape[2])
    places = slots.reshape(shape)
    assert np.may_share_memory(places, out)
    return [(places, runs.transpose(0, 3, 1, 4, 2))]


def _parts(tokens: int, side: int) -> list[tuple[int, int, int]]:
    """(first window, tokens in each, number of windows): the whole ones, and a narrower last."""
    whole, rest = divmod(tokens, side)
    return [(0, side, whole)] * bool(whole) + [(whole, rest, 1)] * bool(rest)


def _window_grid(down: int, across: int, cut: Geometry) -> tuple[int, int]:
    """Windows down and across a frame; without square windows all in one row."""
    if cut.window:
        return -(-down // cut.window), -(-across // cut.window)
    return 1, -(-down * across // WINDOW_TOKENS)


@functools.lru_cache(maxsize=256)
def _slots(down, across, cut):
    merge = cut.merge
    if not cut.window:
        count = _window_grid(down, across, cut)[1]
        row, column = np.divmod(np.arange(count * WINDOW_TOKENS, dtype=np.int32), across)
        inner = np.stack(np.divmod(np.arange(merge**2, dtype=np.int32), merge), -1)
        hw = np.stack([row, column], -1)[:, None] * merge + inner
        hw = hw.reshape(count, cut.slots, 2)
    else:
        rows, columns = _window_grid(down, across, cut)
        hw = np.empty((rows, columns, cut.window, cut.window, merge, merge, 2), np.int32)
        side = np.arange(max(rows, columns) * cut.window * merge, dtype=np.int32)
        side = side.reshape(-1, cut.window, merge)
        hw[..., 0] = side[:rows, None, :, None, :, None]
        hw[..., 1] = side[None, :columns, None, :, None, :]
        hw = hw.reshape(rows * columns, cut.slots, 2)
    valid = (hw[..., 0] < down * merge) & (hw[..., 1] < across * merge)
    return np.where(valid[..., None], hw, 0), valid


@functools.lru_cache(maxsize=256)
def _token_slots(grid, cut):
    pairs, down, across = grid
    slot = np.arange(down * across)
    if cut.window:
        row, column = np.divmod(slot, across)
        window = row // cut.window * -(-across // cut.window) + column // cut.window
        slot = window * WINDOW_TOKENS + row % cut.window * cut.window + column % cut.window
    pair = np.repeat(np.arange(pairs), down * across)
    return np.stack([pair, np.tile(slot, pairs)]).astype(np.int32)


def token_grid(height: int, width: int, geometry: Geometry = WINDOWED_14) -> tuple[int, int]:
    """The number of visual tokens down and across a frame of `height` x `width` pixels. Raises
    ValueError when the sides are no multiples of a token's."""
    unit = geometry.unit
    if height % unit or width % unit or not height or not width:
        raise ValueError(
            f"frame of {height}x{width} pixels: sides must be multiples of {unit}; resize it first"
        )
    return height // unit, width // unit


def num_windows(height: int, width: int, geometry: Geometry = WINDOWED_14) -> int:
    """The number of windows of 16 visual tokens that hold a frame of `height` x `width` pixels."""
    return math.prod(_window_grid(*token_grid(height, width, geometry), geometry))


def make_media(
    frames: np.ndarray, fps: float | None = None, geometry: Geometry = WINDOWED_14
) -> Media:
    """Frames, uint8 [n, h, w, 3], as pairs.

    `fps` is the sampled rate of a clip; None marks an image. Raises ValueError for other arrays.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}; expected uint8 [n, h, w, 3] with n >= 1"
        )
    return pair_planes(frames.transpose(0, 3, 1, 2), fps, geometry)


def pair_planes(
    planes: Sequence[Sequence[np.ndarray]], fps: float | None, geometry: Geometry = WINDOWED_14
) -> Media:
    """As `make_media`, of red, green and blue of each frame, [n][3] of uint8 [h, w].

    A single frame is shown twice and an odd count repeats the last frame, as Hugging Face's
    processors do.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"sampled fps is {fps}; it must be positive, or None for an image")
    size = geometry.temporal_patch
    planes = [*planes, planes[-1]] if len(planes) % size else planes
    grid = (len(planes) // size, *token_grid(*planes[0][0].shape, geometry))
    return Media(planes, grid, 0.0 if fps is None else size / fps, geometry)
