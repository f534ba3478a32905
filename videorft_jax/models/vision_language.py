"""A vision tower and a decoder put together, whatever the family.

Everything compiled takes `params`, a plain nested dict, and makes a module of them inside
(`family.bind`). The model returns hidden states; the caller applies the head to the positions it
needs.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from videorft_jax.data.batch.batch import Batch
from videorft_jax.models.attention.masks import Causal
from videorft_jax.models.compute_plan import ComputePlan, choose_plan
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.decoder import Injection, Text


class VLM(nnx.Module):
    """Clips and tokens in, hidden states out.

    `vision` is a family's tower: a call takes patches uint8 [B, F, W, 64, X], valid bool
    [B, F, W, 64] and hw int32 [B, F, W, 64, 2], and returns visual tokens [B, F * W * 16, E] in
    the order that `Batch.visual_index` counts. `text` is the decoder. Every method takes a
    `ComputePlan`; None is the plan of the default backend.
    """

    def __init__(self, config: ModelConfig, vision: nnx.Module, text: Text):
        self.config = config
        self.vision, self.text = vision, text

    def encode_vision(
        self, batch: Batch, *, plan: ComputePlan | None = None, remat: str = "none"
    ) -> jax.Array:
        """Visual tokens [B, Z, E] of every slot, Z = F * W * 16, E = `config.visual_dim`. Slots
        without a patch give finite values that nothing reads."""
        plan = plan or choose_plan()
        if remat in ("save_projections", "save_gate"):
            remat = "full"  # They keep products of the decoder alone.
        with jax.named_scope("vision"):
            return self.vision(
                batch.patches, batch.patch_valid, batch.patch_hw, plan=plan, remat=remat
            )

    def embed(self, tokens, visual, visual_index) -> jax.Array:
        """Token embeddings [B, T, D], with the first D values of a visual token [B, Z, E] wherever
        visual_index [B, T] is not -1. `visual` None is text alone."""
        x = self.text.embed[...][tokens]
        if visual is None:
            return x
        if visual.shape[-1] != x.shape[-1]:
            visual = visual[..., : x.shape[-1]]
        rows = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
        return jnp.where(visual_index[..., None] >= 0, rows.astype(x.dtype), x)

    def injection(self, visual, visual_index) -> Injection | None:
        """What the decoder's first layers are given of the visual tokens [B, Z, E] beside their
        embeddings; None without clips, and in a family without DeepStack (E = D)."""
        if visual is None or self.config.visual_dim == self.config.text.dim:
            return None
        return Injection(visual, visual_index)

    def _embed_batch(self, batch, plan, remat):
        """Embeddings [B, T, D] of a batch, its clips encoded and in place, and the injection."""
        visual = None
        if batch.patches.size:
            visual = self.encode_vision(batch, plan=plan, remat=remat)
        x = self.embed(batch.tokens, visual, batch.visual_index)
        return x, self.injection(visual, batch.visual_index)

    def hidden_states(
        self, batch: Batch, *, needed=None, plan: ComputePlan | None = None, remat: str = "none"
    ) -> jax.Array:
        """Final hidden states [B, T, D] of packed or padded rows. `needed` bool [B, T] names the
        positions that are read, see `Text`; None: all."""
        plan = plan or choose_plan()
        x, injection = self._embed_batch(batch, plan, remat)
        mask = Causal(batch.segment_ids)
        settings = {"injection": injection, "needed": needed, "plan": plan, "remat": remat}
        return self.text(x, batch.positions, mask, **settings)

    def prefill(self, batch: Batch, *, plan: ComputePlan | None = None):
        """Final hidden states [B, T, D], and keys and values [L, B, K, T, H] of every layer."""
        plan = plan or choose_plan()
        x, injection = self._embed_batch(batch, plan, "none")
        mask = Causal(batch.segment_ids)
        return self.text.prefill(x, batch.positions, mask, injection=injection, plan=plan)

    def logits(self, hidden) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D], accumulated in float32 and not rounded
        afterwards."""
        return jnp.einsum(
            "...D,VD->...V", hidden, self.text.output_weight, preferred_element_type=jnp.float32
        )


def next_position(batch: Batch) -> jax.Array:
    """int32 [B], the position of the first completion token: one after that of the prompt's last
    token, as in the `generate` of transformers. Under the rule "hf5" a clip's time ids may lie
    beyond it."""
    last = (batch.segment_ids > 0).sum(1) - 1
    return jnp.take_along_axis(batch.positions[:, 0], last[:, None], axis=1)[:, 0] + 1
