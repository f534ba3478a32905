"""The config of Qwen3-VL, parsed from the checkpoint's own `config.json`.

Nothing is filled in from a class default: those of transformers are those of no published size, so
a missing key is an error that names it. Rotary parameters are read in both spellings, `rope_theta`
beside `rope_scaling` (transformers 4.57) and `rope_parameters` (5.x).
"""

import dataclasses
import json
import math
from typing import Any, ClassVar

from videorft_jax.models.config import ModelConfig, check_values, get_key, parse_token_ids
from videorft_jax.models.config_keys import check_keys, is_tied
from videorft_jax.models.geometry import PLAIN_16
from videorft_jax.models.rotary import RopeScaling, find_rope, parse_scaling

MODEL_TYPE = "qwen3_vl"

# Fixed by the architecture, not by the checkpoint: the reference hard-codes both.
VISION_NORM_EPS = 1e-6
VISION_ROPE_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `deepstack_layers` are the layers whose outputs go, merged, into the
    decoder's first layers; `num_positions` is the number of rows of the square table of learned
    positions."""

    num_layers: int
    dim: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    deepstack_layers: tuple[int, ...]
    num_positions: int
    patch: int
    temporal_patch: int
    merge: int
    in_channels: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of one patch."""
        return self.in_channels * self.temporal_patch * self.patch**2

    @property
    def full_layers(self) -> tuple[int, ...]:
        """The layers that attend over a whole frame pair: all of them."""
        return tuple(range(self.num_layers))


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` counts frequencies given to time, height and width."""

    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tied: bool
    rope_scaling: RopeScaling | None = None


@dataclasses.dataclass(frozen=True)
class Config(ModelConfig):
    """Qwen3-VL."""

    model_type: ClassVar[str] = MODEL_TYPE
    vision: VisionConfig
    text: TextConfig

    @property
    def visual_dim(self) -> int:
        """A visual token and its DeepStack features, side by side."""
        return self.text.dim * (1 + len(self.vision.deepstack_layers))


def parse_config(values: dict[str, Any], where: str = "config.json") -> Config:
    """Parses a `config.json`. Raises ValueError, one line, for a missing key or for values that the
    architecture cannot hold."""
    text_values = get_key(values, "text_config", where)
    vision_values = get_key(values, "vision_config", where)

    check_keys(values, text_values, vision_values, where)

    def text(key):
        return get_key(text_values, key, where, "text_config.")

    def vision(key):
        return get_key(vision_values, key, where, "vision_config.")

    rope = find_rope(values, text_values, where)
    theta = rope.get("rope_theta", text_values.get("rope_theta"))
    for key, found in (
        ("rope_scaling.mrope_section", rope.get("mrope_section")),
        ("rope_theta", theta),
    ):
        if found is None:
            raise ValueError(f"{where}: key 'text_config.{key}' is missing; add it")
    tied = is_tied(values, text_values, where)
    config = Config(
        vision=VisionConfig(
            num_layers=vision("depth"),
            dim=vision("hidden_size"),
            num_heads=vision("num_heads"),
            mlp_dim=vision("intermediate_size"),
            out_dim=vision("out_hidden_size"),
            deepstack_layers=tuple(vision("deepstack_visual_indexes")),
            num_positions=vision("num_position_embeddings"),
            patch=vision("patch_size"),
            temporal_patch=vision("temporal_patch_size"),
            merge=vision("spatial_merge_size"),
            in_channels=vision("in_channels"),
        ),
        text=TextConfig(
            num_layers=text("num_hidden_layers"),
            dim=text("hidden_size"),
            num_heads=text("num_attention_heads"),
            num_kv_heads=text("num_key_value_heads"),
            head_dim=text("head_dim"),
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
    _check(config, rope, text_values, vision_values, where)
    return config


def _check(config, rope, text_values, vision_values, where):
    """Refuses what the port would compute differently from the reference."""
    text, vision, cut = config.text, config.vision, PLAIN_16
    deep, section = vision.deepstack_layers, text.mrope_section
    conditions = [
        (text.num_heads % text.num_kv_heads == 0, "num_attention_heads must divide by kv heads"),
        (2 * sum(section) == text.head_dim, "mrope_section must sum to head_dim / 2"),
        (
            len(section) == 3 and section[1] == section[2] <= section[0],
            "mrope_section must give height and width equally many frequencies, time no fewer",
        ),
        (
            rope.get("mrope_interleaved", True) is True,
            "mrope_interleaved must be true, the reference knows no other layout",
        ),
        (vision.dim % vision.num_heads == 0, "vision hidden_size must divide by num_heads"),
        (vision.head_dim % 4 == 0, "vision head_dim must divide by 4"),
        (vision.out_dim == text.dim, "vision out_hidden_size must equal text hidden_size"),
        (
            math.isqrt(vision.num_positions) ** 2 == vision.num_positions,
            "num_position_embeddings must be a square number",
        ),
        (
            list(deep) == sorted(set(deep)) and all(0 <= i < vision.num_layers for i in deep),
            "deepstack_visual_indexes must rise and lie inside depth",
        ),
        (
            len(deep) <= text.num_layers,
            "deepstack_visual_indexes must be no more than num_hidden_layers",
        ),
        (
            # Batches are cut for these, and every published size has them.
            (vision.patch, vision.temporal_patch, vision.merge, vision.in_channels)
            == (cut.patch, cut.temporal_patch, cut.merge, 3),
            "patch_size, temporal_patch_size, spatial_merge_size and in_channels must be "
            "16, 2, 2 and 3",
        ),
        (not text_values.get("attention_bias"), "attention_bias must be false"),
        (text_values.get("hidden_act", "silu") == "silu", "hidden_act must be silu"),
        (
            vision_values.get("hidden_act", "gelu_pytorch_tanh") == "gelu_pytorch_tanh",
            "vision hidden_act must be gelu_pytorch_tanh",
        ),
    ]
    check_values(conditions, where)
