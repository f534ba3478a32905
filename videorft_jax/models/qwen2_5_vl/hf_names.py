"""The name table between Hugging Face checkpoints of Qwen2.5-VL and our parameters; see `names`."""

from videorft_jax.models.names import Leaf, letter_sizes, make_leaves
from videorft_jax.models.qwen2_5_vl.config import ModelConfig

# Names are in the old style of the hub. S are the three of qkv, X is one patch (C T P P), E and U
# are the merger's merge^2 * D, O is its output.
NAMES = (
    ("text/embed", "model.embed_tokens.weight", "V D -> V D"),
    ("text/final_norm", "model.norm.weight", "D -> D"),
    ("text/head", "lm_head.weight", "V D -> V D"),
    ("text/layers/attn_norm", "model.layers.{}.input_layernorm.weight", "D -> D"),
    ("text/layers/mlp_norm", "model.layers.{}.post_attention_layernorm.weight", "D -> D"),
    ("text/layers/attn/q", "model.layers.{}.self_attn.q_proj.weight", "(N H) D -> D N H"),
    ("text/layers/attn/q_bias", "model.layers.{}.self_attn.q_proj.bias", "(N H) -> N H"),
    ("text/layers/attn/k", "model.layers.{}.self_attn.k_proj.weight", "(K H) D -> D K H"),
    ("text/layers/attn/k_bias", "model.layers.{}.self_attn.k_proj.bias", "(K H) -> K H"),
    ("text/layers/attn/v", "model.layers.{}.self_attn.v_proj.weight", "(K H) D -> D K H"),
    ("text/layers/attn/v_bias", "model.layers.{}.self_attn.v_proj.bias", "(K H) -> K H"),
    ("text/layers/attn/o", "model.layers.{}.self_attn.o_proj.weight", "D (N H) -> N H D"),
    ("text/layers/mlp/gate", "model.layers.{}.mlp.gate_proj.weight", "M D -> D M"),
    ("text/layers/mlp/up", "model.layers.{}.mlp.up_proj.weight", "M D -> D M"),
    ("text/layers/mlp/down", "model.layers.{}.mlp.down_proj.weight", "D M -> M D"),
    ("vision/embed", "visual.patch_embed.proj.weight", "D X -> X D"),
    ("vision/layers/attn_norm", "visual.blocks.{}.norm1.weight", "D -> D"),
    ("vision/layers/mlp_norm", "visual.blocks.{}.norm2.weight", "D -> D"),
    ("vision/layers/attn/qkv", "visual.blocks.{}.attn.qkv.weight", "(S N H) D -> D S N H"),
    ("vision/layers/attn/qkv_bias", "visual.blocks.{}.attn.qkv.bias", "(S N H) -> S N H"),
    ("vision/layers/attn/proj", "visual.blocks.{}.attn.proj.weight", "D (N H) -> N H D"),
    ("vision/layers/attn/proj_bias", "visual.blocks.{}.attn.proj.bias", "D -> D"),
    ("vision/layers/mlp/gate", "visual.blocks.{}.mlp.gate_proj.weight", "M D -> D M"),
    ("vision/layers/mlp/gate_bias", "visual.blocks.{}.mlp.gate_proj.bias", "M -> M"),
    ("vision/layers/mlp/up", "visual.blocks.{}.mlp.up_proj.weight", "M D -> D M"),
    ("vision/layers/mlp/up_bias", "visual.blocks.{}.mlp.up_proj.bias", "M -> M"),
    ("vision/layers/mlp/down", "visual.blocks.{}.mlp.down_proj.weight", "D M -> M D"),
    ("vision/layers/mlp/down_bias", "visual.blocks.{}.mlp.down_proj.bias", "D -> D"),
    ("vision/merger/norm", "visual.merger.ln_q.weight", "D -> D"),
    ("vision/merger/up", "visual.merger.mlp.0.weight", "U E -> E U"),
    ("vision/merger/up_bias", "visual.merger.mlp.0.bias", "U -> U"),
    ("vision/merger/down", "visual.merger.mlp.2.weight", "O U -> U O"),
    ("vision/merger/down_bias", "visual.merger.mlp.2.bias", "O -> O"),
)
# transformers >= 4.52 nests both towers under `model`.
_NEW_PREFIXES = (("model.visual.", "visual."), ("model.language_model.", "model."))


def leaves_of(config: ModelConfig) -> list[Leaf]:
    """The table with the sizes of a config."""
    layers = {
        "text/layers": config.text.num_layers,
        "vision/layers": config.vision.num_layers,
    }
    return make_leaves(NAMES, config, letter_sizes(config), layers)


def old_name(name: str) -> str:
    """The hub's name of a tensor, whichever style `name` has."""
    for new, old in _NEW_PREFIXES:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def new_name(name: str) -> str:
    """The name that transformers >= 4.52 gives to a tensor of a tower."""
    return ("model." if name.startswith("visual.") else "model.language_") + name
