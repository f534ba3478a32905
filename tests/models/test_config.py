"""Configs come from the checkpoint's own JSON, in both its forms, and never from a default."""

import copy
import json

import pytest
import transformers

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.models.family import check_contract, load_config, parse_config
from videorft_jax.models.qwen2_5_vl.config import hf_values, tiny_values

SIZES = ("3b", "7b", "32b", "72b")


@pytest.mark.parametrize("size", SIZES)
def test_flat_and_nested_forms_agree(size, tmp_path):
    """The hub's flat JSON, and what transformers writes after reading it."""
    flat = hf_values(size)
    (tmp_path / "config.json").write_text(json.dumps(flat))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "nested")
    nested = json.loads((tmp_path / "nested" / "config.json").read_text())
    assert "text_config" in nested
    ours = parse_config(flat)
    assert load_config(tmp_path / "nested") == ours
    # An independent reader of the same file agrees on every value.
    text, vision = theirs.text_config, theirs.vision_config
    assert (ours.text.dim, ours.text.num_layers) == (text.hidden_size, text.num_hidden_layers)
    assert ours.text.num_kv_heads == text.num_key_value_heads
    assert ours.text.norm_eps == text.rms_norm_eps == 1e-6
    assert ours.text.rope_theta == text.rope_parameters["rope_theta"] == 1e6
    assert list(ours.text.mrope_section) == text.rope_parameters["mrope_section"]
    assert ours.text.tied == theirs.tie_word_embeddings == (size == "3b")
    assert ours.vision.tokens_per_second == vision.tokens_per_second == 2
    assert list(ours.vision.full_layers) == vision.fullatt_block_indexes == [7, 15, 23, 31]
    assert (ours.vision.mlp_dim, ours.vision.head_dim) == (vision.intermediate_size, 80)
    assert ours.token_ids.video == theirs.video_token_id == 151656


TEXT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "vision_config",
)  # fmt: skip
VISION_KEYS = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "window_size", "fullatt_block_indexes", "tokens_per_second",
    "temporal_patch_size", "in_chans",
)  # fmt: skip


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_a_missing_key_is_named(key):
    values = hf_values("7b")
    del values[key]
    with pytest.raises(ValueError, match=f"'{key}' is missing") as error:
        parse_config(values, where="a/config.json")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("a/config.json: ")


@pytest.mark.parametrize("key", VISION_KEYS)
def test_a_missing_vision_key_is_named(key):
    values = copy.deepcopy(hf_values("7b"))
    del values["vision_config"][key]
    with pytest.raises(ValueError, match=f"'vision_config.{key}' is missing"):
        parse_config(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "model_type is 'llava'"),
        ({"num_attention_heads": 3}, "must divide by num_attention_heads"),
        ({"num_key_value_heads": 3}, "must divide by kv heads"),
        ({"rope_scaling": {"mrope_section": [1, 1, 1]}}, "must sum to head_dim / 2"),
        ({"rope_scaling": {"type": "mrope"}}, "mrope_section' is missing"),
        ({"use_sliding_window": True}, "use_sliding_window is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu"),
        ({"vision_window_size": 56}, "must be 14, 2, 2, 112, 3 and 2"),
        ({"vision_tokens_per_second": 4}, "must be 14, 2, 2, 112, 3 and 2"),
        ({"vision_out_hidden_size": 64}, "out_hidden_size must equal"),
        ({"vision_fullatt_block_indexes": [9]}, "must lie inside depth"),
    ],
)
def test_what_we_would_compute_differently_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parse_config(tiny_values(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_softcap": 30.0}, "unknown 'logit_softcap'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised .awq."),
        ({"layer_types": ["sliding_attention"]}, "only full_attention"),
        ({"head_dim": 4}, "head_dim must be hidden_size"),
        ({"rope_scaling": {"type": "dynamic", "mrope_section": [1, 1, 2]}}, "'dynamic' is not"),
        (
            {"rope_scaling": {"type": "linear", "mrope_section": [1, 1, 2]}},
            "'linear' needs a factor",
        ),
        (
            {"rope_scaling": {"type": "mrope", "factor": 2.0, "mrope_section": [1, 1, 2]}},
            "'default' has no key 'factor'",
        ),
    ],
)
def test_a_key_that_nobody_reads_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parse_config(tiny_values() | change)


def test_keys_that_switch_nothing_on_pass():
    assert parse_config(tiny_values() | {"logit_softcap": None, "new": False}) == parse_config(
        tiny_values()
    )


@pytest.mark.parametrize("version", ["4.49.0", "4.50.0.dev0"])
def test_what_transformers_4_49_leaves_out_is_filled(version):
    """The file of a published 7B, without every value that equals the default of the class."""
    whole = hf_values("7b")
    defaults = transformers.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig()
    renamed = {"in_chans": "in_channels"}
    kept = {
        key: value
        for key, value in whole["vision_config"].items()
        if json.dumps(value) != json.dumps(getattr(defaults, renamed.get(key, key), None))
    }
    assert kept.keys() == {"hidden_size", "tokens_per_second"} | (kept.keys() & {"model_type"})
    short = whole | {"vision_config": kept, "transformers_version": version}
    assert parse_config(short) == parse_config(whole)
    with pytest.raises(ValueError, match="is missing"):
        parse_config(short | {"transformers_version": "4.57.1"})


@pytest.mark.parametrize("places", ["root", "text", "both"])
def test_embeddings_are_tied_where_either_place_says_so(places):
    values = hf_values("3b")
    text = {key: value for key, value in values.items() if key not in ("vision_config",)}
    values |= {"text_config": text, "tie_word_embeddings": places != "text"}
    text["tie_word_embeddings"] = places != "root"
    assert parse_config(values).text.tied


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="no JSON object; download"):
        load_config(tmp_path)
    for change in ({"hidden_size": "64"}, {"vision_config": 3}):
        (tmp_path / "config.json").write_text(json.dumps(hf_values("7b") | change))
        with pytest.raises(ValueError, match=r"config.json: .*; "):
            load_config(tmp_path)
    with pytest.raises(ValueError, match="model size '8b' is unknown"):
        hf_values("8b")
    with pytest.raises(ValueError, match="'depth_of_text' is not a key"):
        hf_values("7b", depth_of_text=1)


@pytest.mark.parametrize(
    ("version", "rule", "said"),
    [
        ("4.51.3", "qwen", None),
        ("4.57.1", "qwen", "mrope_rule should be hf4"),
        ("4.57.1", "hf4", None),
        ("5.3.0", "qwen", "no rule equals its own"),
        ("5.17.0.dev0", "hf5", "no rule equals its own"),
        ("5.23.0", "qwen", "mrope_rule should be hf5"),
        ("5.23.0", "hf5", None),
        (None, "qwen", None),
    ],
)
def test_the_rule_of_the_writer_is_named(version, rule, said, caplog):
    caplog.set_level("INFO")
    config = parse_config(tiny_values() | {"transformers_version": version})
    check_contract(config, MediaContract(mrope_rule=rule), "folder")
    assert len(caplog.records) == (said is not None)
    if said:
        assert said in caplog.text
        assert f"folder: mrope_rule is {rule}; transformers {version} wrote" in caplog.text
