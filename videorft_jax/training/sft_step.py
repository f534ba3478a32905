"""The loss of supervised fine-tuning and its compiled step, apart from any data.

The planner compiles the same programs for machines that are not here.
"""

import jax.numpy as jnp

from videorft_jax import losses
from videorft_jax.models.qwen2_5_vl import model as vlm
from videorft_jax.training.step import head_chunk, make_step
from videorft_jax.training.weights import Weights


def make_sft_loss(config, weights: Weights):
    """(loss, totals) for `make_step`: the mean cross-entropy of the assistant's tokens."""
    image = weights.model.token_ids.image

    def mask_of(batch):
        if config.train.legacy_labels:
            return losses.legacy_labels(batch.tokens, batch.segment_ids, image)
        return batch.loss_mask

    def totals(batch):
        return jnp.maximum(mask_of(batch).sum(), 1).astype(jnp.float32)

    def loss(joined, rows, num_targets):
        model = vlm.bind(weights.model, weights.merged(joined))
        settings = {"attention": config.model.attention, "remat": config.model.remat}
        mask = mask_of(rows)
        _, predicts = losses.shift(rows.tokens, mask)
        hidden = model.hidden_states(rows, wanted=predicts, **settings)
        head = model.text.output_weight
        chunk = head_chunk(config.model.attention)
        return losses.sft_loss(hidden, head, rows.tokens, mask, num_targets, chunk=chunk)

    return loss, totals


def make_sft_step(config, weights: Weights, optimizer, shardings):
    """Compiles the step of SFT, `(state, batch) -> (state, metrics)`; see `make_step`."""
    loss, totals = make_sft_loss(config, weights)
    return make_step(
        loss,
        totals,
        optimizer,
        dtype=jnp.dtype(config.model.dtype),
        accumulate=config.train.accumulate,
        ema_decay=config.optim.ema_decay,
        shardings=shardings,
    )
