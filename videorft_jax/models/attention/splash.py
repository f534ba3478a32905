"""Splash attention on TPU: the three masks as block-sparse Pallas kernels.

The mask by place is static, so that blocks nobody may see are skipped; padding and packing are
segment ids. A kernel is not partitionable by XLA: under a mesh it runs inside `shard_map`, rows
over (data, fsdp) and heads over tensor.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from videorft_jax.models.attention.masks import Causal, Full, Mask, SharedPrefix
from videorft_jax.models.attention.partition import per_device

_LANES = 128  # Every block is a multiple of this many tokens.
_LARGEST_BLOCK = 512


class _GroupMask(masks._ComputableMask):
    """Computes `SharedPrefix.static_mask` inside the kernel, since a stored mask of 8,448 positions
    would take 71 MB. The base class is private; splash offers no public mask of this kind."""

    def __init__(self, length: int, mask: SharedPrefix):
        self.identity = (length, mask.prompt_length, mask.completion_length)
        super().__init__((length, length), mask.static_mask)

    def __eq__(self, other):
        return isinstance(other, _GroupMask) and self.identity == other.identity

    def __hash__(self):
        return hash(self.identity)


def attention(q, k, v, mask: Mask, *, interpret: bool = False) -> jax.Array:
    """Computes attention: q [B, T, N, H], k, v [B, T, K, H] -> [B, T, N, H]; see `dispatch`.

    `interpret` runs the kernels in Python on any backend, for tests.
    """
    ids = mask.valid.astype(jnp.int32) if isinstance(mask, Full) else mask.segment_ids
    run = functools.partial(_local, mask=_Static(mask), interpret=interpret)
    return per_device(run, q, k, v, ids)


class _Static:
    """Holds the part of a mask without arrays, so that `shard_map` need not carry it."""

    def __init__(self, mask: Mask):
        self.kind = type(mask)
        if isinstance(mask, SharedPrefix):
            fields = (mask.prompt_length, mask.num_rollouts)
            shape = jax.ShapeDtypeStruct(mask.segment_ids.shape, jnp.int32)
            self.group = SharedPrefix(shape, *fields)

    def of_length(self, length: int) -> masks.Mask:
        if self.kind is SharedPrefix:
            return _GroupMask(length, self.group)
        shape = (length, length)
        return masks.CausalMask(shape) if self.kind is Causal else masks.FullMask(shape)


def _local(q, k, v, ids, *, mask, interpret):
    """Computes attention for the rows and heads that one device holds."""
    length, heads, dim = q.shape[1:]
    padding = -length % _LANES
    if padding:
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
        ids = jnp.pad(ids, ((0, 0), (0, padding)))
    block = _block(length + padding)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask.of_length(length + padding)] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",  # remat policy save_attention keeps its log-sum-exp
        interpret=interpret,
    )

    def row(q, k, v, ids):  # [N, T, H], [K, T, H], [K, T, H], [T]
        return kernel(q * np.float32(dim**-0.5).astype(q.dtype), k, v, kernels.SegmentIds(ids, ids))

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.vmap(row)(q, k, v, ids), 1, 2)[:, :length]


def _block(length: int) -> int:
    """Gives the largest multiple of 128 up to 512 that divides `length`."""
    return max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % size == 0)
