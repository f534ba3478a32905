"""Index arithmetic of Qwen2.5-VL in NumPy: patch slots, M-RoPE positions, visual index, rows.

The unit of vision is the frame pair. A frame pair is cut from its top left corner into windows of
8 x 8 patches; each window has 64 slots, four to a merged token, and the windows at the right and
bottom edges leave some slots unused. That form needs no permutation on the device and is exact for
every grid, because attention never crosses a frame pair.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videorft_jax.data.batch.batch import Batch

PATCH = 14  # pixels
MERGE = 2  # patches per side of a visual token
TEMPORAL_PATCH = 2  # frames per pair
UNIT = PATCH * MERGE  # pixels per side of a visual token
WINDOW = 4  # visual tokens per side of a window, 112 pixels
WINDOW_TOKENS = WINDOW**2
SLOTS = WINDOW_TOKENS * MERGE**2  # 64
PATCH_DIM = 3 * TEMPORAL_PATCH * PATCH**2  # 1176
RUNS = 3 * TEMPORAL_PATCH * PATCH  # 84 pixel rows of a patch
TOKENS_PER_SECOND = 2
MROPE_RULES = ("qwen", "hf5")


class Media(NamedTuple):
    """One image or clip; its pixels are cut into slots where and when they are needed."""

    planes: Sequence[Sequence[np.ndarray]] | None  # [2 F][3] of uint8 [h, w], None once cut
    grid: tuple[int, int, int]  # frame pairs, visual tokens down, visual tokens across
    seconds_per_pair: float  # 2 / sampled fps; ignored for an image
    slots: np.ndarray | None = None  # uint8 [F, >= W, 64, 1176]

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def windows(self) -> tuple[int, int]:
        """Windows down and across."""
        return -(-self.grid[1] // WINDOW), -(-self.grid[2] // WINDOW)

    @property
    def num_windows(self) -> int:
        return self.windows[0] * self.windows[1]

    def cut(self, out: np.ndarray) -> None:
        """Fills `out`, uint8 [F, >= W, 64, 1176] of any content: slots without a patch become 0.

        A patch row holds (channel, frame, row, column), so that the scatter to slots moves runs of
        14 bytes. Each pair is first brought, in the processor's cache, into the order in which the
        84 runs of a patch lie evenly spaced: twice the bytes in two thirds of the time.
        """
        pairs, down, across = self.grid
        rows, columns = self.windows
        out[:, rows * columns :] = 0
        out = out[:, : rows * columns]
        if self.slots is not None:
            if self.slots.ctypes.data != out.ctypes.data:
                out[...] = self.slots[:, : rows * columns]
            return
        windows = out.reshape(pairs, rows, columns, WINDOW, WINDOW, MERGE**2 * PATCH_DIM)
        windows[:, -1:, :, down - (rows - 1) * WINDOW :] = 0
        windows[:, :, -1:, :, across - (columns - 1) * WINDOW :] = 0
        # pair, window row, window column, token row, token column, patch row, patch column, run
        slots = out.view("V14").reshape(pairs, rows, columns, WINDOW, WINDOW, MERGE, MERGE, RUNS)
        assert np.may_share_memory(slots, out)  # splitting axes never copies
        # patch row, channel, frame, row, column
        pair = np.empty((down * MERGE, 3, TEMPORAL_PATCH, PATCH, across * UNIT), np.uint8)
        frames = pair.transpose(2, 1, 0, 3, 4)
        runs = pair.view("V14").reshape(down, MERGE, RUNS, across, MERGE)
        moves = []
        for row, high, num_high in _parts(down):
            for column, wide, num_wide in _parts(across):
                part = runs[row * WINDOW :, :, :, column * WINDOW :]
                part = part[: num_high * high, :, :, : num_wide * wide]
                # window row, token row, patch row, run, window column, token column, patch column
                part = part.reshape(num_high, high, MERGE, RUNS, num_wide, wide, MERGE)
                place = slots[:, row : row + num_high, column : column + num_wide, :high, :wide]
                moves.append((place, part.transpose(0, 4, 1, 5, 2, 6, 3)))
        for i in range(pairs):
            for frame, planes in enumerate(self.planes[2 * i : 2 * i + 2]):
                for channel, plane in enumerate(planes):
                    frames[frame, channel] = plane.reshape(frames.shape[2:])
            for place, part in moves:
                place[i] = part

    @property
    def patches(self) -> np.ndarray:
        """uint8 [F, W, 64, 1176]."""
        out = np.empty((self.grid[0], self.num_windows, SLOTS, PATCH_DIM), np.uint8)
        self.cut(out)
        return out

    @property
    def hw(self) -> np.ndarray:
        """int32 [W, 64, 2], row and column of each slot's patch; 0 where unused."""
        return _slots(*self.grid[1:])[0]

    @property
    def valid(self) -> np.ndarray:
        """bool [W, 64], slots that hold a patch."""
        return _slots(*self.grid[1:])[1]


