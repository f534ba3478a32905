"""Every path has a rule, every rule a path; published sizes divide, and refusals say why."""

import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from videorft_jax.models import family, lora
from videorft_jax.models.siglip import towers as siglip_towers
from videorft_jax.parallel import sharding

SIZES = family.published_sizes()


def abstract_mesh(data=1, fsdp=1, tensor=1):
    """A mesh of any size without devices; shardings need only its axes."""
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES)


def qwen(size, **overrides):
    made = family.find_size(size)
    return family.abstract_params(made.parse_config(made.hf_values(size, **overrides), size))


def siglip(num_heads=16, width=1152, mlp=4304):
    """so400m: width 1152, mlp 4304, 16 heads, 27 layers."""
    tower = siglip_towers.TowerConfig(width, mlp, 27, num_heads)
    config = siglip_towers.SiglipConfig(**SIGLIP | {"vision": tower, "text": tower})
    return unflatten_dict(siglip_towers.abstract(config)[2], sep="/")


def adapters(params):
    """Adds adapters to everything that can have one."""
    targets = (
        r"layers/(attn|mlp)/(q|k|v|o|qkv|proj|gate|up|down)$",
        r"(merger|deepstack)/(up|down)$",
    )
    config = lora.LoraConfig(8, 16, targets)
    return jax.eval_shape(lambda key: lora.init_lora(params, config, key), jax.random.key(0))


def flat(tree):
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


SIGLIP = {
    "image_size": 384,
    "patch_size": 16,
    "vocab_size": 32000,
    "text_length": 64,
    "text_rule": "v1",
    "resample": 3,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}


@pytest.mark.parametrize(
    ("size", "count"), [("3b", 3.755e9), ("7b", 8.292e9), ("32b", 33.45e9), ("72b", 73.41e9)]
)
def test_parameter_counts_are_the_published_ones(size, count):
    leaves = jax.tree.leaves(qwen(size))
    assert not any(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == pytest.approx(count, rel=2e-4)


@pytest.mark.parametrize("size", SIZES)
def test_name_table_has_the_shapes_of_the_model(size):
    shapes = {path: leaf.shape for path, leaf in flat(qwen(size)).items()}
    leaves = family.find_size(size).leaves_of(family.published_config(size))
    assert {leaf.path: leaf.shape for leaf in leaves} == shapes


@pytest.mark.parametrize("size", SIZES)
def test_every_path_matches_and_only_whole_trees_use_every_rule(size):
    params = qwen(size)
    mesh = abstract_mesh(2, 16, 2)
    specs = sharding.state_shardings(params, mesh, size)
    assert jax.tree.structure(specs) == jax.tree.structure(params)
    other = qwen("qwen3vl_8b" if "qwen3" not in size else "7b")
    trees = [params, other, siglip(), adapters(params), adapters(other)]
    assert sharding.unused_rules(trees) == []
    assert sharding.unused_rules(trees[:1])  # the check can fail


def test_specs_are_those_of_the_plan():
    specs = flat(sharding.state_shardings(qwen("7b"), abstract_mesh(1, 8, 4), "7b"))
    expected = {
        "text/embed": P("tensor", "fsdp"),
        "text/head": P("tensor", "fsdp"),
        "text/final_norm": P(None),
        "text/layers/attn/q": P(None, "fsdp", "tensor", None),
        "text/layers/attn/k": P(None, "fsdp", "tensor", None),
        "text/layers/attn/v_bias": P(None, "tensor", None),
        "text/layers/attn/o": P(None, "tensor", None, "fsdp"),
        "text/layers/mlp/down": P(None, "tensor", "fsdp"),
        "vision/embed": P(None, "fsdp"),
        "vision/layers/attn/qkv": P(None, "fsdp", None, "tensor", None),
        "vision/layers/attn/proj_bias": P(None, None),
        "vision/layers/mlp/gate": P(None, "fsdp", "tensor"),
        "vision/merger/down": P("tensor", "fsdp"),
    }
    assert {path: specs[path].spec for path in expected} == expected


def test_adapters_split_the_dims_their_matrix_splits():
    params = qwen("7b")
    mesh = abstract_mesh(1, 8, 4)
    whole = flat(sharding.state_shardings(params, mesh))
    parts = flat(sharding.state_shardings(adapters(params), mesh))
    paths = [path.removesuffix("/a") for path in parts if path.endswith("/a")]
    assert len(paths) == 7 + 5 + 2
    for path in paths:
        a, b = parts[f"{path}/a"].spec, parts[f"{path}/b"].spec
        lead = "/layers/" in path
        assert P(*a[:-1], *b[1 + lead :]) == whole[path].spec, path
        assert a[-1] is None
        assert b[lead] is None


def test_siglip_splits_its_heads_and_keeps_its_scalars_whole():
    specs = flat(sharding.state_shardings(siglip(), abstract_mesh(1, 8, 4), "so400m"))
    assert specs["logit_scale"].spec == P()
    assert specs["vision/pool/qkv"].spec == P("fsdp", None, "tensor", None)
    assert specs["text/layers/attn/k"].spec == P(None, "fsdp", "tensor", None)
    with pytest.raises(ValueError, match=r"^base: .*tensor = 8 .*heads = 12 .*divides 4$"):
        sharding.state_shardings(siglip(12, 768, 3072), abstract_mesh(tensor=8), "base")


def test_optimizer_states_lie_as_their_parameters():
    params = qwen("3b")
    optimizer = optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)), every_k_schedule=2
    )
    state = jax.eval_shape(optimizer.init, params)
    mesh = abstract_mesh(2, 8, 2)
    specs = flat(sharding.state_shardings(state, mesh))
    for path, leaf in flat(sharding.state_shardings(params, mesh)).items():
        assert sum(p.endswith("/" + path) and specs[p] == leaf for p in specs) == 3, path
    assert specs["gradient_step"].spec == P()


