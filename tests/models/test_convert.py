"""Hugging Face -> ours -> Hugging Face, bit for bit, and one clear error for every damage."""

import dataclasses
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from videorft_jax.models import hf_folder as convert
from videorft_jax.models import hf_writer, tensor_files
from videorft_jax.models.family import load_config
from videorft_jax.models.qwen2_5_vl.config import tiny_values
from videorft_jax.models.qwen2_5_vl.hf_names import leaves_of
from videorft_jax.parallel.sharding import make_mesh, state_shardings

# kv heads, mlp and vocabulary that 8 divides, so that (1, 1, 8) meshes hold it.
SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 3,
    "vision_out_hidden_size": 64,
    "vision_hidden_size": 64,
    "vision_num_heads": 8,
    "vision_depth": 2,
    "vision_fullatt_block_indexes": [1],
}


def new_style(name):
    """The names transformers >= 4.52 has in memory, written down apart from our table."""
    if name.startswith("visual."):
        return "model." + name
    return re.sub("^model[.]", "model.language_model.", name)


@pytest.fixture(scope="module", params=["untied", "tied"])
def hub(request, tmp_path_factory):
    """A random checkpoint as on the hub: folder, config, torch tensors by old name."""
    values = tiny_values(**SIZES, tie_word_embeddings=request.param == "tied")
    if request.param == "untied":
        values = tiny_values(**SIZES | {"num_key_value_heads": 2})
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**values))
    for parameter in model.parameters():  # norms and biases start constant; no two may look alike
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    return folder, load_config(folder), load_file(folder / "model.safetensors")


def write(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config.source)
    return folder


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert left[name].numpy(force=True).tobytes() == right[name].numpy(force=True).tobytes()


def as_bits(tensors):
    """bfloat16 has no numpy dtype in torch: compare its bits."""
    return {k: v.view(torch.int16) if v.dtype.itemsize == 2 else v for k, v in tensors.items()}


def flat(tree):
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rename", [str, new_style])
def test_round_trip_is_bit_identical(hub, tmp_path, dtype, rename):
    _, config, tensors = hub
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    source = write(tmp_path / "in", {rename(k): v for k, v in tensors.items()}, config)
    params = convert.read_checkpoint(source, config)
    assert {path: leaf.shape for path, leaf in flat(params).items()} == {
        leaf.path: leaf.shape for leaf in leaves_of(config)
    }
    hf_writer.write_checkpoint(tmp_path / "out", params, config)
    assert_same_bits(as_bits(load_file(tmp_path / "out/model.safetensors")), as_bits(tensors))
    # And the other way: ours -> Hugging Face -> ours.
    again = convert.read_checkpoint(tmp_path / "out", config)
    for path, leaf in flat(params).items():
        assert np.asarray(leaf).tobytes() == np.asarray(flat(again)[path]).tobytes(), path


def test_table_is_what_transformers_has(hub):
    """Names of the model in memory, not of the file, and all of them."""
    folder, config, tensors = hub
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    theirs = dict(model.named_parameters())
    params = flat(convert.read_checkpoint(folder, config))
    assert {new_style(name) for name in tensors} == set(theirs)
    assert sum(leaf.size for leaf in params.values()) == sum(p.numel() for p in theirs.values())
    qkv = theirs["model.visual.blocks.1.attn.qkv.weight"].detach().numpy()  # [3 N H, D]
    expected = np.stack([part.reshape(8, 8, 64) for part in np.split(qkv, 3)])
    np.testing.assert_array_equal(
        np.einsum("DSNH->SNHD", params["vision/layers/attn/qkv"][1]), expected
    )
    conv = theirs["model.visual.patch_embed.proj.weight"].detach().numpy()
    np.testing.assert_array_equal(params["vision/embed"], conv.reshape(64, 1176).T)


def test_written_folder_gives_the_same_logits_in_transformers(hub, tmp_path):
    folder, config, _ = hub
    source = tmp_path / "source"
    source.mkdir()
    copied = {"tokenizer.json", "chat_template.jinja", "generation_config.json"}
    for name in copied | {"code.py", "pytorch_model.bin", "optimizer.pt", "README.md"}:
        (source / name).write_text("{}")
    values = json.loads(config.source) | {"auto_map": {"AutoModel": "code.Model"}}
    exported = dataclasses.replace(config, source=json.dumps(values))
    params = convert.read_checkpoint(folder, config)
    out = tmp_path / "out"
    hf_writer.write_checkpoint(out, params, exported, source_folder=source, max_shard_bytes=200_000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2
    others = {path.name for path in out.iterdir()} - set(shards)
    assert others == copied | {"config.json", "model.safetensors.index.json"}
    written = json.loads((out / "config.json").read_text())
    assert written["torch_dtype"] == "float32"
    assert "auto_map" not in written
    assert load_config(out) == config
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * x.size for x in jax.tree.leaves(params))

    ids = torch.tensor([[7, 302] + [305] * 6 + [303, 9, 11]])
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == 305).int(),
        "pixel_values": torch.randn(24, 1176, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
    logits = []
    for path in (folder, out):
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(path).eval()
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)
    assert logits[0].std() > 0.01


