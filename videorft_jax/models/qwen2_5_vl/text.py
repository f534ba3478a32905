"""What Qwen2.5-VL's decoder has of its own: biased q, k and v, and M-RoPE in three runs."""

import jax
import numpy as np
from flax import nnx

from videorft_jax.models import layers
from videorft_jax.models.decoder import Text
from videorft_jax.models.qwen2_5_vl.config import TextConfig


class TextAttention(nnx.Module):
    """The projections of L layers: q [L, D, N, H], k and v [L, D, K, H] with biases, o [L, N, H, D]
    without."""

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

    def project(self, x, cos, sin) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [..., T, D] -> rotated q [..., T, N, H], rotated k and plain v [..., T, K, H]."""
        q = layers.linear(x, self.q[...], self.q_bias[...])
        k = layers.linear(x, self.k[...], self.k_bias[...])
        v = layers.linear(x, self.v[...], self.v_bias[...])
        return layers.rotate(q, cos, sin), layers.rotate(k, cos, sin), v


def make_text(config: TextConfig, rngs: nnx.Rngs) -> Text:
    """The decoder. Of its H / 2 rotary frequencies the first section takes its position from time,
    the second from height and the third from width."""
    return Text(config, TextAttention, np.repeat(np.arange(3), config.mrope_section), rngs)
