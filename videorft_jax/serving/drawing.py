"""Draws tokens for requests that each have a temperature and a top-p of their own.

The noise is that of `rollout.sampling`, so that a request draws what `vr.generate` draws with the
same seed and settings.
"""

import jax
import jax.numpy as jnp

from videorft_jax.rollout.sampling import Draw, exponential, find_largest, order_bits

NUM_TOP = 20  # likeliest ids of a place that a request may ask for, as in OpenAI's protocol


def unpack(mask, size: int):
    """The bits of uint32 [B, ceil(V / 32)] as bool [B, V], the lowest bit first; size: V."""
    bits = (mask[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(len(mask), -1)[:, :size] > 0


def rank(logits, temperature):
    """The likeliest ids of each row of logits [B, V], and their log-probabilities, [B, NUM_TOP]."""
    divisor = jnp.where(temperature > 0, temperature, 1.0)[:, None]
    values, ids = jax.lax.top_k(logits / divisor, NUM_TOP)
    return ids, values - jax.nn.logsumexp(logits / divisor, -1, keepdims=True)


def draw_each(logits, keys, place, temperature, top_p, allowed) -> Draw:
    """Draws one token of each row.

    logits float32 [B, V]; keys uint32 [B, 2]; place int32 [B], the token's place in its completion;
    temperature float32 [B], 0 is greedy; top_p float32 [B]; allowed bool [B, V], ids that may be
    drawn. The fields of the result are [B]; its log-probability is that of softmax(logits /
    temperature) over the whole vocabulary.
    """
    failed = ~jnp.isfinite(logits).all(-1)
    divisor = jnp.where(temperature > 0, temperature, 1.0)
    scaled = jnp.where(failed[:, None], 0.0, logits) / divisor[:, None]
    peak = scaled.max(-1, keepdims=True)
    weight = jnp.exp(scaled - peak)
    total = jnp.log(weight.sum(-1)) + peak[:, 0]
    ids = jnp.arange(logits.shape[-1], dtype=jnp.uint32)
    kept = jax.lax.cond((top_p < 1).any(), _keep_nucleus, lambda s, p, a: a, scaled, top_p, allowed)
    greedy = jnp.where(allowed, scaled, -jnp.inf)

    def race():
        chance = jnp.where(kept, weight / exponential(keys, place[:, None], ids), -1.0)
        return jnp.where((temperature > 0)[:, None], chance, greedy)

    # Noise for a whole vocabulary takes longer than a layer, so that greedy batches make none.
    racing = jax.lax.cond((temperature > 0).any(), race, lambda: greedy)
    racing = jax.lax.optimization_barrier(racing)  # as in `sampling.draw`
    best = racing.max(-1, keepdims=True)
    token = jnp.where(racing == best, ids, jnp.uint32(len(ids) - 1)).min(-1)
    logprob = jnp.where(ids == token[:, None], scaled, 0.0).sum(-1) - total
    return Draw(token.astype(jnp.int32), logprob, jnp.zeros_like(total), failed)


def _keep_nucleus(scaled, top_p, allowed):
    """The likeliest allowed ids of each row that together reach its top_p, bool [B, V]."""
    scaled = jnp.where(allowed, scaled, -jnp.inf)
    order = order_bits(scaled)
    bound = order_bits(jnp.full(scaled.shape[:-1], jnp.finfo(jnp.float32).min))
    mass = jnp.where(order >= bound[:, None], jnp.exp(scaled - scaled.max(-1, keepdims=True)), 0.0)
    wanted = top_p * mass.sum(-1)

    def hold(bounds):
        return [jnp.where(order >= x[:, None], mass, 0.0).sum(-1) >= wanted for x in bounds]

    nucleus = jnp.maximum(bound, find_largest(hold, bound))
    return order >= jnp.where(top_p < 1, nucleus, bound)[:, None]