@pytest.mark.parametrize("axes", [(1, 1, 8), (1, 8, 1), (2, 2, 2)])
def test_sharded_read_and_write_equal_unsharded(hub, tmp_path, axes):
    folder, config, tensors = hub
    if not config.text.tied and axes[2] == 8:
        with pytest.raises(ValueError, match="kv_heads = 2"):
            state_shardings(shapes(config), make_mesh(*axes))
        return
    shardings = state_shardings(shapes(config), make_mesh(*axes))
    whole = flat(convert.read_checkpoint(folder, config, "bfloat16"))
    params = convert.read_checkpoint(folder, config, "bfloat16", shardings)
    for path, leaf in flat(params).items():
        assert leaf.sharding == flat(shardings)[path]
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[path]), err_msg=path)
    hf_writer.write_checkpoint(tmp_path / "out", params, config)
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    assert_same_bits(as_bits(load_file(tmp_path / "out/model.safetensors")), as_bits(expected))


def shapes(config):
    return convert.nest(
        {leaf.path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in leaves_of(config)}
    )


def test_only_the_rows_a_process_needs_are_read(hub, monkeypatch):
    """With one device's shard addressable, the bytes read of a row-split matrix shrink."""
    folder, config, _ = hub
    read, counted = tensor_files.read_rows, []

    def counting(descriptor, entry, start, stop, scratch):
        counted.append((stop - start) * entry.nbytes // entry.shape[0])
        return read(descriptor, entry, start, stop, scratch)

    class OnlyFirst:
        """The sharding as the first of eight processes sees it."""

        def __init__(self, whole):
            self.whole = whole

        def addressable_devices_indices_map(self, shape):
            indices = self.whole.addressable_devices_indices_map(shape)
            device = next(iter(indices))
            return {device: indices[device]}

    monkeypatch.setattr(tensor_files, "read_rows", counting)
    monkeypatch.setattr(convert, "_BLOCK", 1024)
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, sharding, get: get)
    shardings = state_shardings(shapes(config), make_mesh(1, 4, 2))
    shardings = jax.tree.map(OnlyFirst, shardings)
    convert.read_checkpoint(folder, config, shardings=shardings)
    total = (folder / "model.safetensors").stat().st_size
    assert sum(counted) < 0.75 * total


