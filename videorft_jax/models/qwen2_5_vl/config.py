"""The config of Qwen2.5-VL, parsed from the checkpoint's own `config.json`.

Nothing is filled in from a class default (transformers has tokens_per_second 4 and rms_norm_eps
1e-5, which no published checkpoint has) but for what transformers 4.49 leaves out when it saves: a
missing key is an error that names it, and so is a key that nobody reads. Both the flat
form of the hub and the nested form of transformers >= 4.52 are read.
"""

import dataclasses
import json
from typing import Any, ClassVar

from videorft_jax.models.config import ModelConfig, check_values, get_key, override, parse_token_ids
from videorft_jax.models.config_keys import check_keys, fill_vision, is_tied
from videorft_jax.models.geometry import WINDOWED_14
from videorft_jax.models.rotary import RopeScaling, find_rope, parse_scaling

MODEL_TYPE = "qwen2_5_vl"

# Fixed by the architecture, not by the checkpoint: the reference hard-codes both.
VISION_NORM_EPS = 1e-6
VISION_ROPE_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `window` is in pixels. `full_layers` are the layers that attend over a
    whole frame pair, and every other layer attends within one window."""

    num_layers: int
    dim: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    full_layers: tuple[int, ...]
    patch: int
    temporal_patch: int
    merge: int
    window: int
    tokens_per_second: int
    in_channels: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of one patch row: 3 * 2 * 14 * 14 = 1176."""
        return self.in_channels * self.temporal_patch * self.patch**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` counts frequencies given to time, height and width."""

    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tied: bool
    rope_scaling: RopeScaling | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclasses.dataclass(frozen=True)
class Config(ModelConfig):
    """Qwen2.5-VL."""

    model_type: ClassVar[str] = MODEL_TYPE
    vision: VisionConfig
    text: TextConfig


def parse_config(values: dict[str, Any], where: str = "config.json") -> Config:
    """Parses the flat or the nested form.

    Raises ValueError, one line, for a missing key or for values that the architecture cannot hold.
    """
    text_values = values.get("text_config") or values
    vision_values = fill_vision(values, get_key(values, "vision_config", where), where)
    check_keys(values, text_values, vision_values, where)

    def text(key):
        return get_key(text_values, key, where, "text_config." if text_values is not values else "")

    def vision(key):
        return get_key(vision_values, key, where, "vision_config.")

    rope = find_rope(values, text_values, where)
    if "mrope_section" not in rope:
        raise ValueError(f"{where}: key 'rope_scaling.mrope_section' is missing; add it")
    theta = rope.get("rope_theta", text_values.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{where}: key 'rope_theta' is missing; add it")
    tied = is_tied(values, text_values, where)
    config = Config(
        vision=VisionConfig(
            num_layers=vision("depth"),
            dim=vision("hidden_size"),
            num_heads=vision("num_heads"),
            mlp_dim=vision("intermediate_size"),
            out_dim=vision("out_hidden_size"),
            full_layers=tuple(vision("fullatt_block_indexes")),
            patch=vision("patch_size"),
            temporal_patch=vision("temporal_patch_size"),
            merge=vision("spatial_merge_size"),
            window=vision("window_size"),
            tokens_per_second=vision("tokens_per_second"),
            in_channels=_in_channels(vision_values, where),
        ),
        text=TextConfig(
            num_layers=text("num_hidden_layers"),
            dim=text("hidden_size"),
            num_heads=text("num_attention_heads"),
            num_kv_heads=text("num_key_value_heads"),
            mlp_dim=text("intermediate_size"),
            vocab_size=text("vocab_size"),
            norm_eps=text("rms_norm_eps"),
            rope_theta=theta,
            mrope_section=tuple(rope["mrope_section"]),
            tied=tied,
            rope_scaling=parse_scaling(rope, text_values.get("max_position_embeddings"), where),
        ),
        token_ids=parse_token_ids(values, where),
        source=json.dumps(values),
    )
    _check(config, text_values, vision_values, where)
    return config


def _in_channels(values, where):
    # The hub writes in_chans; transformers writes in_channels and may keep both.
    found = {values[key] for key in ("in_channels", "in_chans") if key in values}
    if len(found) > 1:
        raise ValueError(
            f"{where}: vision_config.in_chans and in_channels disagree; write the same"
        )
    if found:
        return found.pop()
    raise ValueError(f"{where}: key 'vision_config.in_chans' is missing; a checkpoint must give it")


def _check(config, text_values, vision_values, where):
    """Refuses what the port would compute differently from the reference."""
    text, vision, cut = config.text, config.vision, WINDOWED_14
    conditions = [
        (
            text_values.get("head_dim") in (None, text.head_dim),
            "head_dim must be hidden_size / num_attention_heads",
        ),
        (text_values.get("attention_bias", True), "attention_bias must be true"),
        (text.dim % text.num_heads == 0, "hidden_size must divide by num_attention_heads"),
        (text.num_heads % text.num_kv_heads == 0, "num_attention_heads must divide by kv heads"),
        (2 * sum(text.mrope_section) == text.head_dim, "mrope_section must sum to head_dim / 2"),
        (vision.dim % vision.num_heads == 0, "vision hidden_size must divide by num_heads"),
        (vision.head_dim % 4 == 0, "vision head_dim must divide by 4"),
        (vision.out_dim == text.dim, "vision out_hidden_size must equal text hidden_size"),
        (
            # Batches are cut for these, and every published size has them.
            (vision.patch, vision.temporal_patch, vision.merge, vision.window)
            == (cut.patch, cut.temporal_patch, cut.merge, cut.window * cut.unit)
            and (vision.in_channels, vision.tokens_per_second) == (3, 2),
            "patch_size, temporal_patch_size, spatial_merge_size, window_size, in_chans and "
            "tokens_per_second must be 14, 2, 2, 112, 3 and 2",
        ),
        (
            all(0 <= layer < vision.num_layers for layer in vision.full_layers),
            "fullatt_block_indexes must lie inside depth",
        ),
        (text_values.get("hidden_act", "silu") == "silu", "hidden_act must be silu"),
        (vision_values.get("hidden_act", "silu") == "silu", "vision hidden_act must be silu"),
        (not text_values.get("use_sliding_window"), "use_sliding_window is not supported"),
    ]
    check_values(conditions, where)


# Published sizes, from the checkpoints' config.json. The towers differ in two values only.
# text: layers, dim, heads, kv heads, mlp, vocabulary, tied; vision mlp.
SIZES = {
    "3b": (36, 2048, 16, 2, 11008, 151936, True, 3420),
    "7b": (28, 3584, 28, 4, 18944, 152064, False, 3420),
    "32b": (64, 5120, 40, 8, 27648, 152064, False, 3456),
    "72b": (80, 8192, 64, 8, 29568, 152064, False, 3456),
}


def hf_values(size: str, **overrides) -> dict[str, Any]:
    """The flat JSON of a published size ("3b", "7b", "32b", "72b").

    `overrides` replace keys; those prefixed with `vision_` that are not root keys go to the
    vision part: `hf_values("7b", num_hidden_layers=2, vision_depth=2)`.
    """
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown; choose one of {sorted(SIZES)}")
    layers, dim, heads, kv_heads, mlp, vocab, tied, vision_mlp = SIZES[size]
    values = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": dim,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": 128000,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": vocab,
    }
    vision = {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": vision_mlp,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": dim,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
        "model_type": MODEL_TYPE,
    }
    override(values, vision, overrides)
    return values | {"vision_config": vision}


def demo_values(**overrides) -> dict[str, Any]:
    """`tiny_values` for other sizes: rotary sections that fill the head dim, and every layer of the
    tower full, because the demo's frames are as small as a window."""
    half = overrides["hidden_size"] // overrides["num_attention_heads"] // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return tiny_values(
        **overrides,
        rope_scaling={"type": "mrope", "mrope_section": sections},
        vision_out_hidden_size=overrides["hidden_size"],
        vision_fullatt_block_indexes=list(range(overrides["vision_depth"])),
    )


def tiny_values(**overrides) -> dict[str, Any]:
    """A random-weight size for tests and demos: the real architecture, about 0.1 M parameters."""
    values = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 320,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "bos_token_id": 300,
        "eos_token_id": 301,
        "vision_start_token_id": 302,
        "vision_end_token_id": 303,
        "vision_token_id": 304,
        "image_token_id": 305,
        "video_token_id": 306,
        "vision_depth": 4,
        "vision_hidden_size": 32,
        "vision_num_heads": 2,
        "vision_intermediate_size": 40,
        "vision_out_hidden_size": 32,
        "vision_fullatt_block_indexes": [1, 3],
    }
    return hf_values("7b", **(values | overrides))
