"""What is written reads back; every damage to a file or an index is one clear error."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from videorft_jax.models import tensor_files

TENSORS = {
    "model.norm.weight": np.arange(64, dtype=np.float32),
    "model.a.weight": np.arange(12, dtype=np.float16).reshape(3, 4),
    "model.b.weight": np.arange(30, dtype=ml_dtypes.bfloat16).reshape(5, 3, 2),
    "model.empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "model.safetensors", TENSORS)


def write(path, tensors):
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    tensor_files.write_file(path, specs, iter(tensors.values()))
    return path


def refused(read, target, match):
    with pytest.raises(ValueError, match=match) as error:
        read(target)
    assert "\n" not in str(error.value)
    assert str(target) in str(error.value)


def test_the_library_and_we_read_the_same(path):
    entries, theirs = tensor_files.read_header(path), load_file(path)
    assert entries.keys() == theirs.keys() == TENSORS.keys()
    with path.open("rb") as file:
        for name, tensor in TENSORS.items():
            ours = tensor_files.read_rows(file.fileno(), entries[name], 0, len(tensor))
            assert ours.dtype == theirs[name].dtype == tensor.dtype
            np.testing.assert_array_equal(ours, tensor)
            np.testing.assert_array_equal(theirs[name], tensor)
        rows = tensor_files.read_rows(file.fileno(), entries["model.b.weight"], 1, 3)
        np.testing.assert_array_equal(rows, TENSORS["model.b.weight"][1:3])


def test_a_file_cut_while_it_is_read_is_an_error(path):
    entry = tensor_files.read_header(path)["model.b.weight"]
    path.write_bytes(path.read_bytes()[:-10])
    with path.open("rb") as file, pytest.raises(ValueError, match="ended while it was read"):
        tensor_files.read_rows(file.fileno(), entry, 0, 5)


def header(change):
    """Damage that rewrites the JSON header of a safetensors file."""

    def damage(data):
        length = int.from_bytes(data[:8], "little")
        values = json.loads(data[8 : 8 + length])
        text = change(values)
        text = json.dumps(values).encode() if text is None else text
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return damage


def overlap(values):
    first, second = sorted(set(values) - {"__metadata__"})[:2]
    values[second] = values[first]


DAMAGES = {
    "truncated": (lambda data: data[:-10], "truncated, the header promises"),
    "left over": (lambda data: data + b"12345678", "bytes are left over"),
    "no header": (lambda data: data[:5], "truncated, 5 bytes"),
    "cut header": (lambda data: data[:100], "truncated, the header needs"),
    "length": (lambda data: b"\xff" * 8 + data[8:], "corrupt header, its length"),
    "not json": (header(lambda _: b"{" * 40), "corrupt header"),
    "not an object": (header(lambda _: b"[1, 2, 3]"), "not a JSON object"),
    "a name twice": (header(lambda _: b'{"a": 1, "a": 2}'), "a name stands twice"),
    "overlap": (header(overlap), "overlaps the tensor before it"),
    "hole": (header(lambda v: v.pop("model.norm.weight") and None), "leaves a hole before"),
    "dtype": (
        header(lambda v: v["model.norm.weight"].update(dtype="F8_E4M3")),
        "'model.norm.weight' has dtype 'F8_E4M3', known are F32, F16, BF16",
    ),
    "dtype of no text": (
        header(lambda v: v["model.norm.weight"].update(dtype=["F32"])),
        "has dtype ['F32'], known are",
    ),
    "shape": (
        header(lambda v: v["model.norm.weight"].update(shape=[65])),
        "'model.norm.weight' of 260 bytes has offsets",
    ),
    "negative": (
        header(lambda v: v["model.norm.weight"].update(shape=[-64])),
        "corrupt header at tensor 'model.norm.weight'",
    ),
    "no offsets": (
        header(lambda v: v["model.norm.weight"].pop("data_offsets") and None),
        "corrupt header at tensor 'model.norm.weight'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused(path, name):
    damage, message = DAMAGES[name]
    path.write_bytes(damage(path.read_bytes()))
    refused(tensor_files.read_header, path, re.escape(message))


def test_damaged_indexes_are_refused(tmp_path):
    shard, other = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write(tmp_path / shard, {"a": np.ones(2, np.float32)})
    write(tmp_path / other, {"b": np.ones(3, np.float32)})
    index = tmp_path / tensor_files.INDEX_NAME

    def names(total=None, **weight_map):
        metadata = {} if total is None else {"metadata": {"total_size": total}}
        index.write_text(json.dumps(metadata | {"weight_map": weight_map}))

    def check(match):
        refused(tensor_files.read_folder, tmp_path, match)

    names(a=shard, b=other)
    entries = tensor_files.read_folder(tmp_path)
    assert {name: entry.path.name for name, entry in entries.items()} == {"a": shard, "b": other}
    names(a=shard, b="model-00003-of-00003.safetensors")
    check("names 1 of 2 shards that are not there .model-00003-of-00003.safetensors.")
    names(a=shard, b=other, c=shard)
    check(f"disagrees with the shards about 1 tensors .c not in {shard}")
    names(a=shard)
    assert tensor_files.read_folder(tmp_path).keys() == {"a"}  # a shard that it does not name
    names(total=20, a=shard, b=other)
    assert tensor_files.read_folder(tmp_path).keys() == {"a", "b"}
    names(total=24, a=shard, b=other)
    check("promises 24 bytes of tensors and the shards hold 20; .* or delete total_size")
    write(tmp_path / shard, {"a": np.ones(2, np.float32), "c": np.zeros(1, np.float32)})
    names(total=20, a=shard, b=other)  # A tensor that it does not name is read, as others do.
    entries = tensor_files.read_folder(tmp_path)
    assert entries["c"].path.name == shard
    write(tmp_path / other, {"b": np.ones(3, np.float32), "c": np.zeros(1, np.float32)})
    check(f"disagrees with the shards about 1 tensors .c in {other}")
    write(tmp_path / shard, {"a": np.ones(2, np.float32)})
    write(tmp_path / other, {"b": np.ones(3, np.float32)})
    names(a=shard, b=shard)
    check(f"disagrees .* .b not in {shard}")
    names(a=shard, b=f"../{other}")
    check("not a plain file name")
    index.write_text("{")
    check("corrupt index")
    index.unlink()
    check(f"holds 2 shards, such as {shard}, and no model.safetensors.index.json, .*; download it")
    index.write_text("{")
    shutil.copy(tmp_path / shard, tmp_path / "model.safetensors")
    check("has both model.safetensors and")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_never_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    message = f"only pickle files .{name}., .* convert the checkpoint to safetensors"
    refused(tensor_files.read_folder, tmp_path, message)
    (tmp_path / name).unlink()
    refused(tensor_files.read_folder, tmp_path, "neither model.safetensors nor")
