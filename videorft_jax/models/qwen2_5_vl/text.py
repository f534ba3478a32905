"""The decoder with M-RoPE, and the two-part KV cache that decoding reads.

The prompt's keys and values are stored once per row and shared by its R completions; each
completion has a suffix of its own. Both are head-major, [.., K, S, H], so that a layer's part of
the cache goes from memory into the matrix product, without a copy of it being made.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from videorft_jax.models import layers
from videorft_jax.models.attention import chunked as attention_chunked
from videorft_jax.models.attention.dispatch import Mask, attention, decode_attention, resolve
from videorft_jax.models.int8 import Int8, quantise
from videorft_jax.models.qwen2_5_vl.config import TextConfig
from videorft_jax.ops.masked import CPU_CHUNK, at_wanted


class KVCache(NamedTuple):
    """Keys and values of every layer; `Int8` ones have one scale per token and head."""

    prefix_k: jax.Array | Int8  # [L, B, K, S, H]
    prefix_v: jax.Array | Int8
    prefix_valid: jax.Array  # bool [B, S]
    suffix_k: jax.Array | Int8  # [L, B, R, K, C, H]
    suffix_v: jax.Array | Int8


class TextAttention(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        count, dim, head_dim = config.num_layers, config.dim, config.head_dim
        heads, kv_heads = config.num_heads, config.num_kv_heads
        self.q = layers.weight(rngs, count, dim, heads, head_dim)
        self.q_bias = layers.zeros(count, heads, head_dim)
        self.k = layers.weight(rngs, count, dim, kv_heads, head_dim)
        self.k_bias = layers.zeros(count, kv_heads, head_dim)
        self.v = layers.weight(rngs, count, dim, kv_heads, head_dim)
        self.v_bias = layers.zeros(count, kv_heads, head_dim)
        self.o = layers.weight(rngs, count, heads, head_dim, dim)

    def project(self, x, cos, sin):
        """x [..., T, D] -> rotated q [..., T, N, H], rotated k and plain v [..., T, K, H]."""
        q = layers.linear(x, self.q[...], self.q_bias[...])
        k = layers.linear(x, self.k[...], self.k_bias[...])
        v = layers.linear(x, self.v[...], self.v_bias[...])
        return layers.rotate(q, cos, sin), layers.rotate(k, cos, sin), v

    def output(self, out):
        return layers.linear(checkpoint_name(out, "attention"), self.o[...], inner=2)


class TextBlocks(nnx.Module):
    """L pre-norm blocks; called on one slice of them."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.attn_norm = layers.ones(config.num_layers, config.dim)
        self.mlp_norm = layers.ones(config.num_layers, config.dim)
        self.attn = TextAttention(config, rngs)
        self.mlp = layers.Mlp(
            config.num_layers, config.dim, config.mlp_dim, biased=False, rngs=rngs
        )
        self.eps = config.norm_eps

    def __call__(self, x, cos, sin, attend):
        """`attend(q, k, v) -> (mixed values, anything)`; returns x and that anything."""
        with jax.named_scope("attention"):
            normed = layers.rms_norm(x, self.attn_norm[...], self.eps)
            out, extra = attend(*self.attn.project(normed, cos, sin))
            x = x + self.attn.output(out)
        with jax.named_scope("mlp"):
            x = x + self.mlp(layers.rms_norm(x, self.mlp_norm[...], self.eps))
        return layers.shard_rows(x), extra


