"""A chat as arrays that share their shapes with other chats, and the names of its beginnings."""

import hashlib
from typing import NamedTuple

import numpy as np

from videorft_jax.data.batch import layout
from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.geometry import WINDOW_TOKENS
from videorft_jax.rollout.requests import check_request
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.serving.clips import Clips
from videorft_jax.serving.errors import Refused

_MULTIPLE = 64  # the least step between the lengths that prompts are padded to
STEP = 8  # tokens between two beginnings of a prompt that have a name


class Laid(NamedTuple):
    """A chat as a batch of one row of NumPy, ready to run.

    begins: names of the first STEP, 2 STEP, ... tokens; prompts that share one have the same
    tokens, positions and pixels there. clips: name and number of frame pairs of each clip.
    """

    batch: Batch
    num_tokens: int
    name: bytes
    begins: tuple[bytes, ...]
    clips: tuple[tuple[bytes, int], ...]


def round_up(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20 ... that is not below `count`, at
    most a quarter more, so that few shapes are compiled."""
    step = max(1, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


def model_sampling(model, max_new_tokens: int):
    """The stop, pad and forbidden ids of a model."""
    return make_sampling(model.config, model.tokenizer, max_new_tokens=max_new_tokens)


def lay_out(model, chat, max_prompt: int, clips: Clips) -> Laid:
    """One chat as a checked batch of one row, padded to a shape that others share.

    model: of `videorft_jax.load`. Raises Refused for a prompt that is too long, ValueError for
    what the model's `prepare` refuses.
    """
    found = []

    def read(part):
        found.append(clips.read(part))
        return found[-1].media, found[-1].stamps

    sample = model.lay_out(chat, read)
    count = len(sample.tokens)
    if count > max_prompt:
        raise Refused(
            400, f"the prompt has {count} tokens, at most {max_prompt} are taken; shorten it, or "
            "ask for fewer frames or pixels", "messages", "context_length_exceeded",
        )  # fmt: skip
    length = round_up(-(-count // _MULTIPLE)) * _MULTIPLE
    # More frame pairs move no index.
    pairs = round_up(sample.num_pairs) if sample.num_pairs else 0
    windows, geometry = sample.num_windows, model.contract.geometry
    batch = layout.pack([[sample]], length, pairs, windows, geometry=geometry)
    sampling = model_sampling(model, 1)
    batch, *_ = check_request(batch, [0], None, model.config, sampling, (length,), 0, 0)
    # A clip among wider ones has more windows, and its visual tokens stand at other places.
    names = [(b"%d %s" % (windows, clip.digest), clip.media.grid[0]) for clip in found]
    begins = tuple(_name_begins(batch, count, names, windows))
    return Laid(batch, count, begins[-1], begins[:-1], tuple(names))


def _name_begins(batch: Batch, count: int, clips, windows: int):
    """Yields the names of the first STEP, 2 STEP, ... tokens, and last that of all `count`."""
    stops = np.cumsum([pairs for _, pairs in clips], dtype=int)
    index = batch.visual_index[0, :count]
    owner = np.searchsorted(stops, index // (windows * WINDOW_TOKENS or 1), side="right")
    begin = (np.r_[0, stops] * windows * WINDOW_TOKENS)[owner]
    rows = np.stack([batch.tokens[0, :count], *batch.positions[0, :, :count],
                     np.where(index < 0, -1, index - begin)])  # fmt: skip
    rows = np.ascontiguousarray(rows.T, np.int32)
    so_far, clip = hashlib.blake2b(digest_size=16), -1
    for stop in [*range(STEP, count, STEP), count]:
        part = slice((stop - 1) // STEP * STEP, stop)
        for number in np.unique(owner[part][index[part] >= 0]):
            if number != clip:
                so_far.update(clips[number][0])
                clip = number
        so_far.update(rows[part])
        yield so_far.digest() + b"%d" % stop
