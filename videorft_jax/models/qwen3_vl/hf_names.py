"""The name table between Hugging Face checkpoints of Qwen3-VL and our parameters; see `names`."""

from videorft_jax.models.names import Leaf, letter_sizes, make_leaves
from videorft_jax.models.qwen3_vl.config import Config

_TEXT, _BLOCK = "model.language_model.layers.{}.", "model.visual.blocks.{}."
_DEEP = "model.visual.deepstack_merger_list.{}."

# S are the three of qkv, X is one patch (C T P P), P the rows of the table of positions, E and U
# are a merger's merge^2 * D, O is its output.
NAMES = (
    ("text/embed", "model.language_model.embed_tokens.weight", "V D -> V D"),
    ("text/final_norm", "model.language_model.norm.weight", "D -> D"),
    ("text/head", "lm_head.weight", "V D -> V D"),
    ("text/layers/attn_norm", _TEXT + "input_layernorm.weight", "D -> D"),
    ("text/layers/mlp_norm", _TEXT + "post_attention_layernorm.weight", "D -> D"),
    ("text/layers/attn/q", _TEXT + "self_attn.q_proj.weight", "(N H) D -> D N H"),
    ("text/layers/attn/q_norm", _TEXT + "self_attn.q_norm.weight", "H -> H"),
    ("text/layers/attn/k", _TEXT + "self_attn.k_proj.weight", "(K H) D -> D K H"),
    ("text/layers/attn/k_norm", _TEXT + "self_attn.k_norm.weight", "H -> H"),
    ("text/layers/attn/v", _TEXT + "self_attn.v_proj.weight", "(K H) D -> D K H"),
    ("text/layers/attn/o", _TEXT + "self_attn.o_proj.weight", "D (N H) -> N H D"),
    ("text/layers/mlp/gate", _TEXT + "mlp.gate_proj.weight", "M D -> D M"),
    ("text/layers/mlp/up", _TEXT + "mlp.up_proj.weight", "M D -> D M"),
    ("text/layers/mlp/down", _TEXT + "mlp.down_proj.weight", "D M -> M D"),
    ("vision/embed", "model.visual.patch_embed.proj.weight", "D X -> X D"),
    ("vision/embed_bias", "model.visual.patch_embed.proj.bias", "D -> D"),
    ("vision/position_table", "model.visual.pos_embed.weight", "P D -> P D"),
    ("vision/layers/attn_norm", _BLOCK + "norm1.weight", "D -> D"),
    ("vision/layers/attn_norm_bias", _BLOCK + "norm1.bias", "D -> D"),
    ("vision/layers/mlp_norm", _BLOCK + "norm2.weight", "D -> D"),
    ("vision/layers/mlp_norm_bias", _BLOCK + "norm2.bias", "D -> D"),
    ("vision/layers/attn/qkv", _BLOCK + "attn.qkv.weight", "(S N H) D -> D S N H"),
    ("vision/layers/attn/qkv_bias", _BLOCK + "attn.qkv.bias", "(S N H) -> S N H"),
    ("vision/layers/attn/proj", _BLOCK + "attn.proj.weight", "D (N H) -> N H D"),
    ("vision/layers/attn/proj_bias", _BLOCK + "attn.proj.bias", "D -> D"),
    ("vision/layers/mlp/up", _BLOCK + "mlp.linear_fc1.weight", "M D -> D M"),
    ("vision/layers/mlp/up_bias", _BLOCK + "mlp.linear_fc1.bias", "M -> M"),
    ("vision/layers/mlp/down", _BLOCK + "mlp.linear_fc2.weight", "D M -> M D"),
    ("vision/layers/mlp/down_bias", _BLOCK + "mlp.linear_fc2.bias", "D -> D"),
    ("vision/merger/norm", "model.visual.merger.norm.weight", "D -> D"),
    ("vision/merger/norm_bias", "model.visual.merger.norm.bias", "D -> D"),
    ("vision/merger/up", "model.visual.merger.linear_fc1.weight", "U E -> E U"),
    ("vision/merger/up_bias", "model.visual.merger.linear_fc1.bias", "U -> U"),
    ("vision/merger/down", "model.visual.merger.linear_fc2.weight", "O U -> U O"),
    ("vision/merger/down_bias", "model.visual.merger.linear_fc2.bias", "O -> O"),
    ("vision/deepstack/norm", _DEEP + "norm.weight", "E -> E"),
    ("vision/deepstack/norm_bias", _DEEP + "norm.bias", "E -> E"),
    ("vision/deepstack/up", _DEEP + "linear_fc1.weight", "U E -> E U"),
    ("vision/deepstack/up_bias", _DEEP + "linear_fc1.bias", "U -> U"),
    ("vision/deepstack/down", _DEEP + "linear_fc2.weight", "O U -> U O"),
    ("vision/deepstack/down_bias", _DEEP + "linear_fc2.bias", "O -> O"),
)


def leaves_of(config: Config) -> list[Leaf]:
    """The table with the sizes of a config; one without DeepStack has none of its mergers."""
    deep = len(config.vision.deepstack_layers)
    rows = [row for row in NAMES if deep or not row[0].startswith("vision/deepstack/")]
    sizes = letter_sizes(config)
    sizes["vision"]["P"] = config.vision.num_positions
    layers = {
        "text/layers": config.text.num_layers,
        "vision/layers": config.vision.num_layers,
        "vision/deepstack": deep,
    }
    return make_leaves(rows, config, sizes, layers)


def old_name(name: str) -> str:
    """The hub's name of a tensor; some files leave out the `model.` before a tower."""
    return f"model.{name}" if name.startswith(("visual.", "language_model.")) else name


def new_name(name: str) -> str:
    """The name in transformers, which is the hub's."""
    return name
