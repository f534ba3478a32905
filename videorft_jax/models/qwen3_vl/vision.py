"""The vision tower of Qwen3-VL, with the features that DeepStack hands to the decoder.

A frame pair is one sequence of its patches in the order of the prompt's tokens, four patches to a
token, and every layer attends over the whole pair. The outputs of a few layers in between are
merged to visual tokens as well, and stand beside those of the last layer.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from videorft_jax.models import layers
from videorft_jax.models.attention.dispatch import attention
from videorft_jax.models.attention.masks import Full
from videorft_jax.models.compute_plan import ComputePlan
from videorft_jax.models.geometry import PLAIN_16
from videorft_jax.models.pixels import normalise, rotary_angles
from videorft_jax.models.qwen3_vl.config import VISION_NORM_EPS, VISION_ROPE_THETA, VisionConfig


class VisionAttention(nnx.Module):
    """The projections of L layers: qkv [L, D, 3, N, H] and proj [L, N, H, D], with biases."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        count, dim, heads = config.num_layers, config.dim, config.num_heads
        self.qkv = layers.weight(rngs, count, dim, 3, heads, config.head_dim)
        self.qkv_bias = layers.zeros(count, 3, heads, config.head_dim)
        self.proj = layers.weight(rngs, count, heads, config.head_dim, dim)
        self.proj_bias = layers.zeros(count, dim)


