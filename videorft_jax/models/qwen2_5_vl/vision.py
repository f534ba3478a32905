"""The vision tower on window slots.

Attention is permutation-equivariant, so the tower works on patches in window order throughout: a
windowed layer attends over the 64 slots of a window, a full layer over all windows of a frame
pair. Which of the two a layer does rides the scan as a boolean.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from videorft_jax.models import layers
from videorft_jax.models.attention.dispatch import Full, attention, resolve
from videorft_jax.models.qwen2_5_vl.config import VISION_NORM_EPS, VISION_ROPE_THETA, VisionConfig

# CLIP statistics, per channel, in units of [0, 1] (Qwen2VLImageProcessor).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        count, dim, heads = config.num_layers, config.dim, config.num_heads
        self.qkv = layers.weight(rngs, count, dim, 3, heads, config.head_dim)
        self.qkv_bias = layers.zeros(count, 3, heads, config.head_dim)
        self.proj = layers.weight(rngs, count, heads, config.head_dim, dim)
        self.proj_bias = layers.zeros(count, dim)


class VisionBlocks(nnx.Module):
    """L pre-norm blocks; called on one slice of them."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.attn_norm = layers.ones(config.num_layers, config.dim)
        self.mlp_norm = layers.ones(config.num_layers, config.dim)
        self.attn = VisionAttention(config, rngs)
        self.mlp = layers.Mlp(config.num_layers, config.dim, config.mlp_dim, biased=True, rngs=rngs)

    def __call__(self, x, is_full, cos, sin, valid, implementation):
        """x [P, W, 64, D] of P frame pairs; cos, sin [P, W, 64, H / 2]; valid [P, W, 64]."""
        with jax.named_scope("attention"):
            normed = layers.rms_norm(x, self.attn_norm[...], VISION_NORM_EPS)
            weights, biases = jnp.moveaxis(self.attn.qkv[...], 1, 0), self.attn.qkv_bias[...]
            q, k, v = (layers.linear(normed, w, b) for w, b in zip(weights, biases, strict=True))
            # The reference rotates in float32 and casts the result back.
            q, k = (
                layers.rotate(part.astype(jnp.float32), cos, sin).astype(x.dtype) for part in (q, k)
            )
            frames, windows = (
                functools.partial(attend, implementation=implementation)
                for attend in (attend_frames, attend_windows)
            )
            out = jax.lax.cond(is_full, frames, windows, q, k, v, valid)
            out = checkpoint_name(out, "attention")
            x = x + layers.linear(out, self.attn.proj[...], self.attn.proj_bias[...], 2)
        with jax.named_scope("mlp"):
            return x + self.mlp(layers.rms_norm(x, self.mlp_norm[...], VISION_NORM_EPS))


def attend_windows(q, k, v, valid, *, implementation):
    """Each window by itself; 64 x 64 scores, too few for any kernel to be worth its launch."""
    flat = [part.reshape(-1, *part.shape[2:]) for part in (q, k, v, valid)]
    # A CPU takes some windows at a time, as many as fit its cache; a loop over them would leave
    # an accelerator idle.
    path = "chunked" if resolve(implementation) == "chunked" else "reference"
    return attention(*flat[:3], Full(flat[3]), path).reshape(q.shape)


def attend_frames(q, k, v, valid, *, implementation):
    """All windows of a frame pair together."""
    flat = [part.reshape(part.shape[0], -1, *part.shape[3:]) for part in (q, k, v, valid)]
    return attention(*flat[:3], Full(flat[3]), implementation).reshape(q.shape)


class Merger(nnx.Module):
    """Four patches to one visual token: norm, two linear maps, exact GELU."""

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
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = layers.weight(rngs, config.patch_dim, config.dim)
        self.layers = VisionBlocks(config, rngs)
        self.merger = Merger(config, rngs)

    def __call__(self, patches, valid, hw, *, attention="auto", remat="none") -> jax.Array:
        """Visual tokens of every slot.

        patches uint8 [B, F, W, 64, 1176], valid bool [B, F, W, 64], hw int32 [B, F, W, 64, 2]
        -> [B, F * W * 16, D], in the order that `visual_index` counts. Unused slots give finite
        values that nothing reads.
        """
        config = self.config
        rows = patches.shape[0]
        patches, valid, hw = (x.reshape(-1, *x.shape[2:]) for x in (patches, valid, hw))
        x = normalise(patches, config.patch**2 * config.temporal_patch)
        x = layers.shard_rows(layers.linear(x.astype(self.embed.dtype), self.embed[...]))
        angles = rotary_angles(hw, config.head_dim)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        is_full = np.isin(np.arange(config.num_layers), config.full_layers)

        def step(block, x, is_full):
            with jax.named_scope("vision_block"):
                x = block(x, is_full, cos, sin, valid, attention)
            return layers.shard_rows(x), None

        x, _ = layers.scan_layers(step, self.layers, x, jnp.asarray(is_full), remat, attention)
        with jax.named_scope("merger"):
            tokens = self.merger(x)
        return tokens.reshape(rows, -1, config.out_dim)


def normalise(patches: jax.Array, values_per_channel: int) -> jax.Array:
    """uint8 [..., 1176] -> float32, (x - 255 mean) / (255 std): the fused form of the reference."""
    mean, std = (
        np.repeat(255 * np.asarray(part, np.float32), values_per_channel)
        for part in (PIXEL_MEAN, PIXEL_STD)
    )
    return (patches.astype(jnp.float32) - mean) / std


def rotary_angles(hw: jax.Array, head_dim: int) -> jax.Array:
    """2-D rotary angles float32 [..., H / 2]: H / 4 frequencies of the row, then of the column."""
    exponent = np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2)
    frequency = (1.0 / VISION_ROPE_THETA**exponent).astype(np.float32)
    angles = hw[..., None].astype(jnp.float32) * frequency
    return angles.reshape(*hw.shape[:-1], head_dim // 2)
