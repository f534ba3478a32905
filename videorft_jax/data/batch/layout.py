"""Samples and rows: M-RoPE positions, the place of every visual token, and packing.

Everything here is index arithmetic in NumPy; pixels are cut in `patches`.
"""

import functools
from typing import NamedTuple

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.patches import Media
from videorft_jax.models.geometry import WINDOW_TOKENS, WINDOWED_14, Geometry

TOKENS_PER_SECOND = 2  # The temporal position of a clip in one piece counts so.
MROPE_RULES = ("qwen", "hf4", "hf5")


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


@functools.lru_cache(maxsize=256)
def _visual_ids(grid, seconds_per_pair):
    """int32 [3, T] of the tokens of one run, counted from 0."""
    pairs, down, across = grid
    interval = np.float32(TOKENS_PER_SECOND * seconds_per_pair)
    time = (np.arange(pairs, dtype=np.float32) * interval).astype(np.int32)
    ids = np.stack(np.meshgrid(time, np.arange(down), np.arange(across), indexing="ij"))
    return ids.reshape(3, -1).astype(np.int32)


def mrope_positions(
    num_tokens: int, starts: list[int], media: list[Media], rule: str = "qwen"
) -> np.ndarray:
    """Time, height and width ids of a prompt, int32 [3, T].

    `starts` says where each run of visual tokens begins, in order: one per image or clip, or one
    per frame pair where timestamps stand between them (`Media.runs`). Rule "qwen" is what the
    weights were trained with (transformers 4.49 to 4.51, vLLM): text goes on after the largest id
    of the run. Rule "hf4" is transformers 4.52 to 5.2: the same, with the seconds of a frame pair
    cut to a whole number first. Rule "hf5" is transformers >= 5.18: text goes on after
    max(height, width), however long the run is. For a run of one frame pair all are the same, and
    all floor the time in float32. Raises ValueError for another rule, and for runs that do not fit
    the prompt.
    """
    if rule not in MROPE_RULES:
        raise ValueError(f"mrope_rule is {rule!r}; choose one of {MROPE_RULES}")
    runs = [(run, item.seconds_per_pair) for item in media for run in item.runs]
    if len(starts) != len(runs):
        raise ValueError(
            f"{len(starts)} starts for {len(runs)} runs of visual tokens; give one each"
        )
    positions = np.empty((3, num_tokens), np.int32)
    cursor = following = 0  # next token, and the id it gets
    for start, (grid, seconds) in zip(starts, runs, strict=True):
        text, count = start - cursor, grid[0] * grid[1] * grid[2]
        if text < 0 or start + count > num_tokens:
            raise ValueError(
                f"visual tokens {start}..{start + count} do not fit a prompt of "
                f"{num_tokens} after token {cursor}; give clips in order with room for each"
            )
        positions[:, cursor:start] = following + np.arange(text)
        following += text
        ids = _visual_ids(grid, int(seconds) if rule == "hf4" else seconds)
        cursor = start + count
        np.add(ids, following, out=positions[:, start:cursor])
        following += max(grid[1:]) if rule == "hf5" else int(ids.max()) + 1
    positions[:, cursor:] = following + np.arange(num_tokens - cursor)
    return positions


def make_sample(
    tokens: np.ndarray,
    loss_mask: np.ndarray,
    starts: list[int],
    media: list[Media],
    rule: str = "qwen",
) -> Sample:
    """Places the clips of a conversation: positions and slots for every token of `tokens` [T].
    `starts` and `rule` as in `mrope_positions`, which also says what is refused."""
    visual_slot = np.full((2, len(tokens)), -1, np.int32)
    positions = mrope_positions(len(tokens), starts, media, rule)
    pair, starts = 0, list(starts)
    for item in media:
        slots, done = item.token_slots, 0
        for grid in item.runs:
            count, start = grid[0] * grid[1] * grid[2], starts.pop(0)
            visual_slot[:, start : start + count] = slots[:, done : done + count]
            visual_slot[0, start : start + count] += pair
            done += count
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
    geometry: Geometry = WINDOWED_14,
) -> Batch:
    """Packs samples into rows of `length` tokens, `pairs` frame pairs and `windows` windows.

    Samples stay whole, each in a segment of its own (1, 2, ...), and 0 is padding. An empty row is
    all padding. `patches` is memory for the batch's pixels, of any content; None takes new memory.
    Raises ValueError, naming the row and the numbers, when a row does not fit.
    """
    shape, slots = (len(rows), length), (len(rows), pairs, windows, geometry.slots)
    if patches is None:
        patches = np.empty((*slots, geometry.patch_dim), np.uint8)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros((len(rows), 3, length), np.int32),
        loss_mask=np.zeros(shape, bool),
        visual_index=np.full(shape, -1, np.int32),
        patches=patches,
        patch_valid=np.zeros(slots, bool),
        patch_hw=np.zeros((*slots, 2), np.int32),
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