class Text(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = layers.weight(rngs, config.vocab_size, config.dim)
        self.layers = TextBlocks(config, rngs)
        self.final_norm = layers.ones(config.dim)
        if not config.tied:
            self.head = layers.weight(rngs, config.vocab_size, config.dim)

    @property
    def output_weight(self) -> jax.Array:
        """The head [V, D]; the embedding itself where the two are tied."""
        return (self.embed if self.config.tied else self.head)[...]

    def __call__(
        self, x, positions, mask: Mask, *, wanted=None, attention_path="auto", remat="none"
    ):
        """Embeddings x [B, T, D], positions int32 [B, 3, T] -> final hidden states [B, T, D].

        Where `wanted`, bool [B, T], is given, only these are asked for. On the CPU's path the last
        layer then leaves out the others, and they are 0.
        """
        cos, sin = self._rotary(positions, x.dtype)
        # In a short row there is little to leave out.
        partly = wanted is not None and x.shape[1] > 2 * CPU_CHUNK
        partly = partly and resolve(attention_path) == "chunked"

        def step(block, x, _):
            with jax.named_scope("text_block"):
                return block(
                    x, cos, sin, lambda q, k, v: (attention(q, k, v, mask, attention_path), None)
                )

        count = self.config.num_layers - partly
        x, _ = layers.scan_layers(
            step, self.layers, layers.shard_rows(x), None, remat, attention_path, count=count
        )
        if partly:
            x = self._last_layer(x, cos, sin, mask, wanted)
        return layers.rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def _last_layer(self, x, cos, sin, mask, wanted):
        """Keys and values of every position, all else of those in `wanted`, bool [B, T]."""
        block = layers.take_layer(self.layers, self.config.num_layers - 1)
        normed = layers.rms_norm(x, block.attn_norm[...], block.eps)
        _, keys, values = block.attn.project(normed, cos, sin)

        def finish(x, cos, sin, places):
            def attend(q, *_):
                return attention_chunked.attention(q, keys, values, mask, places), None

            return block(x, cos, sin, attend)[0]

        places = jnp.broadcast_to(jnp.arange(x.shape[1]), wanted.shape)
        return at_wanted(finish, wanted, wanted.sum(1).max(), CPU_CHUNK, x, cos, sin, places)

    def prefill(self, x, positions, mask: Mask, *, attention_path="auto"):
        """As `__call__`, and keys and values of every layer, head-major [L, B, K, T, H]."""
        cos, sin = self._rotary(positions, x.dtype)

        def attend(q, k, v):
            kept = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
            return attention(q, k, v, mask, attention_path), kept

        def step(block, x, _):
            with jax.named_scope("text_block"):
                return block(x, cos, sin, attend)

        x, (keys, values) = layers.scan_layers(
            step, self.layers, layers.shard_rows(x), None, attention=attention_path
        )
        return layers.rms_norm(x, self.final_norm[...], self.config.norm_eps), keys, values

    def decode(self, x, positions, cache: KVCache, index):
        """One token of each completion.

        x [B, R, D], positions int32 [B, R] (the same on all three axes), `index` int32: place of
        the token in the suffix. Returns final hidden states [B, R, D] and the cache with the
        token's keys and values written at `index`.
        """
        cos, sin = self._rotary(
            jnp.broadcast_to(positions[:, None], (len(x), 3, x.shape[1])), x.dtype
        )
        seen = jnp.arange(jax.tree.leaves(cache.suffix_k)[0].shape[4]) <= index

        def step(block, carry, slices):
            x, suffix_k, suffix_v = carry
            layer, prefix_k, prefix_v = slices

            def attend(q, k, v):
                written = _write(suffix_k, k, layer, index), _write(suffix_v, v, layer, index)
                own = jax.tree.map(
                    lambda part: jax.lax.dynamic_index_in_dim(part, layer, 0, keepdims=False),
                    written,
                )
                out = decode_attention(
                    q, (prefix_k, prefix_v), cache.prefix_valid, own, seen[None, None]
                )
                return out, written

            with jax.named_scope("text_block"):
                x, (suffix_k, suffix_v) = block(x, cos, sin, attend)
            return (x, suffix_k, suffix_v), None

        number = jnp.arange(self.config.num_layers)
        (x, suffix_k, suffix_v), _ = layers.scan_layers(
            step,
            self.layers,
            (x, cache.suffix_k, cache.suffix_v),
            (number, cache.prefix_k, cache.prefix_v),
            attention="reference",
        )
        x = layers.rms_norm(x, self.final_norm[...], self.config.norm_eps)
        return x, cache._replace(suffix_k=suffix_k, suffix_v=suffix_v)

    def _rotary(self, positions, dtype):
        """cos, sin [B, T, H / 2]; angles in float32, then cast, as the reference does.

        Of the H / 2 frequencies the first section takes its position from time, the second from
        height, the third from width.
        """
        config = self.config
        exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        frequency = (1.0 / config.rope_theta**exponent).astype(np.float32)
        axis = np.repeat(np.arange(3), config.mrope_section)
        angles = positions[:, axis].astype(jnp.float32) * frequency[:, None]
        angles = jnp.moveaxis(angles, 1, 2)
        return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def _write(suffix, new, layer, index):
    """The suffix [L, B, R, K, C, H] with `new` [B, R, K, H] in place of one column of a layer."""
    if isinstance(suffix, Int8):
        new = quantise(new, -1, keep=False)
    start = (layer, 0, 0, 0, index, 0)

    def in_order(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    def put(old, column):  # a scale has no H
        new = jax.lax.dynamic_update_slice(old, column[None, :, :, :, None], start[: old.ndim])
        # Left alone, XLA for TPU lays the cache out for this write, and transposes it to read it.
        # Elsewhere it would gather the cache from all devices for the constraint.
        return jax.lax.platform_dependent(new, tpu=in_order, default=lambda x: x)

    return jax.tree.map(put, suffix, new)
