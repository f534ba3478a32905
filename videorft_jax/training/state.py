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
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.peft_folder import Adapter, merge_adapter
from videorft_jax.parallel import sharding
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.options import ModelOptions, TrainOptions
from videorft_jax.training.start import Start
from videorft_jax.training.step import TrainState, init_state
from videorft_jax.training.trees import path_of
from videorft_jax.training.weights import Weights


def abstract_state(
    options: TrainOptions,
    weights: Weights,
    mesh: jax.sharding.Mesh,
    frozen_dtype=None,
    *,
    has_reference: bool = False,
) -> TrainState:
    """The state as a tree of `jax.ShapeDtypeStruct` with shardings; nothing is allocated.

    frozen_dtype: of weights that do not train; by default that of the files of `init_from`.
    has_reference: the state holds a reference policy.
    """
    frozen_dtype = frozen_dtype or checkpoint_dtype(options.model.init_from)
    optimizer = make_optimizer(options.optim, 1)  # shapes are the same for any number of steps

    def build():
        params = jax.tree.map(
            lambda x: jnp.zeros(x.shape, frozen_dtype), family.abstract_params(weights.model)
        )
        trained, frozen = weights.split(params, jax.random.key(0))
        state = init_state(trained, frozen, optimizer, ema=options.optim.ema_decay > 0)
        return with_reference(state, options) if has_reference else state

    shapes = jax.eval_shape(build)
    shardings = sharding.state_shardings(_without_factors(shapes), mesh, options.name)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def with_reference(state: TrainState, options: TrainOptions) -> TrainState:
    """The state with its own weights as the reference policy, in the dtype of the computation."""
    own = jax.tree.map(lambda x: x.astype(options.model.dtype, copy=True), state.params)
    return state._replace(reference=own)


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


def read_params(
    model: ModelOptions,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """The weights of `model.init_from` with an adapter merged into them, in the dtype of the files
    and in their shards."""
    folder = model.init_from
    shardings = sharding.state_shardings(family.abstract_params(config), mesh, folder)
    dtype = checkpoint_dtype(folder)
    params = read_checkpoint(folder, config, dtype, shardings, model.strip_prefix)
    return params if adapter is None else merge_adapter(params, adapter)


def fresh_state(
    options: TrainOptions,
    weights: Weights,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: jax.sharding.Mesh,
    start: Start | None = None,
) -> TrainState:
    """The state of step 0, made of the weights of `model.init_from` and of the adapter that `start`
    holds: it is the one that trains, or it is merged into those weights."""
    merged = start.adapter if start and not start.trains_on else None
    factors = start.adapter.factors if start and start.trains_on else None
    params = read_params(options.model, weights.model, mesh, merged)

    def build(params, factors):
        trained, frozen = weights.split(params, jax.random.key(options.seed))
        if factors is not None:
            trained = {"lora": jax.tree.map(lambda x: x.astype(jnp.float32), factors)}
        state = init_state(trained, frozen, optimizer, ema=options.optim.ema_decay > 0)
        return state if abstract.reference is None else with_reference(state, options)

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(build, out_shardings=shardings)(params, factors)


def expected_meta(weights: Weights, contract: MediaContract) -> dict[str, Any]:
    """What a checkpoint and a run must agree on for the run to go on from it: model, adapters and
    media contract, as JSON values."""
    fields = dataclasses.asdict(weights.model)
    fields.pop("source")
    if fields["text"]["rope_scaling"] is None:
        fields["text"].pop("rope_scaling")  # checkpoints of before have no such field
    lora = weights.lora and dataclasses.asdict(weights.lora)
    return json.loads(json.dumps({"model": fields, "lora": lora, "media": contract.to_dict()}))
