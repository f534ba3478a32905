"""What SFT and GRPO put together before their first step, from the sections of a config.

Everything that can be refused is refused here, before a weight is read or a program compiled.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerFast

from videorft_jax.checkpoints.bucket import Mirror, resolve
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.quarantine import TooManyBad
from videorft_jax.data.records.source import RecordSource
from videorft_jax.models import family, tensor_files
from videorft_jax.models.attention.dispatch import IMPLEMENTATIONS
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import check_vocabulary, read_checkpoint
from videorft_jax.models.layers import REMAT_POLICIES
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import describe_environment
from videorft_jax.training.optimizer import OptimConfig, make_optimizer
from videorft_jax.training.step import TrainState, init_state
from videorft_jax.training.trees import path_of
from videorft_jax.training.weights import Weights, make_weights

log = logging.getLogger(__name__)


def make_mesh(config, devices=None) -> jax.sharding.Mesh:
    """The mesh (default: of all devices there are), and the checks of everything that must divide
    by it."""
    for field, value, least in (
        ("train.accumulate", config.train.accumulate, 1),
        ("train.max_steps", config.train.max_steps, 0),
        ("checkpoint.every", config.checkpoint.every, 1),
    ):
        if value < least:
            raise ValueError(f"{config.name}: {field} is {value}; give at least {least}")
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, slices = config.data.rows, config.train.accumulate
    if rows % (parts * slices):
        raise ValueError(
            f"{config.name}: data.rows is {rows}; with data * fsdp = {parts} and train.accumulate "
            f"= {slices} it must be a multiple of {parts * slices}"
        )
    if parts % jax.process_count():
        raise ValueError(
            f"{config.name}: data * fsdp = {parts} does not divide by {jax.process_count()} "
            f"processes; lower tensor = {mesh.shape['tensor']} so that each process has its rows"
        )
    for field, value, known in (
        ("model.remat", config.model.remat, REMAT_POLICIES),
        ("model.attention", config.model.attention, IMPLEMENTATIONS),
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
        ("optim.mu_dtype", config.optim.mu_dtype, ("float32", "bfloat16")),
    ):
        if value not in known:
            raise ValueError(f"{config.name}: {field} is {value!r}; choose one of {tuple(known)}")
    return mesh


def check_cpus(config, count: int) -> None:
    """Raises ValueError for an update in bfloat16 on several CPU devices: XLA's compiler for CPUs
    ends the process there ("Invalid binary instruction opcode copy", jax 0.10)."""
    if count > 1 and config.model.dtype == "bfloat16":
        raise ValueError(
            f"{config.name}: model.dtype is bfloat16, whose sums over {count} CPU devices XLA "
            "cannot compile; set model.dtype=float32, or use one device"
        )


def load_model_files(config) -> tuple[ModelConfig, Any]:
    """The model's config and tokenizer from `model.init_from`."""
    folder = config.model.init_from
    if not folder:
        raise ValueError(f"{config.name}: model.init_from is empty; give a Hugging Face folder")
    model_config = load_config(folder)
    check_vocabulary(model_config, folder)
    if not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        raise ValueError(f"{folder}: no tokenizer.json; save the tokenizer as a fast one there")
    # AutoTokenizer would load torch where it is installed: two seconds and 300 MB.
    return model_config, PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def make_contract(config) -> MediaContract:
    media = config.media.to_dict()
    preset = media.pop("preset")
    if preset not in ("train", "evaluate"):
        raise ValueError(f"{config.name}: media.preset is {preset!r}; choose train or evaluate")
    changes = {field: value for field, value in media.items() if value}
    return dataclasses.replace(getattr(MediaContract, preset)(), **changes)


