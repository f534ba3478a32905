"""The mathematics of training: log-probabilities and losses of token arrays.

No model, no config, no I/O. The head is applied here, to the positions that need it and a chunk at
a time: logits of a whole row of 8,000 tokens and 152,000 words would take 4.9 GB.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

CHUNK = 512  # tokens of a row whose logits are alive at once


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and the entropy of its distribution, float32 [B, T].

    hidden [B, T, D] are the states that predict targets int32 [B, T]; head [V, D]. Only where
    mask, bool [B, T], is True is the head applied; elsewhere both results are 0. Within a row
    wanted positions are gathered to the front, so that whole chunks without one are skipped; each
    chunk's logits are made again in the backward pass. Log-sum-exp is in float32.
    """
    length = hidden.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    order = jnp.argsort(~mask, axis=1, stable=True)
    head = _gathered(head)

    def to_front(x):
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def score(hidden, targets):
        logits = jnp.einsum("BTD,VD->BTV", hidden, head, preferred_element_type=jnp.float32)
        logits = logits / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        mean_logit = (jax.nn.softmax(logits, axis=-1) * logits).sum(-1)
        return picked - total, total - mean_logit

    def skip(hidden, targets):
        nothing = jnp.zeros(targets.shape, jnp.float32)
        return nothing, nothing

    @jax.checkpoint
    def step(carry, parts):
        hidden, targets, mask = parts
        return carry, jax.lax.cond(mask.any(), score, skip, hidden, targets)

    parts = to_front(hidden), to_front(targets), to_front(mask)
    _, scores = jax.lax.scan(step, None, parts)
    back = jnp.argsort(order, axis=1)

    def restore(x):  # [chunks, B, chunk] -> [B, T]
        x = jnp.moveaxis(x, 0, 1).reshape(hidden.shape[0], -1)[:, :length]
        return jnp.where(mask, jnp.take_along_axis(x, back, axis=1), 0.0)

    return restore(scores[0]), restore(scores[1])


def _gathered(head):
    """Gathers the head over fsdp once, before the loop over chunks, not in each of its turns."""
    if jax.sharding.get_abstract_mesh().empty:
        return head
    return jax.lax.with_sharding_constraint(head, P("tensor", None))


def shift(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Targets and mask [B, T] aligned with the position that predicts them: token t at t - 1."""
    return jnp.roll(tokens, -1, axis=1), jnp.roll(mask, -1, axis=1).at[:, -1].set(False)


def legacy_labels(tokens: jax.Array, segment_ids: jax.Array, image_id: int) -> jax.Array:
    """The targets of the original, bool [B, T]: every token but padding and image pads.

    System prompt, question and the clip's own pad tokens are learnt too, more than half of the
    targets of a video sample. For comparison with its results; nobody wants it otherwise.
    """
    same = segment_ids == jnp.roll(segment_ids, 1, axis=1)
    same = same.at[:, 0].set(False)  # nothing predicts the first token
    return same & (segment_ids > 0) & (tokens != image_id)


def sft_loss(hidden, head, tokens, loss_mask, num_targets, *, chunk: int = CHUNK):
    """Cross-entropy of the targets, divided by `num_targets`, a scalar.

    hidden [B, T, D], head [V, D], tokens int32 [B, T], loss_mask bool [B, T]. `num_targets` counts
    those of the whole step, of which these rows may be a part, so that neither accumulation nor
    packing changes the loss. Returns the loss and its
    metrics: the mean entropy of the predicting distributions, in nats.
    """
    targets, mask = shift(tokens, loss_mask)
    logprobs, entropy = token_logprobs(hidden, head, targets, mask, chunk=chunk)
    return -logprobs.sum() / num_targets, {"entropy": entropy.sum() / num_targets}
