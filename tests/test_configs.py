"""The recipes: all load, are locked and fit the meshes they are meant for; no array is made."""

import json
import logging
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from option_names import OPTIONS
from tiny_run import ROOT, load_recipe

from videorft_jax.commands import flags, options_help
from videorft_jax.models.family import count_params, find_size, load_config, size_in
from videorft_jax.models.tensor_files import SINGLE_NAME, write_file
from videorft_jax.parallel import sharding
from videorft_jax.training.run import make_mesh
from videorft_jax.training.setup import make_contract, make_train_options
from videorft_jax.training.state import abstract_state
from videorft_jax.training.weights import make_weights

RECIPES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"demo"})  # test_demo
SIZES = {name: size_in(name) for name in RECIPES if re.search(r"_\d+b", name)}
# data, fsdp, tensor of one host of 8, a pod of 32, of 128 and of 256 chips.
MESHES = ((1, 8, 1), (1, 4, 2), (2, 8, 2), (1, 16, 1), (4, 16, 2), (1, 64, 2))


def model_folder(folder, size):
    """What building a state reads of a checkpoint: its config, and the dtype of a tensor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(find_size(size).hf_values(size)))
    dtype = np.dtype(jnp.bfloat16)
    write_file(folder / SINGLE_NAME, [("any", dtype, (1,))], [np.zeros(1, dtype)])
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {size: model_folder(folder / size, size) for size in set(SIZES.values())}


def build(recipe, folders, mesh, optim=None):
    """(config, weights, abstract state)."""
    config = load_recipe(recipe)
    config.model.init_from = folders[SIZES[recipe]]
    config.optim.update(optim or {})
    config.lock()
    options = make_train_options(config)
    weights = make_weights(options, load_config(options.model.init_from))
    return config, weights, abstract_state(options, weights, mesh)


def num_bytes(tree, per_device=False):
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if per_device else leaf.shape)
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def test_option_names_are_frozen():
    names = [
        name.removeprefix("c.") for name, _ in options_help.flatten(load_recipe("common"), "c")
    ]
    assert tuple(names) == OPTIONS


@pytest.fixture
def keep_logging():
    """Reading a command line takes over the root logger."""
    loggers = logging.getLogger(), logging.getLogger("absl")
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def test_fewer_frames_than_the_least_of_a_preset():
    """One option says it, as --frames of ask does; an own least number stands."""
    config = load_recipe("grpo_7b")
    for given, wanted in (
        ((0, 0), (16, 16)),
        ((0, 8), (8, 8)),
        ((0, 32), (16, 32)),
        ((4, 8), (4, 8)),
    ):
        config.media.min_frames, config.media.max_frames = given
        contract = make_contract(config)
        assert (contract.min_frames, contract.max_frames) == wanted
    config.media.min_frames = 9
    with pytest.raises(ValueError, match="min_frames <= max_frames"):
        make_contract(config)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_locked_and_names_its_command(name, keep_logging):
    path = ROOT / "configs" / f"{name}.py"
    config, workdir = flags.parse([f"--config={path}", "--workdir=runs/a"], "videorft", "")
    assert workdir == os.path.abspath("runs/a")  # Orbax refuses relative ones, at its first save
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.optim.learning_rate = 1.0
    with pytest.raises(TypeError):
        config.data.rows = "8"
    assert {option for option, _ in options_help.flatten(config, "")} == {f".{n}" for n in OPTIONS}
    if name == "common":
        return
    assert config.name == name
    assert f"--config=configs/{name}.py" in path.read_text().split('"""')[1]


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("name", sorted(SIZES))
def test_state_divides_on_pods(name, shape, folders):
    mesh = AbstractMesh(shape, sharding.AXES, (AxisType.Auto,) * 3)
    _, weights, state = build(name, folders, mesh)
    split = math.prod(shape[1:])
    large = state if weights.lora is None else state.frozen
    share = num_bytes(large, per_device=True) / (num_bytes(large) / split)
    assert 1 <= share < 1.02  # only norms and biases lie on every device
    count = count_params(weights.model)
    if weights.lora is None:  # a master, two moments: 12 bytes; step and counters are a few
        assert 0 <= num_bytes(state) - 12 * count < 100
    else:
        assert num_bytes(state.frozen) == 2 * count


@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize(
    "optim", [{"name": "adafactor"}, {"mu_dtype": "bfloat16", "ema_decay": 0.9}]
)
def test_state_of_other_optimizers_is_built(name, optim, folders):
    mesh = AbstractMesh((1, 4, 2), sharding.AXES, (AxisType.Auto,) * 3)
    trained, other = (build(name, folders, mesh, changes)[2] for changes in ({}, optim))
    assert jax.tree.map(lambda x: x.sharding, other.params) == jax.tree.map(
        lambda x: x.sharding, trained.params
    )
    if optim.get("name") == "adafactor":  # rows and columns of matrices that are not too narrow
        if name.endswith("_lora"):
            return
        assert num_bytes(other.opt_state) < 0.2 * num_bytes(trained.opt_state)
    else:  # 2 + 4 bytes, and 4 of the average
        size = num_bytes(trained.params)
        assert abs(num_bytes(other.opt_state) - 1.5 * size) < 100
        assert num_bytes(other.ema) == size


@pytest.mark.parametrize("name", ["sft_3b", "sft_7b"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_full_recipes_fit_a_host_of_eight(name, tensor, folders):
    config = load_recipe(name)
    config.mesh.tensor = tensor
    mesh = make_mesh(make_train_options(config))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8 // tensor, "tensor": tensor}


def test_lora_recipe_fits_one_card_of_80_gb(folders):
    mesh = AbstractMesh((1, 1, 1), sharding.AXES, (AxisType.Auto,) * 3)
    config, weights, state = build("sft_7b_lora", folders, mesh)
    adapters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # PEFT's count for Qwen2.5-7B, rank r, all seven matrices of 28 layers, is r times the sum of
    # their sides: q, o 3584 + 3584; k, v 3584 + 512; gate, up, down 3584 + 18944.
    sides = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    assert adapters == 28 * 32 * sides == 80_740_352
    assert num_bytes(state) < 18e9
    assert config.data.rows == config.train.accumulate  # one row at a time
    assert len(weights.targets) == 7
