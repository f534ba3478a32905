"""Folders whose tensors have the names of other trainers, or of a class without the head."""

import copy
import json
import re

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.qwen2_5_vl.config import tiny_values


@pytest.fixture(scope="module", params=["untied", "tied"])
def hub(request, tmp_path_factory):
    """(folder as on the hub, config, torch tensors by old name, torch model)."""
    values = tiny_values(tie_word_embeddings=request.param == "tied")
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**values))
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    return folder, load_config(folder), load_file(folder / "model.safetensors"), model


def new_style(name):
    """The names of transformers >= 4.52, written down apart from our table."""
    if name.startswith("visual."):
        return "model." + name
    return re.sub("^model[.]", "model.language_model.", name)


def write(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(folder, config, match, **options):
    with pytest.raises(ValueError, match=match) as error:
        read_checkpoint(folder, config, **options)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)
    assert len(str(error.value)) < 500


def same(ours, folder, config):
    jax.tree.map(np.testing.assert_array_equal, ours, read_checkpoint(folder, config))


HEADS = ["module.", "base_model.model.", "_orig_mod.module.", "actor.", "policy.module.", "model."]


@pytest.mark.parametrize("rename", [str, new_style])
@pytest.mark.parametrize("head", HEADS)
def test_prefixes_of_trainers_are_named_once_and_stripped_on_request(hub, tmp_path, head, rename):
    folder, config, tensors, _ = hub
    named = {head + rename(name): tensor for name, tensor in tensors.items()}
    wrapped = write(tmp_path, named)
    refused(wrapped, config, rf"tensors are named {head}NAME.* give strip_prefix={head}")
    for prefix in (head, head.rstrip(".")):
        same(read_checkpoint(wrapped, config, strip_prefix=prefix), folder, config)


def test_a_prefix_that_is_not_there_is_refused(hub, tmp_path):
    folder, config, tensors, _ = hub
    refused(folder, config, r"80 of 8\d names|81 of 81 names", strip_prefix="module.")
    named = {f"actor.{name}": tensor for name, tensor in tensors.items()}
    mixed = write(tmp_path, named | {"critic.head.weight": torch.zeros(3)})
    message = r"1 of 8\d names, such as critic.head.weight, do not begin with actor. .strip_prefix"
    refused(mixed, config, message, strip_prefix="actor.")


def test_an_adapter_that_was_not_merged_is_refused(hub, tmp_path):
    _, config, _, model = hub
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora)
    tensors = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    message = r"8 of \d+ tensors are of an adapter that was not merged; save it"
    refused(write(tmp_path, tensors), config, message)


def test_an_adapter_beside_the_weights_is_told(hub, tmp_path, caplog):
    """transformers would load the adapter's base and the adapter, and leave these weights out."""
    folder, config, tensors, _ = hub
    write(tmp_path, tensors)
    caplog.set_level("WARNING")
    (tmp_path / "adapter_config.json").write_text("{}")
    same(read_checkpoint(tmp_path, config), folder, config)
    (record,) = caplog.records
    assert f"{tmp_path}: holds an adapter of PEFT beside the weights" in record.getMessage()
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, config, "holds an adapter of PEFT and no weights; give its base as the model")


def test_a_base_model_without_its_head(hub, tmp_path):
    """Qwen2_5_VLModel as transformers writes it, whose names lack "model.", and as it is in memory;
    the head is the embedding where the config ties them."""
    folder, config, _, model = hub
    model.model.save_pretrained(tmp_path / "saved")
    assert load_config(tmp_path / "saved") == config
    state = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    assert "language_model.norm.weight" in state
    for found in (tmp_path / "saved", write(tmp_path / "state", state)):
        if config.text.tied:
            same(read_checkpoint(found, config), folder, config)
        else:
            refused(found, config, "no lm_head.weight.* save the model with its head")


def test_the_language_model_alone_is_refused(hub, tmp_path):
    """Up to transformers 4.51 the class named Qwen2_5_VLModel had no vision tower."""
    _, config, tensors, _ = hub
    bare = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    with pytest.raises(ValueError, match="tensors do not fit config.json: missing .*visual"):
        read_checkpoint(write(tmp_path, bare), config)
