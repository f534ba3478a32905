"""What Qwen3-VL's decoder has of its own: a norm on every q and k head instead of biases, and
M-RoPE whose axes take turns."""

import jax
import numpy as np
from flax import nnx

from videorft_jax.models import layers
from videorft_jax.models.decoder import Text
from videorft_jax.models.qwen3_vl.config import TextConfig


class TextAttention(nnx.Module):
    """The projections of L layers: q [L, D, N, H], k and v [L, D, K, H] and o [L, N, H, D] without
    biases, and the scales [L, H] of the norms of q and k heads."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        count, dim, head_dim = config.num_layers, config.dim, config.head_dim
        self.q = layers.weight(rngs, count, dim, config.num_heads, head_dim)
        self.q_norm = layers.ones(count, head_dim)
        self.k = layers.weight(rngs, count, dim, config.num_kv_heads, head_dim)
        self.k_norm = layers.ones(count, head_dim)
        self.v = layers.weight(rngs, count, dim, config.num_kv_heads, head_dim)
        self.o = layers.weight(rngs, count, config.num_heads, head_dim, dim)
        self.eps = config.norm_eps

    def project(self, x, cos, sin) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [..., T, D] -> rotated q [..., T, N, H], rotated k and plain v [..., T, K, H]; q and k
        are normalised over H before they are rotated."""
        q = layers.rms_norm(layers.linear(x, self.q[...]), self.q_norm[...], self.eps)
        k = layers.rms_norm(layers.linear(x, self.k[...]), self.k_norm[...], self.eps)
        v = layers.linear(x, self.v[...])
        return layers.rotate(q, cos, sin), layers.rotate(k, cos, sin), v


def rotary_axes(section: tuple[int, int, int]) -> np.ndarray:
    """int [H / 2], the axis that each rotary frequency reads: time, height, width in turn until
    height and width have their share of `section`, and time from there on."""
    frequency = np.arange(sum(section))
    return np.where(frequency < 3 * section[1], frequency % 3, 0)


def make_text(config: TextConfig, rngs: nnx.Rngs) -> Text:
    """The decoder."""
    return Text(config, TextAttention, rotary_axes(config.mrope_section), rngs)