class VisionBlocks(nnx.Module):
    """The weights of L pre-norm blocks; a call runs one block on one slice of them."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        count, dim = config.num_layers, config.dim
        self.attn_norm, self.attn_norm_bias = layers.ones(count, dim), layers.zeros(count, dim)
        self.mlp_norm, self.mlp_norm_bias = layers.ones(count, dim), layers.zeros(count, dim)
        self.attn = VisionAttention(config, rngs)
        self.mlp = layers.GeluMlp(count, dim, config.mlp_dim, rngs=rngs)

    def __call__(self, x, cos, sin, mask, path):
        """x [P, S, D] of P frame pairs of S patches; cos, sin [P, S, H / 2]; `path` names the
        attention path."""
        with jax.named_scope("attention"):
            normed = layers.layer_norm(
                x, self.attn_norm[...], self.attn_norm_bias[...], VISION_NORM_EPS
            )
            weights, biases = jnp.moveaxis(self.attn.qkv[...], 1, 0), self.attn.qkv_bias[...]
            q, k, v = (layers.linear(normed, w, b) for w, b in zip(weights, biases, strict=True))
            # The reference rotates in float32 and casts the result back.
            q, k = (
                layers.rotate(part.astype(jnp.float32), cos, sin).astype(x.dtype) for part in (q, k)
            )
            out = checkpoint_name(attention(q, k, v, mask, path), "attention")
            x = x + layers.linear(out, self.attn.proj[...], self.attn.proj_bias[...], 2)
        with jax.named_scope("mlp"):
            normed = layers.layer_norm(
                x, self.mlp_norm[...], self.mlp_norm_bias[...], VISION_NORM_EPS
            )
            return x + self.mlp(normed)


class Merger(nnx.Module):
    """Four patches to one visual token: two linear maps with an exact GELU between them on the four
    as one vector of 4 D. The last layer's merger normalises each patch over D before they are put
    together, those of DeepStack (`count`, a leading J) normalise the vector afterwards."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, count: int | None = None):
        merged = config.dim * config.merge**2
        lead, width = ((), config.dim) if count is None else ((count,), merged)
        self.norm, self.norm_bias = layers.ones(*lead, width), layers.zeros(*lead, width)
        self.up, self.up_bias = (
            layers.weight(rngs, *lead, merged, merged),
            layers.zeros(*lead, merged),
        )
        self.down = layers.weight(rngs, *lead, merged, config.out_dim)
        self.down_bias = layers.zeros(*lead, config.out_dim)
        self.merged, self.is_deep = merged, count is not None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[P, S, D] -> [P, S / 4, out]."""
        shape = (*x.shape[:-2], -1, self.merged)
        x = x.reshape(shape) if self.is_deep else x
        x = layers.layer_norm(x, self.norm[...], self.norm_bias[...], VISION_NORM_EPS)
        x = layers.linear(x.reshape(shape), self.up[...], self.up_bias[...])
        x = jax.nn.gelu(x, approximate=False)
        return layers.linear(x, self.down[...], self.down_bias[...])


class Vision(nnx.Module):
    """The tower: patches uint8 [B, F, W, 64, 1536] to visual tokens [B, F * W * 16, (1 + J) out].

    A frame pair is an independent sequence of W * 64 patches. A visual token holds the merged
    output of the last layer and, behind it, those of the J layers that DeepStack reads.
    """

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = layers.weight(rngs, config.patch_dim, config.dim)
        self.embed_bias = layers.zeros(config.dim)
        self.position_table = layers.weight(rngs, config.num_positions, config.dim)
        self.layers = VisionBlocks(config, rngs)
        self.merger = Merger(config, rngs)
        if config.deepstack_layers:
            self.deepstack = Merger(config, rngs, len(config.deepstack_layers))

    def __call__(self, patches, valid, hw, *, plan: ComputePlan, remat: str = "none") -> jax.Array:
        """Visual tokens of every slot, in the order that `Batch.visual_index` counts.

        valid: bool [B, F, W, 64], slots that hold a patch; the others give finite values that
        nothing reads. hw: int32 [B, F, W, 64, 2], the row and column of each patch.
        """
        config, rows = self.config, patches.shape[0]
        pairs, slots = math.prod(patches.shape[:2]), math.prod(patches.shape[2:4])
        patches = patches.reshape(pairs, slots, -1)
        valid, hw = valid.reshape(pairs, slots), hw.reshape(pairs, slots, 2)
        x = normalise(patches, PLAIN_16).astype(self.embed.dtype)
        x = layers.linear(x, self.embed[...], self.embed_bias[...])
        x = layers.shard_rows(x + interpolate(self.position_table[...], hw, valid).astype(x.dtype))
        angles = rotary_angles(hw, config.head_dim, VISION_ROPE_THETA)
        (cos, sin), mask = layers.rotary_waves(angles, unroll=plan.unroll), Full(valid)

        def step(block, x, _):
            with jax.named_scope("vision_block"):
                x = block(x, cos, sin, mask, plan.attention)
            return layers.shard_rows(x), None

        deep, start = [], 0
        for index, stop in enumerate([*(i + 1 for i in config.deepstack_layers), None]):
            if stop is not None or start < config.num_layers:
                x, _ = layers.scan_layers(
                    step, self.layers, x, None, remat, unroll=plan.unroll, start=start, stop=stop
                )
            if stop is not None:
                with jax.named_scope("deepstack"):
                    deep.append(layers.take_layer(self.deepstack, index)(x))
                start = stop
        with jax.named_scope("merger"):
            tokens = jnp.concatenate([self.merger(x), *deep], axis=-1)
        return tokens.reshape(rows, -1, tokens.shape[-1])


def interpolate(table: jax.Array, hw: jax.Array, valid: jax.Array) -> jax.Array:
    """Learned positions of patches, float32 [P, S, D], between the rows of `table` [n * n, D].

    The n x n table is stretched over the grid of each frame pair such that corners meet corners,
    and read bilinearly. hw int32 [P, S, 2]; the largest row and column of a pair's valid patches
    tell its grid. The four weights of a patch are written as one row of a matrix that has a column
    for each place of the table, because a product is faster than a gather, and its gradient than a
    scatter.
    """
    side = math.isqrt(table.shape[0])
    last = jnp.where(valid[..., None], hw, 0).max(1, keepdims=True)  # [P, 1, 2]
    place = hw * ((side - 1) / jnp.maximum(last, 1).astype(jnp.float32))
    # 1 at the place itself, falling to 0 at its neighbours: the weights of linear interpolation.
    weights = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(side)), 0.0)
    row, column = weights[..., 0, :], weights[..., 1, :]
    both = (row[..., :, None] * column[..., None, :]).reshape(*row.shape[:-1], side**2)
    return jnp.einsum(
        "PSn,nD->PSD", both, table.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
