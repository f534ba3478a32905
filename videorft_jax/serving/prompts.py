"""Runs prompts, and keeps the clips and prompts that the next request may hold again."""

import collections
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.rollout.requests import check_request
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.programs import Programs, Prompt

_MULTIPLE = 64  # the least step between the lengths that prompts are padded to


class Laid(NamedTuple):
    """A chat as arrays of NumPy, ready to run."""

    batch: Batch
    num_tokens: int
    digest: bytes  # A digest of tokens and pixels.
    media: bytes  # A digest of the pixels alone.


def round_up(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20 ... that is not below `count`, at
    most a quarter more, so that few shapes are compiled."""
    step = max(1, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


def lay_out(model, chat, max_prompt: int) -> Laid:
    """One chat as a checked batch of one row, padded to a shape that others share.

    model: of `videorft_jax.load`. Raises Refused for a prompt that is too long, ValueError for
    what the model's `prepare` refuses.
    """
    batch = model.prepare([chat])
    count = int((batch.segment_ids > 0).sum())
    if count > max_prompt:
        raise Refused(
            400, f"the prompt has {count} tokens, at most {max_prompt} are taken; shorten it, or "
            "ask for fewer frames or pixels", "messages", "context_length_exceeded",
        )  # fmt: skip
    pairs = batch.patches.shape[1]
    spare = (round_up(pairs) if pairs else 0) - pairs  # more frame pairs move no index

    def widen(leaf):
        return np.pad(leaf, [(0, 0), (0, spare)] + [(0, 0)] * (leaf.ndim - 2))

    batch = batch._replace(
        patches=widen(batch.patches),
        patch_valid=widen(batch.patch_valid),
        patch_hw=widen(batch.patch_hw),
    )
    length = round_up(-(-count // _MULTIPLE)) * _MULTIPLE
    sampling = model_sampling(model, 1)
    batch, *_ = check_request(batch, [0], None, model.config, sampling, (length,), 0, 0)
    media = _digest(batch.patches, batch.patch_valid, batch.patch_hw)
    digest = _digest(batch.tokens, batch.positions, batch.visual_index) + media
    return Laid(batch, count, digest, media)


def model_sampling(model, max_new_tokens: int):
    """The stop, pad and forbidden ids of a model."""
    return make_sampling(model.config, model.tokenizer, max_new_tokens=max_new_tokens)


def _digest(*arrays) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(f"{array.shape}{array.dtype}".encode())
        found.update(array)
    return found.digest()


class Kept:
    """The results that were used last, up to `limit` bytes of them."""

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self._entries: collections.OrderedDict[bytes, tuple[int, Any]] = collections.OrderedDict()

    def get(self, name: bytes):
        """The result of this name, or None."""
        if name not in self._entries:
            return None
        self._entries.move_to_end(name)
        return self._entries[name][1]

    def put(self, name: bytes, result) -> None:
        """Keeps a result and drops those that were used least recently."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(result))
        if size > self.limit:
            return
        self._entries[name] = (size, result)
        self.held += size
        while self.held > self.limit:
            self.held -= self._entries.popitem(last=False)[1][0]


class Prompts:
    """Runs prompts of one model; a prompt or a clip that is still kept is not run again."""

    def __init__(self, programs: Programs, params, cache_bytes: int):
        self.programs, self.params = programs, params
        self.prompts, self.clips = Kept(cache_bytes // 2), Kept(cache_bytes // 2)
        self.reused_prompts = self.reused_clips = 0

    def run(self, laid: Laid) -> tuple[Prompt, bool]:
        """The prompt as the batch takes it, and whether it was kept from before."""
        if (kept := self.prompts.get(laid.digest)) is not None:
            self.reused_prompts += 1
            return kept, True
        visual = None
        if laid.batch.patches.size:
            visual = self.clips.get(laid.media)
            self.reused_clips += visual is not None
            if visual is None:
                visual = self.programs.encode(self.params, laid.batch)
                self.clips.put(laid.media, visual)
        bare = laid.batch._replace(patches=laid.batch.patches[:, :0])
        prompt = self.programs.run_prompt(self.params, bare, visual)
        self.prompts.put(laid.digest, prompt)
        return prompt, False
