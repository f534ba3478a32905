"""One completion that calls tools: its tokens and those of results, in the order in which the model
reads them. NumPy only."""

from typing import Any

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.layout import make_sample
from videorft_jax.data.batch.patches import Media
from videorft_jax.models.geometry import WINDOW_TOKENS
from videorft_jax.rollout.tools import Reply


class Transcript:
    """What follows the prompt in one completion.

    row, number: the prompt and the number of the completion. following: position of the first token
    behind the prompt. rule: that of `layout.mrope_positions`.
    """

    def __init__(self, row: int, number: int, following: int, rule: str):
        self.row, self.number, self._rule = row, number, rule
        self._following = following
        self.tokens = np.zeros(0, np.int32)
        self.is_own = np.zeros(0, bool)
        self.positions = np.zeros((3, 0), np.int32)
        # Frame pair among those of `media`, and token slot inside it; -1 is text.
        self.visual_slot = np.zeros((2, 0), np.int32)
        self.media: list[Media] = []
        self.calls: list[dict[str, Any]] = []
        self.logprobs, self.truncation = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self.last_turn = np.zeros(0, np.int32)
        self.stopped = self.failed = False

    @property
    def num_drawn(self) -> int:
        """Tokens that the model drew."""
        return len(self.logprobs)

    @property
    def num_pairs(self) -> int:
        """Frame pairs of all results."""
        return sum(media.grid[0] for media in self.media)

    @property
    def drawn(self) -> np.ndarray:
        """The tokens that the model drew, one turn behind the other."""
        return self.tokens[self.is_own]

    def add_turn(self, tokens, logprobs, truncation, stopped: bool, failed: bool) -> None:
        """Appends what the model drew in one turn."""
        places = self._following + np.arange(len(tokens), dtype=np.int32)
        self._append(tokens, True, np.broadcast_to(places, (3, len(tokens))))
        self.logprobs = np.concatenate([self.logprobs, logprobs])
        self.truncation = np.concatenate([self.truncation, truncation])
        self.last_turn, self.stopped, self.failed = np.asarray(tokens), stopped, failed

    def add_reply(self, reply: Reply) -> None:
        """Appends the result of the call with which the last turn ended."""
        laid = make_sample(
            reply.tokens,
            np.zeros(len(reply.tokens), bool),
            list(reply.starts),
            list(reply.media),
            self._rule,
        )
        slots = laid.visual_slot.copy()
        slots[0] += np.where(slots[0] >= 0, self.num_pairs, 0).astype(np.int32)
        self._append(laid.tokens, False, self._following + laid.positions, slots)
        self.media += reply.media

    def _append(self, tokens, is_own, positions, slots=None):
        count = len(tokens)
        slots = np.full((2, count), -1, np.int32) if slots is None else slots
        self.tokens = np.concatenate([self.tokens, np.asarray(tokens, np.int32)])
        self.is_own = np.concatenate([self.is_own, np.full(count, is_own)])
        self.positions = np.concatenate([self.positions, positions.astype(np.int32)], axis=1)
        self.visual_slot = np.concatenate([self.visual_slot, slots], axis=1)
        if count:  # A text ends every turn and every result, and its three positions are equal.
            self._following = int(self.positions[0, -1]) + 1

    def find_slots(self, first_pair: int, windows: int) -> np.ndarray:
        """int32 [E], which visual token of the row each token is, where the frame pairs of this
        completion begin at `first_pair` of the row; -1 is text."""
        pair, slot = self.visual_slot
        return np.where(slot >= 0, (pair + first_pair) * windows * WINDOW_TOKENS + slot, -1)

    def put_media(self, first_pair: int, patches, patch_valid, patch_hw) -> None:
        """Writes the frame pairs of the results into arrays [pairs, W, ...] of one row, from
        `first_pair` on."""
        pair = first_pair
        for item in self.media:
            span = slice(pair, pair + item.grid[0])
            item.cut(patches[span])
            patch_valid[span, : item.num_windows] = item.valid
            patch_hw[span, : item.num_windows] = item.hw
            pair = span.stop


def extend_prompts(batch: Batch, transcripts: list[Transcript], length: int, pairs: int) -> Batch:
    """One row for each transcript: its prompt, and behind it everything of the transcript.

    batch: the prompts, whose row `transcript.row` is each one's. length: tokens of a row. pairs:
    frame pairs that results may have, behind those of the prompt. Raises ValueError where a row is
    too short.
    """
    rows = [one.row for one in transcripts]
    first, windows = batch.patches.shape[1:3]
    num_prompt = batch.tokens.shape[1]

    def wider(leaf, count, fill, axis=1):
        pad = [(0, 0)] * leaf.ndim
        pad[axis] = (0, count - leaf.shape[axis])
        return np.pad(leaf[rows], pad, constant_values=fill)

    size = max(length, num_prompt)
    made = Batch(
        tokens=wider(batch.tokens, size, 0),
        segment_ids=wider(batch.segment_ids, size, 0),
        positions=wider(batch.positions, size, 0, axis=2),
        loss_mask=wider(batch.loss_mask, size, False),
        visual_index=wider(batch.visual_index, size, -1),
        patches=wider(batch.patches, first + pairs, 0),
        patch_valid=wider(batch.patch_valid, first + pairs, False),
        patch_hw=wider(batch.patch_hw, first + pairs, 0),
    )
    for row, one in enumerate(transcripts):
        start = int((made.segment_ids[row] > 0).sum())
        span = slice(start, start + len(one.tokens))
        if span.stop > size or one.num_pairs > pairs:
            raise ValueError(
                f"turns: {span.stop} tokens and {one.num_pairs} frame pairs do not fit a row of "
                f"{size} and {pairs}"
            )
        made.tokens[row, span], made.segment_ids[row, span] = one.tokens, 1
        made.positions[row, :, span] = one.positions
        made.visual_index[row, span] = one.find_slots(first, windows)
        one.put_media(first, made.patches[row], made.patch_valid[row], made.patch_hw[row])
    return made
