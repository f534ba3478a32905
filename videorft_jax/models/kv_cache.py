"""The two-part cache of keys and values that decoding reads.

The prompt's keys and values are stored once per row and shared by its R completions, and each
completion has a suffix of its own. Both are head-major, [.., K, S, H], so that a layer's part of
the cache goes from memory into the matrix product without being copied.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from videorft_jax.models.int8 import Int8, quantise


class KVCache(NamedTuple):
    """Keys and values of every layer; `Int8` ones have one scale per token and head. Where devices
    share a head, each keeps a part of the places, and S and C are smaller; see `attention.pieces`.
    """

    prefix_k: jax.Array | Int8  # [L, B, K, S, H]
    prefix_v: jax.Array | Int8
    prefix_valid: jax.Array  # bool [B, S]
    suffix_k: jax.Array | Int8  # [L, B, R, K, C, H]
    suffix_v: jax.Array | Int8


def write(suffix, new, layer, index, copies: int):
    """The suffix [L, B, R, K, C, H] with `new` [B, R, K, H] in place of one column of a layer; of
    `copies` devices that share a head only the one that keeps the place writes it."""
    if isinstance(suffix, Int8):
        new = quantise(new, -1, keep=False)
    start = (layer, 0, 0, 0, index // copies if copies > 1 else index, 0)

    def in_order(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    def put(old, column):  # a scale has no H
        column = column[None, :, :, :, None]
        if copies > 1:
            present = jax.lax.dynamic_slice(old, start[: old.ndim], column.shape)
            keeps = jnp.arange(old.shape[3]) % copies == index % copies
            column = jnp.where(jnp.expand_dims(keeps, range(1, old.ndim - 3)), column, present)
        new = jax.lax.dynamic_update_slice(old, column, start[: old.ndim])
        # Without this XLA for TPU lays the cache out for this write and transposes it to read it.
        # On other platforms the constraint would gather the cache from all devices.
        return jax.lax.platform_dependent(new, tpu=in_order, default=lambda x: x)

    return jax.tree.map(put, suffix, new)