def make_loader(
    config, mode: str, tokenizer, contract: MediaContract, workdir: str, source=None
) -> Loader:
    """The loader of this process's rows of `source`, the default being `data.records`; it measures
    the records on its first run.

    Raises ValueError, also when too many records are bad for a run to start.
    """
    data = config.data
    source = source or RecordSource(data.records, data.root or None)
    template = load_template(data.template_file) if data.template_file else DEFAULT_TEMPLATE
    settings = LoaderOptions(
        mode=mode,
        rows=data.rows,
        row_tokens=data.row_tokens,
        max_buckets=data.max_buckets,
        multiple=data.multiple,
        epochs=data.epochs,
        seed=config.seed,
        max_bad_fraction=data.max_bad_fraction,
        threads=None if data.threads < 0 else data.threads,
        workers=data.workers,
        timeout_s=data.timeout_s,
        isolate=data.isolate,
    )
    try:
        return Loader(
            source,
            tokenizer,
            contract,
            settings,
            template=template,
            sizes_dir=os.path.join(workdir, "sizes"),
            quarantine_path=os.path.join(workdir, "quarantine.jsonl"),
            cache=FrameCache(data.cache, contract) if data.cache else None,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    except TooManyBad as error:
        raise ValueError(str(error)) from None


def make_optim_config(config, total_steps: int) -> OptimConfig:
    return OptimConfig(total_steps=total_steps, **config.optim.to_dict())


def abstract_state(config, weights: Weights, mesh, frozen_dtype=None) -> TrainState:
    """The state's shapes with their shardings; nothing is allocated.

    Frozen weights keep the dtype of the checkpoint, which its files give unless it is named.
    """
    frozen_dtype = frozen_dtype or checkpoint_dtype(config.model.init_from)
    optimizer = make_optimizer(make_optim_config(config, 1))  # any total: same shapes

    def build():
        params = jax.tree.map(
            lambda x: jnp.zeros(x.shape, frozen_dtype), family.abstract_params(weights.model)
        )
        trained, frozen = weights.split(params, jax.random.key(0))
        return init_state(trained, frozen, optimizer, ema=config.optim.ema_decay > 0)

    shapes = jax.eval_shape(build)
    shardings = sharding.state_shardings(_without_factors(shapes), mesh, config.name)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _without_factors(shapes: TrainState) -> TrainState:
    """The same, but a scalar for what Adafactor keeps per row or column of a weight: it is small,
    fits no rule of the weight and lies on every device."""
    sizes = {
        path_of(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes.params)
    }

    def keep(keys, leaf):
        path = path_of(keys)
        of = next((size for name, size in sizes.items() if path.endswith(f"/{name}")), leaf.shape)
        return leaf if of == leaf.shape else jax.ShapeDtypeStruct((), leaf.dtype)

    return shapes._replace(opt_state=jax.tree_util.tree_map_with_path(keep, shapes.opt_state))


def checkpoint_dtype(folder) -> jnp.dtype:
    """The dtype that holds every tensor of a Hugging Face folder without loss."""
    return jnp.result_type(*{entry.dtype for entry in tensor_files.read_folder(folder).values()})


def read_params(config, weights: Weights, mesh):
    """The weights of `model.init_from` in their shards."""
    shapes = family.abstract_params(weights.model)
    shardings = sharding.state_shardings(shapes, mesh, config.name)
    folder = config.model.init_from
    return read_checkpoint(folder, weights.model, checkpoint_dtype(folder), shardings)


def fresh_state(config, weights: Weights, optimizer, abstract, mesh) -> TrainState:
    """The state of step 0, made of the weights of `model.init_from`."""
    params = read_params(config, weights, mesh)

    def build(params):
        trained, frozen = weights.split(params, jax.random.key(config.seed))
        return init_state(trained, frozen, optimizer, ema=config.optim.ema_decay > 0)

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(build, out_shardings=shardings)(params)


def expected_meta(weights: Weights, contract: MediaContract) -> dict:
    """What a checkpoint must agree with to be gone on from: model, adapters, media contract."""
    fields = dataclasses.asdict(weights.model)
    fields.pop("source")
    lora = weights.lora and dataclasses.asdict(weights.lora)
    return json.loads(json.dumps({"model": fields, "lora": lora, "media": contract.to_dict()}))


@dataclasses.dataclass
class Run:
    """What a training loop starts from: step 0, or the newest checkpoint of the work directory."""

    mesh: jax.sharding.Mesh
    weights: Weights
    tokenizer: Any
    contract: MediaContract
    checkpointer: Checkpointer
    loader: Loader
    optimizer: Any
    abstract: TrainState
    state: TrainState
    next_batch: int  # of the loader
    total: int  # steps
    meta: dict
    mirror: Mirror

    @property
    def folder(self) -> str:
        """The local one, for files that grow."""
        return str(self.mirror.folder)

    @property
    def shardings(self):
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def save(self, number: int, state, next_batch: int) -> None:
        self.mirror.push()
        data = self.meta["data"] | {"next_batch": next_batch}
        self.checkpointer.save(number, state, self.meta | {"data": data})


@contextlib.contextmanager
def open_run(config, workdir: str, mode: str, check_memory, updates: int = 1) -> Iterator[Run]:
    """Checks the config, restores or makes the state, and measures the data for `mode`, one of
    the loader's. `check_memory(weights, mesh, buckets)` raises ValueError when a batch of one
    of the buckets has no room on the devices; the planner has one. `updates` are optimizer steps
    a batch. The mesh is set inside.

    Raises ValueError for a config that cannot work."""
    log.info("%s on %s", config.name, describe_environment())
    mesh = make_mesh(config)
    if mesh.devices.flat[0].platform == "cpu":
        check_cpus(config, mesh.size)
    model_config, tokenizer = load_model_files(config)
    contract = make_contract(config)
    weights = make_weights(config, model_config)
    abstract = abstract_state(config, weights, mesh)
    agreed = expected_meta(weights, contract)
    kept = {name: config.checkpoint[name] for name in ("keep_last", "keep_every")}
    mirror = Mirror(workdir)
    mirror.pull()
    with (
        contextlib.ExitStack() as last,
        jax.set_mesh(mesh),
        Checkpointer(resolve(workdir), **kept) as checkpointer,
    ):
        last.callback(mirror.push)
        checkpointer.check_disk(abstract)
        state, next_batch = None, 0
        if checkpointer.latest_step() is not None:
            state, saved = checkpointer.restore(None, abstract, agreed)
        loader = make_loader(config, mode, tokenizer, contract, str(mirror.folder))
        check_memory(weights, mesh, loader.buckets)
        total = min(len(loader), config.train.max_steps or len(loader))
        optimizer = make_optimizer(make_optim_config(config, total * updates))
        if state is None:
            state = fresh_state(config, weights, optimizer, abstract, mesh)
        else:
            loader.check_digest(saved["data"]["plan"])
            next_batch = saved["data"]["next_batch"]
        meta = agreed | {
            "data": {"plan": loader.digest},
            "seed": config.seed,
            "config": json.loads(config.to_json_best_effort()),
        }
        yield Run(
            mesh, weights, tokenizer, contract, checkpointer, loader, optimizer, abstract, state,
            next_batch, total, meta, mirror,
        )  # fmt: skip


def check_skipped(config, number: int, metrics: dict, records) -> None:
    """Warns of a step that was not finite, with its samples; raises RuntimeError when it was one
    too many in a row."""
    if not metrics["skipped_in_row"]:
        return
    ids = [record.problem_id for row in records for record in row]
    log.warning("step %d was not finite and is skipped; samples %s", number, ids)
    if metrics["skipped_in_row"] >= config.train.max_skipped_in_row:
        raise RuntimeError(
            f"{config.name}: {int(metrics['skipped_in_row'])} steps in a row were not finite, the "
            f"last one step {number} with samples {ids}; lower optim.lr or look at those samples"
        )
