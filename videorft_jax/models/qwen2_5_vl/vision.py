"""The vision tower of Qwen2.5-VL on window slots.

Attention gives the same result in whatever order its keys stand, so the tower keeps patches in the
order of windows throughout. A windowed layer attends over the 64 slots of a window, a full layer
over all windows of a frame pair, and a boolean that rides the scan over layers says which of the
two a layer does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from videorft_jax.models import layers
from videorft_jax.models.attention.dispatch import attention
from videorft_jax.models.attention.masks import Full
from videorft_jax.models.compute_plan import ComputePlan
from videorft_jax.models.geometry import WINDOWED_14
from videorft_jax.models.pixels import normalise, rotary_angles
from videorft_jax.models.qwen2_5_vl.config import VISION_NORM_EPS, VISION_ROPE_THETA, VisionConfig


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
        self.attn_norm = layers.ones(config.num_layers, config.dim)
        self.mlp_norm = layers.ones(config.num_layers, config.dim)
        self.attn = VisionAttention(config, rngs)
        self.mlp = layers.SwigluMlp(
            config.num_layers, config.dim, config.mlp_dim, biased=True, rngs=rngs
        )

    def __call__(self, x, is_full, cos, sin, valid, path):
        """x [P, W, 64, D] of P frame pairs; cos, sin [P, W, 64, H / 2]; valid [P, W, 64]; `path`
        names the attention path."""
        with jax.named_scope("attention"):
            normed = layers.rms_norm(x, self.attn_norm[...], VISION_NORM_EPS)
            weights, biases = jnp.moveaxis(self.attn.qkv[...], 1, 0), self.attn.qkv_bias[...]
            q, k, v = (layers.linear(normed, w, b) for w, b in zip(weights, biases, strict=True))
            # The reference rotates in float32 and casts the result back.
            q, k = (
                layers.rotate(part.astype(jnp.float32), cos, sin).astype(x.dtype) for part in (q, k)
            )
            frames, windows = (
                functools.partial(attend, path=path) for attend in (attend_frames, attend_windows)
            )
            out = jax.lax.cond(is_full, frames, windows, q, k, v, valid)
            out = checkpoint_name(out, "attention")
            x = x + layers.linear(out, self.attn.proj[...], self.attn.proj_bias[...], 2)
        with jax.named_scope("mlp"):
            return x + self.mlp(layers.rms_norm(x, self.mlp_norm[...], VISION_NORM_EPS))


def attend_windows(q, k, v, valid, *, path):
    """Attention within each window: 64 x 64 scores, too few for a kernel to be worth its launch."""
    flat = [part.reshape(-1, *part.shape[2:]) for part in (q, k, v, valid)]
    # The chunked path takes as many windows at a time as fit a core's cache. A loop over windows
    # would leave an accelerator idle, which computes all of them at once.
    path = "chunked" if path == "chunked" else "reference"
    return attention(*flat[:3], Full(flat[3]), path).reshape(q.shape)


def attend_frames(q, k, v, valid, *, path):
    """Attention over all windows of a frame pair."""
    flat = [part.reshape(part.shape[0], -1, *part.shape[3:]) for part in (q, k, v, valid)]
    return attention(*flat[:3], Full(flat[3]), path).reshape(q.shape)


class Merger(nnx.Module):
    """Four patches to one visual token: a norm of each patch, then two linear maps with an exact
    GELU between them, on the four patches as one vector."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        merged = config.dim * config.merge**2
        self.norm = layers.ones(config.dim)
        self.up = layers.weight(rngs, merged, merged)
        self.up_bias = layers.zeros(merged)
        self.down = layers.weight(rngs, merged, config.out_dim)
        self.down_bias = layers.zeros(config.out_dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., 4 Z, D] -> [..., Z, out]."""
        x = layers.rms_norm(x, self.norm[...], VISION_NORM_EPS)
        x = x.reshape(*x.shape[:-2], -1, self.up.shape[0])
        x = jax.nn.gelu(layers.linear(x, self.up[...], self.up_bias[...]), approximate=False)
        return layers.linear(x, self.down[...], self.down_bias[...])


class Vision(nnx.Module):
    """The tower: patches uint8 [B, F, W, 64, 1176] to visual tokens [B, F * W * 16, out_dim].

    A frame pair is an independent sequence of W windows of 64 patches. Every four patches that
    stand next to each other in a window become one token.
    """

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = layers.weight(rngs, config.patch_dim, config.dim)
        self.layers = VisionBlocks(config, rngs)
        self.merger = Merger(config, rngs)

    def __call__(self, patches, valid, hw, *, plan: ComputePlan, remat: str = "none") -> jax.Array:
        """Visual tokens of every slot, in the order that `Batch.visual_index` counts.

        valid: bool [B, F, W, 64], slots that hold a patch; the others give finite values that
        nothing reads. hw: int32 [B, F, W, 64, 2], the row and column of each patch.
        """
        config = self.config
        rows = patches.shape[0]
        patches, valid, hw = (x.reshape(-1, *x.shape[2:]) for x in (patches, valid, hw))
        x = normalise(patches, WINDOWED_14)
        x = layers.shard_rows(layers.linear(x.astype(self.embed.dtype), self.embed[...]))
        angles = rotary_angles(hw, config.head_dim, VISION_ROPE_THETA)
        cos, sin = layers.rotary_waves(angles, unroll=plan.unroll)
        is_full = np.isin(np.arange(config.num_layers), config.full_layers)

        def step(block, x, is_full):
            with jax.named_scope("vision_block"):
                x = block(x, is_full, cos, sin, valid, plan.attention)
            return layers.shard_rows(x), None

        x, _ = layers.scan_layers(
            step, self.layers, x, jnp.asarray(is_full), remat, unroll=plan.unroll
        )
        with jax.named_scope("merger"):
            tokens = self.merger(x)
        return tokens.reshape(rows, -1, config.out_dim)