def _parts(tokens: int) -> list[tuple[int, int, int]]:
    """(first window, tokens in each, number of windows): the whole ones, and a narrower last."""
    whole, rest = divmod(tokens, WINDOW)
    return [(0, WINDOW, whole)] * bool(whole) + [(whole, rest, 1)] * bool(rest)


@functools.lru_cache(maxsize=256)
def _slots(down, across):
    rows, columns = -(-down // WINDOW), -(-across // WINDOW)
    hw = np.empty((rows, columns, WINDOW, WINDOW, MERGE, MERGE, 2), np.int32)
    side = np.arange(max(rows, columns) * WINDOW * MERGE, dtype=np.int32)
    side = side.reshape(-1, WINDOW, MERGE)
    hw[..., 0] = side[:rows, None, :, None, :, None]
    hw[..., 1] = side[None, :columns, None, :, None, :]
    hw = hw.reshape(rows * columns, SLOTS, 2)
    valid = (hw[..., 0] < down * MERGE) & (hw[..., 1] < across * MERGE)
    return np.where(valid[..., None], hw, 0), valid


class Sample(NamedTuple):
    """One conversation with its pixels, not yet padded."""

    tokens: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # bool [T]
    positions: np.ndarray  # int32 [3, T]
    visual_slot: np.ndarray  # int32 [2, T], frame pair and token slot inside it, -1 = text
    media: tuple[Media, ...]

    @property
    def num_pairs(self) -> int:
        return sum(media.grid[0] for media in self.media)

    @property
    def num_windows(self) -> int:
        return max((media.num_windows for media in self.media), default=0)

    def in_one_piece(self) -> "Sample":
        """The same with the pixels of each clip in one array, to be handed to another process."""
        media = tuple(media._replace(planes=np.asarray(media.planes)) for media in self.media)
        return self._replace(media=media)


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Visual tokens down and across a frame of `height` x `width` pixels."""
    if height % UNIT or width % UNIT or not height or not width:
        raise ValueError(
            f"frame of {height}x{width} pixels: sides must be multiples of {UNIT}; resize it first"
        )
    return height // UNIT, width // UNIT


def num_windows(height: int, width: int) -> int:
    """Windows of 112 x 112 pixels that cover a frame."""
    down, across = token_grid(height, width)
    return -(-down // WINDOW) * -(-across // WINDOW)


def make_media(frames: np.ndarray, fps: float | None = None) -> Media:
    """Frames, uint8 [n, h, w, 3], as pairs.

    `fps` is the sampled rate of a clip; None marks an image.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}; expected uint8 [n, h, w, 3] with n >= 1"
        )
    return pair_planes(frames.transpose(0, 3, 1, 2), fps)


