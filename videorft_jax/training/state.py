"""The state of a run: its shapes and shardings before anything is allocated, and its first values.

A checkpoint is restored into the shapes; without one the state is made of a Hugging Face folder.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.models import family, tensor_files
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.parallel import sharding
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.step import TrainState, init_state
from videorft_jax.training.trees import path_of
from videorft_jax.training.weights import Weights


def abstract_state(
    options: TrainOptions, weights: Weights, mesh: jax.sharding.Mesh, frozen_dtype=None
) -> TrainState:
    """The state as a tree of `jax.ShapeDtypeStruct` with shardings; nothing is allocated.

    frozen_dtype: of weights that do not train; by default that of the files of `init_from`.
    """
    frozen_dtype = frozen_dtype or checkpoint_dtype(options.model.init_from)
    optimizer = make_optimizer(options.optim, 1)  # shapes are the same for any number of steps

    def build():
        params = jax.tree.map(
            lambda x: jnp.zeros(x.shape, frozen_dtype), family.abstract_params(weights.model)
        )
        trained, frozen = weights.split(params, jax.random.key(0))
        return init_state(trained, frozen, optimizer, ema=options.optim.ema_decay > 0)

    shapes = jax.eval_shape(build)
    shardings = sharding.state_shardings(_without_factors(shapes), mesh, options.name)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _without_factors(shapes: TrainState) -> TrainState:
    """The shapes with a scalar for each row or column that Adafactor keeps of a weight. Such a
    vector fits no sharding rule of its weight; it is small and lies on every device."""
    sizes = {
        path_of(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes.params)
    }

    def keep(keys, leaf):
        path = path_of(keys)
        of = next((size for name, size in sizes.items() if path.endswith(f"/{name}")), leaf.shape)
        return leaf if of == leaf.shape else jax.ShapeDtypeStruct((), leaf.dtype)

    return shapes._replace(opt_state=jax.tree_util.tree_map_with_path(keep, shapes.opt_state))


def checkpoint_dtype(folder: str) -> jnp.dtype:
    """The dtype that holds every tensor of a Hugging Face folder without loss."""
    return jnp.result_type(*{entry.dtype for entry in tensor_files.read_folder(folder).values()})


def read_params(folder: str, weights: Weights, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The weights of a Hugging Face folder, in the dtype of its files and in their shards."""
    shapes = family.abstract_params(weights.model)
    shardings = sharding.state_shardings(shapes, mesh, folder)
    return read_checkpoint(folder, weights.model, checkpoint_dtype(folder), shardings)


def fresh_state(
    options: TrainOptions,
    weights: Weights,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """The state of step 0, made of the weights of `model.init_from`."""
    params = read_params(options.model.init_from, weights, mesh)

    def build(params):
        trained, frozen = weights.split(params, jax.random.key(options.seed))
        return init_state(trained, frozen, optimizer, ema=options.optim.ema_decay > 0)

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(build, out_shardings=shardings)(params)


def expected_meta(weights: Weights, contract: MediaContract) -> dict[str, Any]:
    """What a checkpoint and a run must agree on for the run to go on from it: model, adapters and
    media contract, as JSON values."""
    fields = dataclasses.asdict(weights.model)
    fields.pop("source")
    if fields["text"]["rope_scaling"] is None:
        fields["text"].pop("rope_scaling")  # checkpoints of before have no such field
    lora = weights.lora and dataclasses.asdict(weights.lora)
    return json.loads(json.dumps({"model": fields, "lora": lora, "media": contract.to_dict()}))