def test_kept_and_cast_dtypes(hub, tmp_path):
    folder, config, tensors = hub
    params = convert.read_checkpoint(folder, config, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    expected = tensors["model.norm.weight"].to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(params["text"]["final_norm"].astype(np.float32), expected)
    params["text"]["final_norm"] = params["text"]["final_norm"].astype(np.float32)
    with pytest.raises(ValueError, match="are mixed; give one dtype"):
        hf_writer.write_checkpoint(tmp_path / "out", params, config)
    with pytest.raises(ValueError, match="int8 cannot be held"):
        convert.read_checkpoint(folder, config, "int8")
    hf_writer.write_checkpoint(tmp_path / "out", params, config, "float16")
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_float16_cannot_hold_is_refused(hub, tmp_path, dtype):
    """A value beyond its range would be infinite, and with it every logit."""
    _, config, tensors = hub
    name = "model.layers.1.self_attn.k_proj.bias"
    large = tensors[name].clone()
    large[3] = -1e5
    tensors = {key: tensor.to(dtype) for key, tensor in (tensors | {name: large}).items()}
    folder = write(tmp_path / "large", tensors, config)
    said = refused(folder, config, "holds a value beyond 65504, the large", "float16")
    assert f"model.safetensors: {name}: " in said
    params = convert.read_checkpoint(folder, config)
    with pytest.raises(ValueError, match=f"^{re.escape(name)}: holds a value beyond 65504"):
        hf_writer.write_checkpoint(tmp_path / "out", params, config, "float16")
    assert os.listdir(tmp_path) == ["large"]


@pytest.mark.parametrize("hub", ["tied"], indirect=True)
def test_a_tied_file_may_carry_its_head_only_if_equal(hub, tmp_path):
    _, config, tensors = hub
    embed = tensors["model.embed_tokens.weight"]
    folder = write(tmp_path / "in", tensors | {"lm_head.weight": embed.clone()}, config)
    assert "head" not in convert.read_checkpoint(folder, config)["text"]
    other = embed.clone()
    other[-1, -1] += 1
    write(folder, tensors | {"lm_head.weight": other}, config)
    with pytest.raises(ValueError, match=r"lm_head.weight \(text/head\) differs from model.embed"):
        convert.read_checkpoint(folder, config)


def test_a_failed_or_killed_export_leaves_nothing(hub, tmp_path, monkeypatch):
    folder, config, _ = hub
    params = convert.read_checkpoint(folder, config)
    out = tmp_path / "out"
    (tmp_path / "out.partial").mkdir()  # what a kill left
    (tmp_path / "out.partial" / "junk").write_text("")

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(hf_writer, "_write_side_files", full)
        with pytest.raises(OSError, match="disk full"):
            hf_writer.write_checkpoint(out, params, config)
    assert list(tmp_path.iterdir()) == []
    hf_writer.write_checkpoint(out, params, config)
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(ValueError, match="is there already and not empty"):
        hf_writer.write_checkpoint(out, params, config)


def refused(folder, config, match, dtype=None):
    with pytest.raises(ValueError, match=match) as error:
        convert.read_checkpoint(folder, config, dtype)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_tensors_are_listed_all_at_once_with_both_names(hub, tmp_path):
    _, config, tensors = hub
    tensors = dict(tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["visual.merger.mlp.2.bias"]
    tensors["visual.pos_embed.weight"] = torch.zeros(3)
    tensors["model.norm.weight"] = torch.zeros(63)
    tensors["model.layers.2.self_attn.q_proj.bias"] = torch.zeros(64, dtype=torch.float16)
    text = refused(write(tmp_path / "in", tensors, config), config, "5 tensors do not fit")
    for part in (
        "missing model.layers.1.mlp.up_proj.weight (text/layers/mlp/up[1])",
        "missing visual.merger.mlp.2.bias (vision/merger/down_bias)",
        "unknown visual.pos_embed.weight (no parameter of ours)",
        "mis-shaped model.norm.weight (text/final_norm): [63] in the file, [64] by the config",
        "model.layers.2.self_attn.q_proj.bias (text/layers/attn/q_bias[2]) is float16",
    ):
        assert part in text
    write(tmp_path / "in", {"other": torch.zeros(1)}, config)
    assert re.search(r"and \d+ more; take", refused(tmp_path / "in", config, "tensors do not fit"))


def test_a_stack_of_several_dtypes_is_read_where_one_is_asked_for(hub, tmp_path):
    """One layer in float16 among float32: refused as it is, cast each on its own with a dtype."""
    _, config, tensors = hub
    name = "model.layers.2.mlp.up_proj.weight"
    mixed = dict(tensors) | {name: tensors[name].half()}
    folder = write(tmp_path / "in", mixed, config)
    assert name in refused(folder, config, "float16, layer 0 float32")
    found = convert.read_checkpoint(folder, config, dtype="float32")["text"]["layers"]["mlp"]["up"]
    for layer in range(config.text.num_layers):
        expected = mixed[f"model.layers.{layer}.mlp.up_proj.weight"].float().numpy().T
        np.testing.assert_array_equal(np.asarray(found[layer]), expected)


def test_a_url_is_no_folder_of_this_disk(hub, tmp_path, monkeypatch):
    folder, config, _ = hub
    monkeypatch.chdir(tmp_path)
    params = convert.read_checkpoint(folder, config)
    with pytest.raises(ValueError, match="gs://bucket/out: is no local folder"):
        hf_writer.write_checkpoint("gs://bucket/out", params, config)
    assert list(tmp_path.iterdir()) == []


def test_params_that_do_not_fit_are_not_written(hub, tmp_path):
    folder, config, _ = hub
    params = convert.read_checkpoint(folder, config)
    del params["vision"]["embed"]
    params["text"]["final_norm"] = params["text"]["final_norm"][:5]
    params["extra"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="params: 3 tensors") as error:
        hf_writer.write_checkpoint(tmp_path / "out", params, config)
    for part in (
        "missing vision/embed (visual.patch_embed.proj.weight)",
        "unknown extra (no tensor on the hub)",
        "mis-shaped text/final_norm (model.norm.weight): [5], [64] by the config",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_old_and_new_name_of_one_tensor_is_an_error(hub, tmp_path):
    _, config, tensors = hub
    twice = tensors | {"model.language_model.norm.weight": torch.zeros(64)}
    refused(write(tmp_path / "in", twice, config), config, "under its old and its new name")


def test_damaged_files_are_refused_before_anything_is_allocated(hub, tmp_path, monkeypatch):
    folder, config, _ = hub
    data = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-10])
    monkeypatch.setattr(convert, "_aligned", None)  # a call would be a TypeError
    refused(tmp_path, config, "model.safetensors: truncated, the header promises")


def test_unknown_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_values() | {"model_type": "llava"}))
    with pytest.raises(ValueError, match="model_type is 'llava'; give a checkpoint of Qwen2.5-VL"):
        load_config(tmp_path)
