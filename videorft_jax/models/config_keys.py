"""Which keys of a `config.json` a family reads, which mean nothing to the result, and the rest."""

import functools
import logging
from typing import Any

from videorft_jax.models import json_file
from videorft_jax.models.json_file import check_kind, is_flag, is_positive, is_whole

# Keys that writers leave behind and that change nothing in what the weights compute.
MEANINGLESS = {
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "architectures",
    "auto_map", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "initializer_range", "keys_to_ignore_at_inference", "label2id",
    "max_length", "max_position_embeddings", "max_window_layers", "min_length", "model_type",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "pad_token_id",
    "problem_type", "repetition_penalty", "length_penalty", "return_dict", "sep_token_id",
    "sliding_window", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "transformers_version", "transformers.js_config", "typical_p", "unsloth_fixed",
    "unsloth_version", "use_cache", "vision_token_id"
}  # fmt: skip
# Where writers say that weights are quantised: transformers, MLX, llm-compressor.
_QUANTISED = ("quantization_config", "quantization", "compression_config")
_VISION_THETA, _VISION_ROPE = 10000.0, {"rope_type", "rope_theta"}  # fixed by the towers
_SHARED = {
    "hidden_size", "intermediate_size", "hidden_act", "patch_size", "spatial_merge_size",
    "temporal_patch_size"
}  # fmt: skip
_TEXT = _SHARED | {
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings",
    "attention_bias", "head_dim", "layer_types", "use_sliding_window", "image_token_id",
    "video_token_id", "vision_start_token_id", "vision_end_token_id"
}  # fmt: skip
_ROOT = _TEXT | {"text_config", "vision_config"}
_VISION = _SHARED | {
    "depth", "num_heads", "out_hidden_size", "window_size", "fullatt_block_indexes",
    "tokens_per_second", "in_chans", "in_channels", "spatial_patch_size",
    "num_position_embeddings", "deepstack_visual_indexes", "rope_parameters"
}  # fmt: skip
# Sizes, ids and the rest by their kind; what a `config.json` of any family may hold of them.
_COUNTS = {
    "hidden_size", "intermediate_size", "patch_size", "spatial_merge_size", "temporal_patch_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "depth",
    "num_heads", "out_hidden_size", "window_size", "tokens_per_second", "in_chans", "in_channels",
    "num_position_embeddings"
}  # fmt: skip
_IDS = {"image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"}
_FLAGS = {"tie_word_embeddings", "attention_bias", "use_sliding_window"}
_LAYERS = {"fullatt_block_indexes", "deepstack_visual_indexes"}
# What transformers 4.49 leaves out of vision_config, since it equals the default of the class.
_LEFT_OUT = {
    "depth": 32,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
}


def check_keys(values: dict[str, Any], text: dict, vision: dict, where: str) -> None:
    """Raises ValueError, one line, for a key that is neither read nor known to mean nothing, unless
    its value switches nothing on (null, false, zero, empty), and for quantised weights."""
    for key in _QUANTISED:
        if method := values.get(key) or text.get(key):
            kind = method.get("quant_method", key) if isinstance(method, dict) else method
            raise ValueError(
                f"{where}: the weights are quantised ({kind}); give the bfloat16 weights that they "
                "were made of"
            )
    _check_kinds(values, text, vision, where)
    parts = (
        ("", values, _ROOT),
        ("text_config.", text, _ROOT),
        ("vision_config.", vision, _VISION),
    )
    for prefix, part, known in parts:
        found = {key for key, value in part.items() if value} - known - MEANINGLESS
        if found:
            named = ", ".join(f"'{prefix}{key}'" for key in sorted(found))
            raise ValueError(
                f"{where}: unknown {named}, which may change what the model computes; remove what "
                "means nothing, or use another checkpoint"
            )
    rope = vision.get("rope_parameters") or {}
    kind, theta = rope.get("rope_type", "axial"), rope.get("rope_theta", _VISION_THETA)
    if kind not in ("axial", "default") or theta != _VISION_THETA or rope.keys() - _VISION_ROPE:
        raise ValueError(
            f"{where}: vision_config.rope_parameters {rope} are not supported; use axial ones of "
            f"rope_theta {_VISION_THETA}"
        )
    kinds = set(text.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ValueError(
            f"{where}: layer_types {sorted(kinds)} are not supported, only full_attention"
        )


def _check_kinds(values, text, vision, where):
    """Raises ValueError for a value that is of another kind than its key means, such as the text
    "28" for a number of layers, which would show as anything later, or not at all."""
    is_layers = functools.partial(json_file.is_list, holds=is_whole)
    inside = f"{where}: " if text is values else f"{where}: text_config."
    for place, part in ((inside, text), (f"{where}: vision_config.", vision)):
        for key in sorted(_COUNTS & part.keys()):
            check_kind(part, key, json_file.is_count, "whole number above 0", place)
        for key in sorted(_FLAGS & part.keys()):
            check_kind(part, key, is_flag, "true or false", place)
        for key in sorted(_LAYERS & part.keys()):
            check_kind(part, key, is_layers, "list of layers", place)
    check_kind(text, "rms_norm_eps", is_positive, "number above 0", inside)
    check_kind(text, "rope_theta", lambda x: x is None or is_positive(x), "number above 0", inside)
    check_kind(values, "tie_word_embeddings", is_flag, "true or false", f"{where}: ")
    for key in sorted(_IDS & values.keys()):
        check_kind(values, key, is_whole, "id of a token", f"{where}: ")


def fill_vision(values: dict[str, Any], vision: dict[str, Any], where: str) -> dict[str, Any]:
    """`vision` with the keys that transformers 4.49 and its development versions left out when they
    saved, at the values that these had. Shapes are compared when the tensors are read. What other
    writers leave out is not filled."""
    version = str(values.get("transformers_version", ""))
    if not version.startswith(("4.49.", "4.50.0.dev")):
        return vision
    absent = {key: value for key, value in _LEFT_OUT.items() if key not in vision}
    if "in_chans" in vision:
        absent.pop("in_channels", None)
    if absent:
        said = ", ".join(f"{key}={value}" for key, value in absent.items())
        logging.info("%s: vision_config as transformers %s means it: %s", where, version, said)
    return absent | vision


def is_tied(values: dict[str, Any], text: dict[str, Any], where: str) -> bool:
    """Whether the head is the embedding: where either place says so, as in transformers."""
    found = [part.get("tie_word_embeddings") for part in (values, text)]
    if found == [None, None]:
        raise ValueError(f"{where}: key 'tie_word_embeddings' is missing; add it")
    return any(found)
