"""The compiled programs that run prompts: whole ones, and those whose beginning was run before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models import family
from videorft_jax.models.attention.masks import Causal
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.vision_language import next_position


class Prompt(NamedTuple):
    """Prompts that were run; the running batch takes them one by one, B = 1."""

    keys: jax.Array  # [L, B, K, S, H]
    values: jax.Array
    valid: jax.Array  # bool [B, S]
    position: jax.Array  # int32 [B], M-RoPE position of the first token drawn
    logits: jax.Array  # float32 [B, V], of the first token


class PromptPrograms:
    """The programs for one model; each is compiled once for every shape that it meets."""

    def __init__(self, config: ModelConfig):
        self.config, self.plan = config, choose_plan("auto")
        self.encode = jax.jit(self._encode)
        self.assemble = jax.jit(self._assemble, static_argnums=1)
        self.gather = jax.jit(self._gather, static_argnums=1)
        self.take = jax.jit(self._take)
        self.run = jax.jit(self._run)
        self.extend = jax.jit(self._extend)

    # What follows is compiled.

    def _encode(self, params, batch: Batch):
        """Visual tokens [1, Z, E] of the pixels of a batch, whose other leaves may be None."""
        return family.bind(self.config, params).encode_vision(batch, plan=self.plan)

    def _assemble(self, parts, size: int):
        """The visual tokens of several clips one after another, as [1, size, E]."""
        whole = jnp.concatenate(parts, axis=1)
        return jnp.pad(whole, ((0, 0), (0, size - whole.shape[1]), (0, 0)))

    def _gather(self, prompts, length: int):
        """Keys and values of several prompts as rows of `length` columns, [L, B, K, length, H]."""

        def fit(leaf):
            leaf = leaf[:, :, :, :length]
            return jnp.pad(leaf, [(0, 0)] * 3 + [(0, length - leaf.shape[3]), (0, 0)])

        pairs = [[fit(leaf) for leaf in (prompt.keys, prompt.values)] for prompt in prompts]
        return [jnp.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True)]

    def _take(self, prompts: Prompt, row) -> Prompt:
        """One row of several."""

        def take(leaf, dim):
            return jax.lax.dynamic_slice_in_dim(leaf, row, 1, dim)

        caches = take(prompts.keys, 1), take(prompts.values, 1)
        return Prompt(*caches, *(take(leaf, 0) for leaf in prompts[2:]))

    def _run(self, params, batch: Batch, visual) -> Prompt:
        """Runs whole prompts, `visual` [B, Z, E] or None; nothing is read of the batch's pixels."""
        model = family.bind(self.config, params)
        x = model.embed(batch.tokens, visual, batch.visual_index)
        hidden, keys, values = model.text.prefill(
            x, batch.positions, Causal(batch.segment_ids),
            injection=model.injection(visual, batch.visual_index), plan=self.plan,
        )  # fmt: skip
        valid = batch.segment_ids > 0
        logits = self._last(model, hidden, valid.sum(1) - 1)
        return Prompt(keys, values, valid, next_position(batch), logits)

    def _extend(self, params, batch: Batch, visual, start, keys, values) -> Prompt:
        """Runs the end of prompts behind beginnings that were run before.

        batch: tokens, positions and visual_index [B, T] are those from `start` int32 [B] on,
        segment_ids [B, S] those of whole prompts; keys and values [L, B, K, S, H], read before
        `start`. visual: as in `_run`.
        """
        model, segments = family.bind(self.config, params), batch.segment_ids
        x = model.embed(batch.tokens, visual, batch.visual_index)
        hidden, keys, values = model.text.extend(
            x, batch.positions, start, keys, values, Causal(segments),
            injection=model.injection(visual, batch.visual_index),
        )  # fmt: skip
        valid = segments > 0
        last = valid.sum(1) - 1 - start
        position = jnp.take_along_axis(batch.positions[:, 0], last[:, None], axis=1)[:, 0] + 1
        return Prompt(keys, values, valid, position, self._last(model, hidden, last))

    def _last(self, model, hidden, last):
        return model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]
