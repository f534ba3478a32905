"""Log-probabilities of completions under a policy, with all completions of a prompt in one row.

The row is `[prompt | R completions]`, and a static mask lets each completion see the prompt and
itself. So clip and prompt run once, forward and backward, where a row per completion would run them
R times. Values and gradients are the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.attention.masks import SharedPrefix
from videorft_jax.models.compute_plan import ComputePlan, choose_plan
from videorft_jax.models.vision_language import VLM, next_position
from videorft_jax.ops.head import token_logprobs


class TurnLayout(NamedTuple):
    """Says where the results of calls stand in completions of several turns."""

    is_own: jax.Array  # bool [B, R, C], the model drew the token
    positions: jax.Array  # int32 [B, 3, R, C], M-RoPE
    visual_index: jax.Array  # int32 [B, R, C], which visual token of the row stands here, -1 = text


class Groups(NamedTuple):
    """Holds B prompts with R completions of at most C tokens each.

    With `turns` the completions hold the results of calls between the tokens that were drawn, and
    the frame pairs of results stand behind those of the prompt in `batch`, whose pixels are there.
    """

    batch: Batch  # one right-padded prompt per row; it has no pixels where `visual` is given
    completions: jax.Array  # int32 [B, R, C]
    lengths: jax.Array  # int32 [B, R]; a completion of length 0 takes no part
    visual: jax.Array | None = None  # visual tokens [B, Z, D], where they are already known
    turns: TurnLayout | None = None

    @property
    def present(self) -> jax.Array:
        """Tells where the tokens of completions that take part are, bool [B, R, C]."""
        return jnp.arange(self.completions.shape[-1]) < self.lengths[..., None]

    @property
    def mask(self) -> jax.Array:
        """Tells which of these tokens the model drew, bool [B, R, C]; the loss reads no others."""
        return self.present if self.turns is None else self.present & self.turns.is_own


def score_completions(
    model: VLM,
    groups: Groups,
    *,
    temperature: float = 1.0,
    plan: ComputePlan | None = None,
    remat: str = "none",
) -> tuple[jax.Array, jax.Array]:
    """Computes log-probability and entropy of each completion token, float32 [B, R, C] each.

    Both are of softmax(logits / temperature) over the whole vocabulary, as the rollout records
    them, and 0 outside `groups.mask`. The last token of the prompt predicts the first token of
    every completion, wherever padding puts the completion itself.
    """
    plan, batch, turns = plan or choose_plan(), groups.batch, groups.turns
    mask = groups.mask
    rows, rollouts, size = mask.shape
    prompt_length = batch.tokens.shape[1]
    visual = groups.visual
    if visual is None and batch.patches.size:
        visual = model.encode_vision(batch, plan=plan, remat=remat)
    valid = batch.segment_ids > 0
    prompt = model.embed(batch.tokens, visual, batch.visual_index)
    own, places, visual_index = _place_completions(model, groups, visual)
    drawn = flat = mask.reshape(rows, -1)
    if turns is not None:
        flat = groups.present.reshape(rows, -1)  # Completions read the results of calls too.
    before = model.text.before_completions(
        jnp.concatenate([prompt, own], axis=1),
        jnp.concatenate([batch.positions, places], axis=2),
        SharedPrefix(
            jnp.concatenate([valid, flat], axis=1).astype(jnp.int32), prompt_length, rollouts
        ),
        valid,
        injection=model.injection(visual, visual_index),
        plan=plan,
        remat=remat,
    )
    logprobs, entropies = token_logprobs(
        before,
        model.text.output_weight,
        groups.completions.reshape(rows, -1),
        drawn,
        temperature=temperature,
        chunk=plan.head_chunk,
    )
    return logprobs.reshape(mask.shape), entropies.reshape(mask.shape)


def _place_completions(model: VLM, groups: Groups, visual):
    """Embeddings [B, R * C, D] and positions [B, 3, R * C] of all completions of a row, and which
    visual token stands at each place, int32 [B, T] of the prompt or, with results of calls, of the
    whole row."""
    batch, turns = groups.batch, groups.turns
    rows, rollouts, size = groups.completions.shape
    tokens = groups.completions.reshape(rows, -1)
    if turns is None:
        own = model.embed(tokens, None, None)
        following = next_position(batch)
        places = jnp.tile(jnp.arange(size), rollouts) + following[:, None]
        places = jnp.broadcast_to(places[:, None], (rows, 3, rollouts * size))
        return own, places, batch.visual_index
    shown = turns.visual_index.reshape(rows, -1)
    own = model.embed(tokens, visual, shown)
    visual_index = jnp.concatenate([batch.visual_index, shown], axis=1)
    return own, turns.positions.reshape(rows, 3, -1), visual_index
