"""The published sizes of Qwen3-VL, and small random ones."""

from typing import Any

from videorft_jax.models.config import override
from videorft_jax.models.qwen3_vl.config import MODEL_TYPE

# From configs quoted in public: text layers, dim, heads, mlp, tied; vision layers, dim, mlp and
# DeepStack layers. All have 8 kv heads, heads of 128 and 16 heads in the tower.
_SMALL_TOWER = (24, 1024, 4096, (5, 11, 17))
_LARGE_TOWER = (27, 1152, 4304, (8, 16, 24))
SIZES = {
    "qwen3vl_2b": (28, 2048, 16, 6144, True, _SMALL_TOWER),
    "qwen3vl_4b": (36, 2560, 32, 9728, True, _SMALL_TOWER),
    "qwen3vl_8b": (36, 4096, 32, 12288, False, _LARGE_TOWER),
    "qwen3vl_32b": (64, 5120, 64, 25600, False, _LARGE_TOWER),
}

# What all sizes share.
_TEXT = {
    "model_type": f"{MODEL_TYPE}_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rope_scaling": {
        "mrope_interleaved": True,
        "mrope_section": [24, 20, 20],
        "rope_type": "default",
    },
    "vocab_size": 151936,
}
_VISION = {
    "model_type": MODEL_TYPE,
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "initializer_range": 0.02,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def hf_values(size: str, **overrides) -> dict[str, Any]:
    """The JSON of a published size, such as "qwen3vl_8b".

    `overrides` replace keys of the top level and of the text part; those prefixed with `vision_`
    go to the vision part: `hf_values("qwen3vl_8b", num_hidden_layers=2, vision_depth=2)`. Raises
    ValueError for an unknown size or key.
    """
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown; choose one of {sorted(SIZES)}")
    layers, dim, heads, mlp, tied, tower = SIZES[size]
    vision_layers, vision_dim, vision_mlp, deepstack = tower
    values = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": tied,
    }
    text = _TEXT | {
        "hidden_size": dim,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }
    vision = _VISION | {
        "deepstack_visual_indexes": list(deepstack),
        "depth": vision_layers,
        "hidden_size": vision_dim,
        "intermediate_size": vision_mlp,
        "out_hidden_size": dim,
    }
    own = {key: value for key, value in overrides.items() if key in values}
    override(text, vision, {key: value for key, value in overrides.items() if key not in values})
    return values | own | {"text_config": text, "vision_config": vision}


def tiny_values(**overrides) -> dict[str, Any]:
    """A random-weight size for tests: the real architecture, about 0.2 M parameters."""
    values = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "vocab_size": 320,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [4, 2, 2],
            "rope_type": "default",
        },
        "bos_token_id": 300,
        "eos_token_id": 301,
        "vision_start_token_id": 302,
        "vision_end_token_id": 303,
        "image_token_id": 305,
        "video_token_id": 306,
        "vision_depth": 4,
        "vision_hidden_size": 32,
        "vision_num_heads": 2,
        "vision_intermediate_size": 40,
        "vision_out_hidden_size": 32,
        "vision_deepstack_visual_indexes": [0, 2],
        "vision_num_position_embeddings": 64,
    }
    overrides.pop("vision_token_id", None)  # a control token that this family's config leaves out
    return hf_values("qwen3vl_8b", **(values | overrides))


def demo_values(**overrides) -> dict[str, Any]:
    """`tiny_values` for the sizes that the demo names: rotary sections that fill the head dim, and
    DeepStack from every layer of the tower that the decoder has a layer for."""
    head_dim = overrides["hidden_size"] // overrides["num_attention_heads"]
    third = head_dim // 2 // 3
    rope = {
        "mrope_interleaved": True,
        "mrope_section": [head_dim // 2 - 2 * third, third, third],
        "rope_type": "default",
    }
    depth = min(overrides["vision_depth"], overrides["num_hidden_layers"])
    return tiny_values(
        **overrides,
        head_dim=head_dim,
        rope_scaling=rope,
        vision_out_hidden_size=overrides["hidden_size"],
        vision_deepstack_visual_indexes=list(range(depth)),
    )
