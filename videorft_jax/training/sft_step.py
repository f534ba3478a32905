"""The loss of supervised fine-tuning and its compiled step, apart from any data.

The planner compiles the same programs for machines that are not here.
"""

import jax.numpy as jnp
import optax

from videorft_jax import losses
from videorft_jax.models import family
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.step import make_step
from videorft_jax.training.weights import Weights


def make_sft_loss(options: TrainOptions, weights: Weights):
    """(loss, totals) for `make_step`: the mean cross-entropy of the assistant's tokens."""
    image, plan = weights.model.token_ids.image, choose_plan(options.model.attention)

    def mask_of(batch):
        if options.legacy_labels:
            return losses.legacy_labels(batch.tokens, batch.segment_ids, image)
        return batch.loss_mask

    def totals(batch):
        return jnp.maximum(mask_of(batch).sum(), 1).astype(jnp.float32)

    def loss(joined, rows, num_targets):
        model = family.bind(weights.model, weights.merged(joined))
        mask = mask_of(rows)
        _, predicts = losses.shift(rows.tokens, mask)
        hidden = model.hidden_states(rows, needed=predicts, plan=plan, remat=options.model.remat)
        head = model.text.output_weight
        chunk = plan.head_chunk
        return losses.sft_loss(hidden, head, rows.tokens, mask, num_targets, chunk=chunk)

    return loss, totals


def make_sft_step(
    options: TrainOptions, weights: Weights, optimizer: optax.GradientTransformation, shardings
):
    """Compiles the step of SFT, `(state, batch) -> (state, metrics)`; see `make_step`."""
    loss, totals = make_sft_loss(options, weights)
    return make_step(
        loss,
        totals,
        optimizer,
        dtype=jnp.dtype(options.model.dtype),
        accumulate=options.accumulate,
        ema_decay=options.optim.ema_decay,
        shardings=shardings,
    )
