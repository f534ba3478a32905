"""Qwen2.5-VL: vision tower, decoder, and how parameters become a module and back.

Everything compiled takes `params`, a plain nested dict, and calls `bind(config, params)` inside.
The model returns hidden states; the head is applied by the caller, to the positions it needs.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.attention.dispatch import Causal
from videorft_jax.models.qwen2_5_vl.config import ModelConfig
from videorft_jax.models.qwen2_5_vl.text import Text
from videorft_jax.models.qwen2_5_vl.vision import Vision


class VLM(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.vision = Vision(config.vision, rngs)
        self.text = Text(config.text, rngs)

    def encode_vision(self, batch: Batch, *, attention="auto", remat="none") -> jax.Array:
        """Visual tokens [B, Z, D] of every slot, Z = F * W * 16."""
        with jax.named_scope("vision"):
            return self.vision(
                batch.patches, batch.patch_valid, batch.patch_hw, attention=attention, remat=remat
            )

    def embed(self, tokens, visual, visual_index) -> jax.Array:
        """Token embeddings [B, T, D] with the rows named by visual_index [B, T] taken from the
        visual tokens [B, Z, D]; `visual=None` for text alone."""
        x = self.text.embed[...][tokens]
        if visual is None:
            return x
        rows = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
        return jnp.where(visual_index[..., None] >= 0, rows.astype(x.dtype), x)

    def embed_batch(self, batch: Batch, *, attention="auto", remat="none") -> jax.Array:
        """Embeddings [B, T, D] of a batch, its clips encoded and in place."""
        visual = None
        if batch.patches.size:
            visual = self.encode_vision(batch, attention=attention, remat=remat)
        return self.embed(batch.tokens, visual, batch.visual_index)

    def hidden_states(
        self, batch: Batch, *, wanted=None, attention="auto", remat="none"
    ) -> jax.Array:
        """Final hidden states [B, T, D] of packed or padded rows; for `wanted`, see `Text`."""
        x = self.embed_batch(batch, attention=attention, remat=remat)
        mask = Causal(batch.segment_ids)
        settings = {"attention_path": attention, "remat": remat}
        return self.text(x, batch.positions, mask, wanted=wanted, **settings)

    def prefill(self, batch: Batch, *, attention="auto"):
        """Final hidden states [B, T, D], and keys and values [L, B, K, T, H] of every layer."""
        x = self.embed_batch(batch, attention=attention)
        mask = Causal(batch.segment_ids)
        return self.text.prefill(x, batch.positions, mask, attention_path=attention)

    def logits(self, hidden) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]; float32 accumulation, no rounding after."""
        return jnp.einsum(
            "...D,VD->...V", hidden, self.text.output_weight, preferred_element_type=jnp.float32
        )


@functools.lru_cache
def _abstract(config: ModelConfig):
    model = nnx.eval_shape(lambda: VLM(config, nnx.Rngs(params=0)))
    return nnx.split(model)


def bind(config: ModelConfig, params) -> VLM:
    """The module with `params` (nested dict of arrays) as its weights; call it inside `jax.jit`."""
    return nnx.merge(_abstract(config)[0], params)


def abstract_params(config: ModelConfig, dtype=jnp.float32):
    """Nested dict of `jax.ShapeDtypeStruct`; takes no memory."""
    shapes = nnx.to_pure_dict(_abstract(config)[1])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def init_params(config: ModelConfig, key, dtype=jnp.float32):
    """Random weights, N(0, 0.02^2) and zero biases, as a nested dict."""
    state = nnx.split(VLM(config, nnx.Rngs(params=key)))[1]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.to_pure_dict(state))


def count_params(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
