"""Every key that transformers knows of a config is read, refused, or listed as meaningless."""

import copy
import json

import pytest
import transformers

from videorft_jax.models import config_keys, family


def written(model_type, tmp_path):
    """What this transformers writes for a tiny config, every key of its classes among it."""
    values = family.find_family(model_type).tiny_values()
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    return json.loads(json.dumps(config.to_dict()))


def other(value):
    """Another value of the same kind, which switches something on where there was nothing."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    if isinstance(value, dict):
        return value | {"x": 1}
    if isinstance(value, list):
        return [*value, "sliding_attention" if "full_attention" in value else value[0]]
    return "x"


def is_read(values, base):
    """Whether values give another config than `base`, or none at all."""
    try:
        return family.parse_config(values) != base
    except ValueError:
        return True


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_every_key_is_known_refused_or_meaningless(model_type, tmp_path):
    values = written(model_type, tmp_path)
    base = family.parse_config(values)
    silent, checked = [], 0
    for part in (None, "text_config", "vision_config"):
        for key in values if part is None else values[part]:
            if key in ("text_config", "vision_config"):
                continue
            changed = copy.deepcopy(values)
            place = changed if part is None else changed[part]
            place[key] = other(place[key])
            checked += 1
            if not is_read(changed, base) and key not in config_keys.MEANINGLESS:
                silent.append(f"{part}.{key}")
    assert not silent
    assert checked > 60


ROPE = {"mrope_section": [1, 1, 2], "rope_theta": 1e6}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "proportional"},
        {"type": "ntk", "factor": 2.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "linear", "factor": 2.0, "beta_fast": 32},
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_kinds_of_rope_that_are_not_computed_are_refused(rope, key, tmp_path):
    values = written("qwen2_5_vl", tmp_path)
    values["text_config"].pop("rope_parameters")
    values["text_config"] |= {key: ROPE | rope}
    with pytest.raises(ValueError, match=rope.get("rope_type", rope.get("type"))) as error:
        family.parse_config(values)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("part", ["root", "text"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_a_second_place_that_disagrees_is_refused(part, key, tmp_path):
    """YaRN written where nobody looks was ignored without a word."""
    values = written("qwen2_5_vl", tmp_path)
    text = values["text_config"]
    place = values if part == "root" else text
    if (part, key) == ("text", "rope_parameters"):
        text["rope_scaling"] = text.pop("rope_parameters")  # The order of the two is the other way.
    place[key] = ROPE | YARN
    with pytest.raises(ValueError, match="disagree about type .*; write the same") as error:
        family.parse_config(values)
    assert "\n" not in str(error.value)
    for name in ("rope_parameters", "rope_scaling"):
        if text.get(name):
            text[name] = ROPE | YARN
    found = family.parse_config(values).text.rope_scaling
    assert (found.kind, found.factor) == ("yarn", 4.0)


def test_other_rotary_parameters_of_the_tower_are_refused(tmp_path):
    values = written("qwen2_5_vl", tmp_path)
    assert values["vision_config"]["rope_parameters"]["rope_theta"] == 10000.0
    for change in ({"rope_theta": 5000.0}, {"rope_type": "yarn"}, {"factor": 2.0}):
        wrong = copy.deepcopy(values)
        wrong["vision_config"]["rope_parameters"] |= change
        with pytest.raises(ValueError, match="rope_parameters .* are not supported; use axial"):
            family.parse_config(wrong)


WRONG = (None, "2", -1, 0, 2.5, [], ["2"], {}, {"a": 1}, float("nan"), True)


def places(values, path=()):
    """Every key of a config with the keys above it."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_a_value_of_a_wrong_kind_is_one_line_or_leaves_a_sound_model(model_type, tmp_path):
    """Such a value would be a fault of Python later, or be taken for another."""
    made = family.find_family(model_type)
    base, refusals = made.tiny_values(), []
    for path in places(base):
        for wrong in WRONG:
            values = copy.deepcopy(base)
            part = values
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = wrong
            (tmp_path / "config.json").write_text(json.dumps(values))
            try:
                config = family.load_config(tmp_path)
            except ValueError as error:
                refusals.append(str(error))
                continue
            family.abstract_params(config)
            for leaf in made.leaves_of(config):
                assert all(isinstance(size, int) and size > 0 for size in leaf.shape), path
            assert all(isinstance(number, int) for number in vars(config.token_ids).values())
            assert isinstance(config.text.tied, bool)
    assert len(refusals) > 300
    for said in refusals:
        assert said.startswith(f"{tmp_path}/config.json: ")
        assert "; " in said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": "28"}, "num_hidden_layers is '28', no whole number above 0;"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, no whole number above 0;"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', no number above 0;"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', no true or false;"),
        ({"video_token_id": None}, "video_token_id is None, no id of a token; correct the file"),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2]}},
            r"rope_scaling.mrope_section is \[2, 2\], no list of three counts;",
        ),
    ],
)
def test_a_value_of_a_wrong_kind_is_named(change, said):
    values = family.find_family("qwen2_5_vl").tiny_values() | change
    with pytest.raises(ValueError, match=f"^config.json: {said}"):
        family.parse_config(values)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b""])
def test_a_config_that_is_no_text_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json: not JSON .*; download the file again"):
        family.load_config(tmp_path)