def pair_planes(planes: Sequence[Sequence[np.ndarray]], fps: float | None) -> Media:
    """As `make_media`, of red, green and blue of each frame, [n][3] of uint8 [h, w].

    A single frame is shown twice and an odd count repeats the last frame, as Hugging Face's
    processors do.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"sampled fps is {fps}; it must be positive, or None for an image")
    planes = [*planes, planes[-1]] if len(planes) % TEMPORAL_PATCH else planes
    grid = (len(planes) // TEMPORAL_PATCH, *token_grid(*planes[0][0].shape))
    return Media(planes, grid, 0.0 if fps is None else TEMPORAL_PATCH / fps)


@functools.lru_cache(maxsize=256)
def _visual_ids(grid, seconds_per_pair):
    """int32 [3, T] of the tokens of one clip, from 0; all three rise, so the last is largest."""
    pairs, down, across = grid
    interval = np.float32(TOKENS_PER_SECOND * seconds_per_pair)
    time = (np.arange(pairs, dtype=np.float32) * interval).astype(np.int32)
    ids = np.stack(np.meshgrid(time, np.arange(down), np.arange(across), indexing="ij"))
    return ids.reshape(3, -1).astype(np.int32)


@functools.lru_cache(maxsize=256)
def _visual_slots(grid):
    """int32 [2, T] of the tokens of one clip: frame pair, token slot inside it."""
    pairs, down, across = grid
    row, column = np.divmod(np.arange(down * across), across)
    window = row // WINDOW * -(-across // WINDOW) + column // WINDOW
    slot = window * WINDOW_TOKENS + row % WINDOW * WINDOW + column % WINDOW
    pair = np.repeat(np.arange(pairs), down * across)
    return np.stack([pair, np.tile(slot, pairs)]).astype(np.int32)


def mrope_positions(
    num_tokens: int, starts: list[int], media: list[Media], rule: str = "qwen"
) -> np.ndarray:
    """Time, height and width ids of a prompt, int32 [3, T].

    `starts[i]` is where the visual tokens of `media[i]` begin. Rule "qwen" is what the weights
    were trained with (transformers 4.49 to 4.51, vLLM): text goes on after the largest id of the
    clip. Rule "hf5" is transformers >= 5.18: text goes on after max(height, width), whatever the
    clip's length. Both floor the time in float32.
    """
    if rule not in MROPE_RULES:
        raise ValueError(f"mrope_rule is {rule!r}; choose one of {MROPE_RULES}")
    positions = np.empty((3, num_tokens), np.int32)
    cursor = following = 0  # next token, and the id it gets
    for start, item in zip(starts, media, strict=True):
        text = start - cursor
        if text < 0 or start + item.num_tokens > num_tokens:
            raise ValueError(
                f"visual tokens {start}..{start + item.num_tokens} do not fit a prompt of "
                f"{num_tokens} after token {cursor}; give clips in order with room for each"
            )
        positions[:, cursor:start] = following + np.arange(text)
        following += text
        ids = _visual_ids(item.grid, item.seconds_per_pair)
        cursor = start + item.num_tokens
        np.add(ids, following, out=positions[:, start:cursor])
        following += max(item.grid[1:]) if rule == "hf5" else int(ids[:, -1].max()) + 1
    positions[:, cursor:] = following + np.arange(num_tokens - cursor)
    return positions


def make_sample(
    tokens: np.ndarray,
    loss_mask: np.ndarray,
    starts: list[int],
    media: list[Media],
    rule: str = "qwen",
) -> Sample:
    """Places the clips of a conversation: positions and slots for every token of `tokens` [T]."""
    visual_slot = np.full((2, len(tokens)), -1, np.int32)
    positions = mrope_positions(len(tokens), starts, media, rule)
    pair = 0
    for start, item in zip(starts, media, strict=True):
        span = slice(start, start + item.num_tokens)
        visual_slot[:, span] = _visual_slots(item.grid)
        visual_slot[0, span] += pair
        pair += item.grid[0]
    return Sample(
        tokens=np.asarray(tokens, np.int32),
        loss_mask=np.asarray(loss_mask, bool),
        positions=positions,
        visual_slot=visual_slot,
        media=tuple(media),
    )


def pack(
    rows: list[list[Sample]],
    length: int,
    pairs: int,
    windows: int,
    patches: np.ndarray | None = None,
) -> Batch:
    """Packs samples into rows of `length` tokens, `pairs` frame pairs and `windows` windows.

    `patches` is memory for the batch's pixels, of any content; None takes new memory.

    Whole samples only, each in its own segment (1, 2, ...), 0 is padding. An empty row is all
    padding. Raises ValueError, naming the row and the numbers, when one does not fit.
    """
    shape = (len(rows), length)
    if patches is None:
        patches = np.empty((len(rows), pairs, windows, SLOTS, PATCH_DIM), np.uint8)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros((len(rows), 3, length), np.int32),
        loss_mask=np.zeros(shape, bool),
        visual_index=np.full(shape, -1, np.int32),
        patches=patches,
        patch_valid=np.zeros((len(rows), pairs, windows, SLOTS), bool),
        patch_hw=np.zeros((len(rows), pairs, windows, SLOTS, 2), np.int32),
    )
    for b, samples in enumerate(rows):
        needs = (
            sum(len(sample.tokens) for sample in samples),
            sum(sample.num_pairs for sample in samples),
            max((sample.num_windows for sample in samples), default=0),
        )
        if any(need > room for need, room in zip(needs, (length, pairs, windows), strict=True)):
            raise ValueError(
                f"row {b}: {needs[0]} tokens, {needs[1]} frame pairs, {needs[2]} windows do not "
                f"fit a row of {length}, {pairs}, {windows}; use a larger bucket"
            )
        token = pair = 0
        for segment, sample in enumerate(samples, 1):
            span = slice(token, token + len(sample.tokens))
            batch.tokens[b, span] = sample.tokens
            batch.segment_ids[b, span] = segment
            batch.positions[b, :, span] = sample.positions
            batch.loss_mask[b, span] = sample.loss_mask
            frame, slot = sample.visual_slot
            index = (frame + pair) * windows * WINDOW_TOKENS + slot
            batch.visual_index[b, span] = np.where(slot >= 0, index, -1)
            for item in sample.media:
                item.cut(patches[b, pair : pair + item.grid[0]])
                place = (b, slice(pair, pair + item.grid[0]), slice(item.num_windows))
                batch.patch_valid[place] = item.valid
                batch.patch_hw[place] = item.hw
                pair += item.grid[0]
            token = span.stop
        patches[b, pair:] = 0
    return batch
