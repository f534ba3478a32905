"""Folders that no command can use: each is one line with a remedy, before a tensor is read."""

import json
import shutil

import numpy as np
import pytest
import tiny_run
from safetensors.numpy import load_file, save_file

from videorft_jax import cli
from videorft_jax.models import hf_folder, tensor_files

SINGLE, INDEX = tensor_files.SINGLE_NAME, tensor_files.INDEX_NAME


def edit(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def quantised(**method):
    return lambda folder: edit(folder, "config.json", quantization_config=method)


def pickled(name):
    def damage(folder):
        (folder / SINGLE).unlink()
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")

    return damage


def gguf(folder):
    (folder / "config.json").unlink()
    (folder / SINGLE).rename(folder / "model-q4_k_m.gguf")


def packed(folder):
    """Weights of eight bits whose config says nothing."""
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48, 8), np.int32)
    save_file(tensors, folder / SINGLE)


def index(folder, change):
    """Two shards and an index that `change` makes lie."""
    tensors, weight_map = load_file(folder / SINGLE), {}
    (folder / SINGLE).unlink()
    for number, part in enumerate((sorted(tensors)[:40], sorted(tensors)[40:]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    values = {"metadata": {"total_size": size}, "weight_map": weight_map}
    change(values)
    (folder / INDEX).write_text(json.dumps(values))


def another_tokenizer(folder):
    """The tokenizer of a model whose vocabulary is smaller and has other control tokens."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|image_pad|>", "<image>"))


def another_processor(folder):
    values = {"image_processor_type": "CLIPImageProcessor", "crop_size": 336}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def prefixed(folder):
    tensors = load_file(folder / SINGLE)
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / SINGLE)


def headless(folder):
    tensors = load_file(folder / SINGLE)
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / SINGLE)


def absent_shard(folder):
    index(folder, lambda values: values["weight_map"].update(more="model-00003.safetensors"))


def absent_tensor(folder):
    index(folder, lambda v: v["weight_map"].update(more="model-00001-of-00002.safetensors"))


def wrong_total(folder):
    index(folder, lambda values: values["metadata"].update(total_size=7))


# name -> (damage, message, whether the tensors' own headers show it)
FAULTS = {
    "AWQ": (quantised(quant_method="awq", bits=4), "quantised (awq); give the bfloat16", False),
    "GPTQ": (quantised(quant_method="gptq", bits=4), "quantised (gptq); give", False),
    "fp8": (quantised(quant_method="fp8"), "quantised (fp8); give", False),
    "bitsandbytes": (
        quantised(quant_method="bitsandbytes", load_in_4bit=True),
        "quantised (bitsandbytes); give", False,
    ),
    "eight bits": (
        quantised(_load_in_8bit=True), "quantised (quantization_config); give", False,
    ),
    "GGUF": (gguf, "holds GGUF, which is never read; give the safetensors", False),
    "packed": (packed, "has dtype 'I32', known are", True),
    ".bin": (pickled("pytorch_model.bin"), "only pickle files (pytorch_model.bin)", True),
    ".pt": (pickled("model.pt"), "only pickle files (model.pt), which are never read; co", True),
    "absent shard": (absent_shard, "names 1 of 3 shards that are not there", True),
    "absent tensor": (absent_tensor, "disagrees with the shards about 1 tensors (more", True),
    "wrong total": (wrong_total, "promises 7 bytes of tensors and the shards hold", True),
    "tokenizer": (another_tokenizer, "of the tokenizer is '<image>', and config.json", False),
    "newer tokenizer": (
        lambda folder: edit(folder, "tokenizer.json", version="9.0"),
        "no tokenizer can be read there (Unknown tokenizer version '9.0'", False,
    ),
    "special tokens": (
        lambda folder: edit(folder, "tokenizer_config.json", eos_token=3),
        "no tokenizer can be read there (Special token eos_token has to be", False,
    ),
    "processor": (another_processor, "is of another model (type is CLIPImageProc", False),
    "prefix": (prefixed, "tensors are named module.NAME", None),
    "no head": (headless, "no lm_head.weight, as where the base model was saved", None),
}  # fmt: skip


@pytest.fixture
def commands(trained_place, tmp_path, monkeypatch, capsys):
    """name -> a call that runs the command on a folder and gives its last line; a tensor that is
    read, or memory that is taken for one, would be a TypeError."""
    for module, name in ((hf_folder, "_aligned"), (tensor_files, "read_rows")):
        monkeypatch.setattr(module, name, None)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2, text
        assert len(text) < 600
        assert "; " in text
        return text

    def with_recipe(command):
        def call(folder, **changes):
            records = tmp_path / "none.jsonl"  # It would be missed after the weights are checked.
            options = tiny_run.sft_options(folder, records, **changes)
            tiny_run.write_config(tmp_path / "recipe.py", f"{command}_7b", options)
            workdir = tmp_path / f"{command}_run"
            return run(command, f"--config={tmp_path / 'recipe.py'}", f"--workdir={workdir}")

        return call

    def export(folder):
        out, run_dir = tmp_path / "out", trained_place.folder / "full"
        return run("export", f"--checkpoint={run_dir}", f"--out={out}", f"--model={folder}")

    def ask(folder, *flags):
        return run("ask", f"--model={folder}", "--question=What?", *flags)

    return {
        "ask": ask,
        "export": export,
        "sft": with_recipe("sft"),
        "evaluate": with_recipe("evaluate"),
    }


@pytest.mark.parametrize("name", FAULTS)
def test_bad_folders_are_one_line(trained_place, tmp_path, commands, name):
    damage, message, is_of_headers = FAULTS[name]
    folder = tmp_path / "model"
    shutil.copytree(trained_place.model, folder)
    damage(folder)
    for command, call in commands.items():
        if command == "export" and is_of_headers is None:
            continue  # It reads the names of a run of ours.
        assert message in call(folder), command


@pytest.mark.parametrize("command", ["ask", "sft", "evaluate"])
def test_an_adapter_of_another_base_is_one_line(trained_place, tmp_path, commands, command):
    folder = tmp_path / "adapter"
    assert trained_place.export("lora", folder, "--adapter") == 0
    (folder / "media_contract.json").unlink()  # it would be refused for that
    base = tmp_path / "base"
    shutil.copytree(trained_place.model, base)
    edit(base, "config.json", num_hidden_layers=5)
    edit(folder, "adapter_config.json", base_model_name_or_path=str(base))
    call, model = commands[command], trained_place.model
    said = (
        call(model, f"--adapter={folder}") if command == "ask"
        else call(model, model__adapter=str(folder))
    )  # fmt: skip
    assert "of num_layers 5, and the model has 2; give the adapter its own base" in said
    said = call(folder) if command != "ask" else call(folder, f"--adapter={folder}")
    assert "is an adapter of PEFT; give its base as the model" in said
