"""Adapters of every form of PEFT on a tiny random Qwen2.5-VL: merged, they compute as in PEFT."""

import copy
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from hf_twin import write_random

from videorft_jax.data.batch import layout, patches
from videorft_jax.models import family, tensor_files
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.peft_folder import load_adapter, merge_adapter
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FORMS = {
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": LANGUAGE,
        "rank_pattern": {"q_proj": 5, r"layers\.1\..*down_proj": 2},
        "alpha_pattern": {"language_model.layers.0.self_attn.v_proj": 40, ".*up_proj": 1},
    },
    "patterns and rslora": {
        "target_modules": ["up_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"up_proj": 7},
    },
    "layers": {
        "target_modules": ["k_proj", "down_proj"], "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "one layer": {"target_modules": ["o_proj", "qkv"], "layers_to_transform": 0},
    "a regular expression": {"target_modules": r".*language_model.*\.(1)\..*(q|gate)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["lm_head", "qkv"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "head and embedding": {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True},
    "saved": {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "merger"],
    },
    "saved norms": {"target_modules": ["up_proj"], "modules_to_save": ["input_layernorm", "norm"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """(torch model, folder, config, batch of a text, compiled logits of it)."""
    folder = tmp_path_factory.mktemp("hub")
    model = write_random(folder)
    return model.eval(), folder, load_config(folder)


TOKENS = [5, 7, 302, *[305] * 4, 303, 9, 11, 2]  # an image of 4 x 4 patches, and words
PIXELS = np.random.default_rng(1).integers(0, 256, (56, 56, 3), np.uint8)


def random_adapter(model, form):
    """What PEFT makes of a model, every tensor that trains moved at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=3, lora_alpha=4, **form))
    torch.manual_seed(2)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def theirs(model):
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (torch.tensor(PIXELS) / 255 - mean) / std  # [h, w, 3]
    cut = pixels.reshape(2, 2, 14, 2, 2, 14, 3).permute(0, 3, 1, 4, 6, 2, 5)
    rows = cut[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(16, 1176)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        return model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=rows,
            image_grid_thw=torch.tensor([[1, 4, 4]]), mm_token_type_ids=(ids == 305).int(),
        ).logits.numpy()[0]  # fmt: skip


@pytest.fixture(scope="module")
def ours(hub):
    """params -> logits [T, V]; one program for all forms."""
    config = hub[2]
    cut = family.family_of(config).geometry
    media = [patches.make_media(PIXELS[None], None, cut)]
    tokens = np.array(TOKENS)
    sample = layout.make_sample(tokens, np.zeros(len(tokens), bool), [3], media, "qwen")
    batch = layout.pack([[sample]], len(TOKENS), sample.num_pairs, sample.num_windows, geometry=cut)

    @jax.jit
    def logits(params):
        model = family.bind(config, params)
        return model.logits(model.hidden_states(batch))[0].astype(jnp.float32)

    return logits


@pytest.mark.parametrize("name", FORMS)
def test_merged_adapters_compute_what_peft_does(hub, ours, tmp_path, name):
    model, folder, config = hub
    adapted = random_adapter(model, FORMS[name])
    adapted.save_pretrained(tmp_path)
    expected = theirs(adapted)
    params = merge_adapter(read_checkpoint(folder, config), load_adapter(tmp_path, config))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours(params), expected, atol=1e-5 * scale)
    assert np.abs(theirs(model) - expected).max() > 0.01 * scale  # The adapter matters.


@pytest.fixture(scope="module")
def plain(hub, tmp_path_factory):
    """The folder of a plain adapter."""
    folder = tmp_path_factory.mktemp("plain")
    random_adapter(hub[0], {"target_modules": ["q_proj"]}).save_pretrained(folder)
    return folder


def refused(folder, config, message, monkeypatch):
    """Asserts one line with the message, before an array is read."""
    monkeypatch.setattr(tensor_files, "read_rows", None)  # a call would be a TypeError
    with pytest.raises(ValueError, match=message) as error:
        load_adapter(folder, config)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)
    assert len(str(error.value)) < 900


OTHERS = {
    "DoRA": (peft.LoraConfig(use_dora=True, target_modules=LANGUAGE), "use_dora='True' is not"),
    "biases": (peft.LoraConfig(bias="all", target_modules=LANGUAGE), "bias='all' is not plain"),
    "PiSSA": (
        peft.LoraConfig(init_lora_weights="pissa", target_modules=LANGUAGE),
        "init_lora_weights='pissa' is not plain",
    ),
    "tokens": (
        peft.LoraConfig(trainable_token_indices=[1, 2], target_modules=LANGUAGE),
        "trainable_token_indices=",
    ),
    "LoHa": (peft.LoHaConfig(target_modules=LANGUAGE), "peft_type='LOHA' is not plain"),
    "LoKr": (peft.LoKrConfig(target_modules=LANGUAGE), "peft_type='LOKR' is not plain"),
    "IA3": (peft.IA3Config(target_modules=LANGUAGE, feedforward_modules=[]), "peft_type='IA3'"),
    "AdaLoRA": (peft.AdaLoraConfig(target_modules=LANGUAGE, total_step=9), "peft_type='ADALORA'"),
    "prompts": (peft.PromptTuningConfig(num_virtual_tokens=4), "learns inputs, which no weights"),
    "prefixes": (peft.PrefixTuningConfig(num_virtual_tokens=4), "learns inputs, which no weights"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_are_refused_in_one_line(hub, plain, tmp_path, monkeypatch, name):
    made, message = OTHERS[name]
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    made.save_pretrained(tmp_path)
    refused(tmp_path, hub[2], message, monkeypatch)


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_folders_that_are_none(hub, plain, tmp_path, monkeypatch):
    config, path = hub[2], tmp_path / "adapter_config.json"
    refused(tmp_path, config, "not readable", monkeypatch)
    (tmp_path / "checkpoints").mkdir()
    refused(tmp_path, config, "is a run of ours, no adapter; write", monkeypatch)
    (tmp_path / "checkpoints").rmdir()
    path.write_text('{"r": 3}')
    refused(tmp_path, config, "no 'peft_type'; give", monkeypatch)
    shutil.copy(plain / path.name, path)
    refused(tmp_path, config, "no adapter_model.safetensors; pickle is never read", monkeypatch)
    change(tmp_path, new_in_peft=1)
    refused(tmp_path, config, "new_in_peft='1' is not plain LoRA; merge it", monkeypatch)
    change(tmp_path, new_in_peft=None, rank_pattern={"q(": 3})
    refused(tmp_path, config, r"pattern 'q\(' is no regular expression", monkeypatch)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora_alpha": None}, "lora_alpha is None, no number above 0; correct"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', no number above 0; correct"),
        ({"r": 0}, "r is 0, no whole number above 0; correct"),
        ({"r": 4.0}, "r is 4.0, no whole number above 0; correct"),
        ({"base_model_name_or_path": ["a"]}, "path is .'a'., no name; correct"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is .'q_proj'., no object; correct"),
        ({"rank_pattern": {"q_proj": "3"}}, "rank_pattern.q_proj is '3', no whole number above"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj is -1, no number above 0; c"),
        ({"target_modules": 3}, "target_modules is 3, no name or list of names; correct"),
        ({"target_modules": "*_proj"}, "pattern '._proj' is no regular expression"),
        ({"exclude_modules": "("}, "pattern '.' is no regular expression"),
        ({"layers_pattern": ["("]}, "pattern '.' is no regular expression"),
        ({"layers_to_transform": ["1"]}, "transform is .'1'., no number or list of numbers; c"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head', no list of names; corr"),
        ({"use_rslora": "false"}, "use_rslora is 'false', no true or false; correct"),
    ],
)
def test_values_of_a_wrong_kind_are_named(hub, plain, tmp_path, monkeypatch, values, said):
    """Each would be a fault of Python later; use_rslora='false' was read as true."""
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    change(tmp_path, **values)
    refused(tmp_path, hub[2], rf"adapter_config.json: .*{said}", monkeypatch)


def test_an_adapter_of_another_base(hub, plain, tmp_path, monkeypatch):
    """By the config of the base where it is there, by a published name, and by the shapes."""
    shutil.copytree(plain, tmp_path / "adapter")
    change(tmp_path / "adapter", base_model_name_or_path="Qwen/Qwen2.5-VL-7B-Instruct")
    message = "is an adapter of Qwen/Qwen2.5-VL-7B-Instruct, of num_layers 28, and the model has 2"
    refused(tmp_path / "adapter", hub[2], message, monkeypatch)
    base, values = tmp_path / "base", tiny_values(num_hidden_layers=3)
    base.mkdir()
    (base / "config.json").write_text(json.dumps(values))
    change(tmp_path / "adapter", base_model_name_or_path=str(base))
    refused(tmp_path / "adapter", hub[2], "of num_layers 3, and the model has 2", monkeypatch)
    three = load_config(base)
    monkeypatch.undo()
    load_adapter(plain, hub[2])
    change(tmp_path / "adapter", base_model_name_or_path="someone/else")
    refused(tmp_path / "adapter", three, "2 faulty tensors of 4 .* missing model.layers.2",
            monkeypatch)  # fmt: skip
    wider = parse_config(tiny_values(hidden_size=48, num_attention_heads=6,
                                     vision_out_hidden_size=48))  # fmt: skip
    message = "4 faulty tensors of 4 .* mis-shaped model.layers.0.* give the adapter its own base"
    refused(tmp_path / "adapter", wider, message, monkeypatch)
    other = family.find_family("qwen3_vl")
    change(tmp_path / "adapter", base_model_name_or_path=str(base))
    third = other.parse_config(other.tiny_values(), "config.json")
    refused(tmp_path / "adapter", third, "of qwen2_5_vl, and the model is qwen3_vl", monkeypatch)


@pytest.mark.parametrize("name", ["head", "embedding", "saved"])
def test_a_tied_model_has_no_place_for_a_head_of_its_own(hub, tmp_path, monkeypatch, name):
    random_adapter(hub[0], FORMS[name]).save_pretrained(tmp_path)
    tied = parse_config(tiny_values(tie_word_embeddings=True))
    refused(tmp_path, tied, "the model ties head and embedding .* an untied copy", monkeypatch)
