"""Qwen3-VL as a module with random weights."""

from flax import nnx

from videorft_jax.models.qwen3_vl.config import Config
from videorft_jax.models.qwen3_vl.text import make_text
from videorft_jax.models.qwen3_vl.vision import Vision
from videorft_jax.models.vision_language import VLM


def build(config: Config, rngs: nnx.Rngs) -> VLM:
    """Weights are drawn from N(0, 0.02^2), biases are zero and norms are one."""
    return VLM(config, Vision(config.vision, rngs), make_text(config.text, rngs))