@pytest.mark.parametrize(
    ("size", "tensor"), [("3b", 2), ("7b", 4), ("32b", 8), ("72b", 8), ("7b", 1), ("32b", 2)]
)
def test_meshes_that_divide_are_accepted(size, tensor):
    sharding.state_shardings(qwen(size), abstract_mesh(4, 256, tensor), size)


@pytest.mark.parametrize(
    ("size", "mesh", "message"),
    [
        ("7b", {"tensor": 8}, r"^7b: mesh axis tensor = 8 .*kv_heads = 4 \(.*divides 4$"),
        ("3b", {"tensor": 4}, r"^3b: mesh axis tensor = 4 .*kv_heads = 2 \(.*divides 2$"),
        ("32b", {"tensor": 16}, r"^32b: .*kv_heads = 8 \(.* heads = 40 \(.*divides 8$"),
        ("7b", {"fsdp": 3}, r"^7b: mesh axis fsdp = 3 .*embed = 3584 \(.*divides 256$"),
    ],
)
def test_meshes_that_do_not_divide_are_refused_with_the_head_count(size, mesh, message):
    with pytest.raises(ValueError, match=message) as error:
        sharding.state_shardings(qwen(size), abstract_mesh(**mesh), size)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"vocab = 151937 \(text/embed, dim 0\)"):
        sharding.state_shardings(qwen("3b", vocab_size=151937), abstract_mesh(tensor=2), "3b")


def test_unknown_paths_and_wrong_ranks_are_errors():
    mesh = abstract_mesh()
    vector = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(ValueError, match=r"x: 1 paths without a sharding rule \(text/extra\)"):
        sharding.state_shardings({"text": {"extra": vector}}, mesh, "x")
    with pytest.raises(ValueError, match=r"x: text/embed has shape \[4\]"):
        sharding.state_shardings({"text": {"embed": vector}}, mesh, "x")
    with pytest.raises(ValueError, match="without a sharding rule"):  # a suffix, but not a path's
        sharding.state_shardings({"othertext": {"embed": vector}}, mesh)


def test_make_mesh_fills_in_what_is_left():
    mesh = sharding.make_mesh(data=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert sharding.make_mesh(devices=jax.devices()[:3]).shape["fsdp"] == 3


@pytest.mark.parametrize(
    "sizes",
    [{"tensor": 3}, {"data": 2, "fsdp": 2, "tensor": 1}, {"data": -1}, {"data": 0}, {"fsdp": 16}],
)
def test_make_mesh_refuses_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match=r"^mesh data="):
        sharding.make_mesh(**sizes)


def tpus(name, **options):
    """Devices that are not here."""
    pytest.importorskip("libtpu")
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    os.environ.update({key: os.environ.get(key, value) for key, value in settings.items()})
    return topologies.get_topology_desc(name, "tpu", **options).devices


