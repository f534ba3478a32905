"""Qwen3-VL's config and its folder on disk: read, refused, written, and read by transformers."""

import json

import hf_twin as hf
import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from videorft_jax.models import family
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.hf_writer import write_checkpoint
from videorft_jax.models.qwen3_vl.sizes import hf_values, tiny_values

# Parameters by the weights of a published size (numel of transformers' model for 2B and 8B).
COUNTS = {
    "qwen3vl_2b": (406_957_056, 1_720_574_976),
    "qwen3vl_4b": (415_347_712, 4_022_468_096),
    "qwen3vl_8b": (576_388_336, 8_190_735_360),
    "qwen3vl_32b": (595_266_800, 32_762_123_264),
}


@pytest.mark.parametrize("size", COUNTS)
def test_published_sizes_have_the_published_parameters(size):
    params = family.abstract_params(family.published_config(size))
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params[t])) for t in ("vision", "text")]
    assert tuple(counts) == COUNTS[size]


def test_both_spellings_of_rotary_parameters_agree(tmp_path):
    """The JSON of transformers 4.57, and what a later one writes after reading it."""
    values = hf_values("qwen3vl_4b")
    (tmp_path / "config.json").write_text(json.dumps(values))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    assert (
        "rope_parameters" in json.loads((tmp_path / "new/config.json").read_text())["text_config"]
    )
    assert family.load_config(tmp_path / "new") == family.parse_config(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"mrope_section": [4, 2, 2], "mrope_interleaved": False}}, "interleaved"),
        ({"rope_scaling": {"mrope_section": [4, 3, 2]}}, "sum to head_dim / 2"),
        ({"rope_scaling": {"mrope_section": [3, 3, 2]}}, "height and width equally many"),
        ({"rope_scaling": {}}, "rope_scaling.mrope_section' is missing"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"vision_patch_size": 14}, "must be 16, 2, 2 and 3"),
        ({"vision_deepstack_visual_indexes": [2, 0]}, "must rise and lie inside depth"),
        ({"vision_deepstack_visual_indexes": [0, 1, 2, 3]}, "no more than num_hidden_layers"),
        ({"vision_num_position_embeddings": 63}, "must be a square number"),
        ({"model_type": "qwen3_vl_moe"}, "Qwen3-VL with experts"),
        ({"model_type": "qwen3_5"}, "Qwen3.5"),
        ({"model_type": "llava"}, "give a checkpoint of Qwen2.5-VL, Qwen3-VL"),
    ],
)
def test_what_we_would_compute_differently_is_refused(change, message):
    with pytest.raises(ValueError, match=message) as error:
        family.parse_config(tiny_values(**change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["head_dim", "rms_norm_eps", "num_key_value_heads"])
def test_a_missing_key_is_named(key):
    values = tiny_values()
    del values["text_config"][key]
    with pytest.raises(ValueError, match=f"text_config.{key}' is missing"):
        family.parse_config(values)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_written_as_it_was_read(tied, tmp_path):
    twin = hf.make_twin(tmp_path / "in", model_type="qwen3_vl", tie_word_embeddings=tied)
    write_checkpoint(tmp_path / "out", twin.params, twin.config)
    ours = load_file(tmp_path / "out/model.safetensors")
    theirs = load_file(tmp_path / "in/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 12 * 4 + 3 + 6 * 3 + 11 * 3 + 2 + (not tied)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    again, found = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert again.model.visual.deepstack_merger_list[1].norm.weight.shape == (128,)


def test_names_without_model_are_read_and_a_missing_merger_is_named(tmp_path):
    twin = hf.make_twin(tmp_path / "in", model_type="qwen3_vl")
    tensors = load_file(tmp_path / "in/model.safetensors")
    (tmp_path / "out").mkdir()
    short = {name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(short, tmp_path / "out/model.safetensors")
    again = read_checkpoint(tmp_path / "out", twin.config)
    jax.tree.map(np.testing.assert_array_equal, again, twin.params)
    del short["visual.deepstack_merger_list.1.linear_fc1.weight"]
    save_file(short, tmp_path / "out/model.safetensors")
    lacking = (
        r"missing model.visual.deepstack_merger_list.1.linear_fc1.weight \(vision/deepstack/up"
    )
    with pytest.raises(ValueError, match=lacking):
        read_checkpoint(tmp_path / "out", twin.config)
