"""Attention of one decoding step: one query a completion, keys in two places.

The prompt's keys and values are stored once for a whole group and each completion has a suffix of
its own, so the softmax runs over two score blocks that are never put together. `dispatch` has
attention over whole rows.
"""

import functools

import jax
import jax.numpy as jnp

from videorft_jax.models.int8 import Int8

_HIDDEN = jnp.finfo(jnp.float32).min  # finite, so that a row without keys gives no NaN


def decode_attention(q, prefix, prefix_valid, suffix, suffix_valid) -> jax.Array:
    """One new token of each completion against the shared prompt and its own suffix.

    q [B, R, N, H]; prefix: k, v [B, K, S, H] with prefix_valid bool [B, S]; suffix: k, v
    [B, R, K, C, H] with suffix_valid bool, broadcast to [B, R, C]. Keys and values may be `Int8`
    with one scale per token and head. One softmax over both parts. Returns [B, R, N, H].
    """
    return attend_partly(q, prefix, prefix_valid, suffix, suffix_valid)[0].astype(q.dtype)


def attend_partly(q, prefix, prefix_valid, suffix, suffix_valid) -> tuple[jax.Array, jax.Array]:
    """As `decode_attention`, of a part of the keys: gives what it returns, in float32, and the
    logarithm of the sum of exponentials [B, R, N, 1], by whose softmax parts are added up."""
    (prefix_k, prefix_v), (suffix_k, suffix_v) = (
        [_widen(part, dims, q.dtype) for part in pair]
        for pair, dims in ((prefix, (1, 3)), (suffix, 3))
    )
    batch, rollouts, heads, dim = q.shape
    grouped = q.reshape(batch, rollouts, prefix_k[0].shape[1], -1, dim)

    def scores(spec, keys, scale):
        products = jnp.einsum(spec, grouped, keys, preferred_element_type=jnp.float32)
        return products * (scale * dim**-0.5)

    to_prefix = scores("BRKGH,BKSH->BRKGS", *prefix_k)
    to_suffix = scores("BRKGH,BRKCH->BRKGC", *suffix_k)
    to_prefix = jnp.where(prefix_valid[:, None, None, None, :], to_prefix, _HIDDEN)
    to_suffix = jnp.where(suffix_valid[:, :, None, None, :], to_suffix, _HIDDEN)
    (to_prefix, to_suffix), peak, total = _softmax([to_prefix, to_suffix])

    def mixed(spec, weights, values, scale):
        weights = (weights * scale).astype(q.dtype)
        # XLA for CPU lacks the bfloat16 product in the other order.
        return jnp.einsum(spec, values, weights, preferred_element_type=jnp.float32)

    # Rounded once, after the sum, as where the keys are not in two parts.
    out = mixed("BKSH,BRKGS->BRKGH", to_prefix, *prefix_v)
    out += mixed("BRKCH,BRKGC->BRKGH", to_suffix, *suffix_v)
    scale = (peak + jnp.log(total)).reshape(batch, rollouts, heads, 1)
    return out.reshape(batch, rollouts, heads, dim), scale


def _softmax(parts):
    """One softmax over the concatenation of score blocks, without concatenating them, with the
    largest score and the sum of the exponentials."""
    peak = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in parts])
    weights = [jnp.exp(part - peak) for part in parts]
    total = sum(part.sum(-1, keepdims=True) for part in weights)
    return [part / total for part in weights], peak, total


def _widen(part, dims, dtype):
    """A cached part in the compute dtype, and the scale of products with it, `dims` inserted."""
    if isinstance(part, Int8):
        return part.values.astype(dtype), jnp.expand_dims(part.scale, dims).astype(jnp.float32)
    return part, 1.0