@pytest.mark.parametrize(
    ("name", "works"), [("v6e:4x4", "1, 4, 16"), ("v5p:4x4x4", "1, 4, 16, 64")]
)
def test_axes_without_links_are_refused_with_those_that_have_some(name, works):
    devices = tpus(name)
    with pytest.raises(ValueError, match=rf"^mesh data=1, .*tensor=2: .* among {works}$") as error:
        sharding.make_mesh(tensor=2, devices=devices)
    assert "\n" not in str(error.value)
    for tensor in map(int, works.split(", ")):
        mesh = sharding.make_mesh(tensor=tensor, devices=devices)
        assert mesh.devices.shape == (1, len(devices) // tensor, tensor)
        assert len({device.id for device in mesh.devices.flat}) == len(devices)


@pytest.mark.parametrize("name", ["v5e:8x8", "v6e:4x4", "v5p:2x4x4", "tpu7x:2x4x4", "v6e:2x4"])
def test_devices_that_follow_each_other_in_one_axis_are_neighbours(name):
    """Every 2, 4, 8, ... of them fill a box whose sides differ by a factor of two at most, and the
    cores of a chip stand together, so that a rollout's tensor axis has short ways."""
    devices = tpus(name)
    placed = sharding.make_mesh(devices=devices).devices.ravel()
    assert {d.id for d in placed} == {d.id for d in devices}
    cores = 1 + max(device.core_on_chip for device in devices)
    size = cores
    while size <= len(devices):
        for group in placed.reshape(-1, size):
            sides = np.ptp([device.coords for device in group], axis=0) + 1
            assert math.prod(sides) * cores == size
            assert sides.max() <= 2 * np.sort(sides[np.ptp([d.coords for d in placed], 0) > 0])[0]
        size *= 2


def test_single_cores_of_v4_are_laid_out_too():
    mesh = sharding.make_mesh(tensor=2, devices=tpus("v4:2x2x1"))
    assert mesh.devices.shape == (1, 4, 2)


@pytest.fixture(scope="module")
def two_slices():
    """Two v5e slices of eight."""
    return tpus("v5e:2x4", num_slices=2)


def test_only_data_crosses_slices(two_slices):
    mesh = sharding.make_mesh(data=4, fsdp=2, tensor=2, slices=2, devices=two_slices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 2}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert slices[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert (slices == slices[:, :1, :1]).all()
    assert len({device.id for device in mesh.devices.flat}) == 16


def test_gradients_are_all_that_crosses_slices(two_slices):
    """A compiled update: weights are gathered within a slice, and between slices a chip sends only
    its part of the gradient."""
    mesh = sharding.make_mesh(data=2, fsdp=8, slices=2, devices=two_slices)
    split = jax.sharding.NamedSharding(mesh, P("fsdp", None))
    rows = jax.ShapeDtypeStruct((64, 512), jnp.float32, sharding=sharding.batch_sharding(mesh))
    weight = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=split)

    def update(w, x):
        return w - jax.grad(lambda w: jnp.tanh(x @ w).sum())(w)

    text = jax.jit(update, out_shardings=split).lower(weight, rows).compile().as_text()
    gathers = re.findall(r" all-gather(?:-start)?\(.*?replica_groups=(\S+),", text)
    assert gathers == ["{{0,1,2,3,4,5,6,7}}"]  # Each slice gathers its own.
    sent = re.findall(r"= \(f32\[([\d,]+)\]\S*, u32\[\]\S*, token\[\]\) send\(", text)
    assert text.count(" send(") == len(sent) == 1
    assert math.prod(map(int, sent[0].split(","))) == 512 * 512 // 8  # its own part, once


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 2}, r"^mesh slices=1: the devices lie in 2; set slices=2$"),
        ({"data": 3, "fsdp": 2, "slices": 2}, r"^mesh data=3"),
        ({"fsdp": 16, "slices": 2}, r"data does not divide by slices=2, .* data=2 or a multiple$"),
    ],
)
def test_slices_that_do_not_fit_are_refused(two_slices, sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes, devices=two_slices)


def test_processes_stand_in_for_slices_where_devices_do_not_say():
    with pytest.raises(ValueError, match=r"^mesh slices=2: there are 1 processes; give 1"):
        sharding.make_mesh(data=2, slices=2)


def test_place_batch_splits_rows_over_data_and_fsdp():
    mesh = sharding.make_mesh(2, 2, 2)
    rows = np.arange(24).reshape(8, 3)
    placed = sharding.place_batch({"tokens": rows, "empty": np.zeros((8, 0, 2))}, mesh)
    np.testing.assert_array_equal(placed["tokens"], rows)
    assert placed["tokens"].sharding == sharding.batch_sharding(mesh)
    starts = sorted(int(shard.data[0, 0]) for shard in placed["tokens"].addressable_shards)
    assert starts == [0, 0, 6, 6, 12, 12, 18, 18]
    with pytest.raises(ValueError, match=r"6 rows do not divide .*that 4 divides"):
        sharding.place_batch({"tokens": rows[:6]}, mesh)
