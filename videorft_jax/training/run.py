"""Opening a run: everything that SFT and GRPO put together before their first step.

What can be refused is refused here, before a weight is read or a program is compiled.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from videorft_jax.checkpoints.bucket import Mirror, resolve
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.checkpoints.lock import lock_workdir
from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.naming import naming
from videorft_jax.data.records import opening
from videorft_jax.data.records.pass_rates import select
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.quarantine import TooManyBad
from videorft_jax.data.records.source import Source
from videorft_jax.data.records.system_turn import find_system
from videorft_jax.data.records.tokenizer_folder import load_tokenizer
from videorft_jax.metrics.profile import check_step
from videorft_jax.metrics.tracker import check_wandb
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import check_contract, load_config
from videorft_jax.models.folder_digest import digest_weights
from videorft_jax.models.side_files import check_side_files
from videorft_jax.models.sources import find_folder
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import describe_environment, gather
from videorft_jax.rollout.tools import Tools
from videorft_jax.training import changes
from videorft_jax.training.held_out import check_held_out
from videorft_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    read_schedule,
    set_schedule,
)
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.start import open_start
from videorft_jax.training.state import abstract_state, expected_meta, fresh_state
from videorft_jax.training.step import TrainState
from videorft_jax.training.weights import Weights, make_weights

log = logging.getLogger(__name__)


def make_mesh(options: TrainOptions, devices=None) -> jax.sharding.Mesh:
    """The mesh of `devices`, by default all there are.

    Raises ValueError when the axes do not multiply to the devices, or the rows of a batch do not
    divide by them and by `accumulate`.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(options.mesh), devices=devices)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, slices = options.data.rows, options.accumulate
    if rows % (parts * slices):
        raise ValueError(
            f"{options.name}: data.rows is {rows}; with data * fsdp = {parts} and train.accumulate "
            f"= {slices} it must be a multiple of {parts * slices}"
        )
    if parts % jax.process_count():
        raise ValueError(
            f"{options.name}: data * fsdp = {parts} does not divide by {jax.process_count()} "
            f"processes; lower tensor = {mesh.shape['tensor']} so that each process has its rows"
        )
    return mesh


def check_cpus(options: TrainOptions, count: int) -> None:
    """Raises ValueError for an update in bfloat16 on several CPU devices: XLA's compiler for CPUs
    ends the process there ("Invalid binary instruction opcode copy", jax 0.10)."""
    if count > 1 and options.model.dtype == "bfloat16":
        raise ValueError(
            f"{options.name}: model.dtype is bfloat16, whose sums over {count} CPU devices XLA "
            "cannot compile; set model.dtype=float32, or use one device"
        )


def load_model_files(folder: str) -> tuple[ModelConfig, Any]:
    """The configuration and the tokenizer of a Hugging Face folder, or of a name of the hub that is
    in its local cache; no weight is read.

    Raises ValueError when the folder lacks one of them or their vocabularies differ.
    """
    if not folder:
        raise ValueError("model.init_from is empty; give a Hugging Face folder")
    folder = find_folder(folder)
    model_config = load_config(folder)
    check_side_files(model_config, folder)
    if not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        raise ValueError(f"{folder}: no tokenizer.json; save the tokenizer as a fast one there")
    # AutoTokenizer would load torch where it is installed: two seconds and 300 MB.
    return model_config, load_tokenizer(folder, "PreTrainedTokenizerFast")


def open_records(options: TrainOptions) -> Source:
    """The records of `data.records`. Raises ValueError for a file that holds none."""
    if not options.data.records:
        raise ValueError(
            "data.records is empty; give a file of records by --config.data.records=FILE"
        )
    data = options.data
    return opening.open_records(data.records, data.root or None, data.format)


def make_loader(
    options: TrainOptions,
    mode: str,
    tokenizer: Any,
    workdir: str,
    source=None,
    sizes_dir: str | None = None,
) -> Loader:
    """The loader of this process's rows of `source`, the default being `data.records`; it measures
    the records on its first run and keeps their sizes in `sizes_dir`, the default being in the work
    directory. `mode` is one of the loader's.

    Raises ValueError, also when too many records are bad for a run to start.
    """
    data, contract = options.data, options.contract
    source = source or open_records(options)
    settings = LoaderOptions(
        mode=mode,
        rows=data.rows,
        row_tokens=data.row_tokens,
        max_buckets=data.max_buckets,
        multiple=data.multiple,
        epochs=data.epochs,
        seed=options.seed,
        max_bad_fraction=data.max_bad_fraction,
        threads=None if data.threads < 0 else data.threads,
        workers=data.workers,
        timeout_s=data.timeout_s,
        isolate=data.isolate,
    )
    selection = _select(options, mode, len(source))
    try:
        return Loader(
            source,
            tokenizer,
            contract,
            settings,
            template=_read_template(data),
            limits=options.limits,
            shared_sizes=f"{data.records}.sizes",
            sizes_dir=sizes_dir or os.path.join(workdir, "sizes"),
            quarantine_path=os.path.join(workdir, "quarantine.jsonl"),
            cache=FrameCache(data.cache, contract) if data.cache else None,
            selection=selection,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    except TooManyBad as error:
        if error.counts.get("missing", 0) < error.total:
            raise ValueError(str(error)) from None
        raise ValueError(
            f"{data.records}: none of the media of its {error.total} records are there; paths "
            f"start from {source.data_root}, give another folder by --config.data.root=DIR"
        ) from None


def _read_template(data):
    return load_template(data.template_file) if data.template_file else DEFAULT_TEMPLATE


def make_tools(options: TrainOptions, tokenizer: Any, source: Source) -> Tools | None:
    """What completions about the records of `source` may call; None where that is nothing."""
    if options.tools is None:
        return None
    isolate = options.data.isolate
    return Tools(options.tools, tokenizer, options.contract, source, options.limits, isolate)


def _select(options, mode, num_records):
    """The records that pass rates choose for training; None where all are read."""
    data, model = options.data, options.model
    if not data.pass_rates:
        return None
    if mode == "evaluate":
        raise ValueError(
            f"{options.name}: data.filter and data.order are of training; an evaluation reads all "
            "records, leave them out"
        )
    own = "" if data.other_pass_rates else digest_weights(model.init_from, model.adapter)
    records = opening.digest_records(data.records)
    return select(data.pass_rates, data.filter, data.order, num_records, records, own)


@dataclasses.dataclass
class Run:
    """What a training loop starts from: step 0, or the newest checkpoint of the work directory.

    start: the step of the checkpoint. next_batch: the loader's batch that follows those of the
    checkpoint. total: steps of the whole run. updates: optimizer steps of each. meta: what every
    checkpoint of the run says about it.
    """

    options: TrainOptions
    mesh: jax.sharding.Mesh
    weights: Weights
    tokenizer: Any
    checkpointer: Checkpointer
    loader: Loader
    optimizer: optax.GradientTransformation
    abstract: TrainState
    state: TrainState
    start: int
    next_batch: int
    total: int
    updates: int
    meta: dict[str, Any]
    mirror: Mirror

    @property
    def folder(self) -> str:
        """The local folder, where files grow; of a work directory in a bucket it is a copy."""
        return str(self.mirror.folder)

    @property
    def shardings(self) -> TrainState:
        """The sharding of every array of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def learning_rate(self, state: TrainState) -> float:
        """The rate of the last update that `state` has taken."""
        schedule = make_schedule(self.options.optim, self.total * self.updates)
        return float(schedule(max(0, read_schedule(state.opt_state) - 1)))

    def place_schedule(self, state: TrainState, number: int, batch: int) -> TrainState:
        """Puts the schedule where step `number`, whose first batch is `batch`, stands in the run.

        Where a step takes several batches of the data, training may end long before step `total`.
        The schedule then follows the data, so that it ends where training ends.
        """
        done = max((number - 1) / self.total, batch / len(self.loader))
        count = int(done * self.total * self.updates)
        return state._replace(opt_state=set_schedule(state.opt_state, count))

    def save(self, number: int, state: TrainState, next_batch: int) -> None:
        """Starts to write the checkpoint of step `number`; the run goes on with `next_batch`."""
        self.mirror.push()
        data = self.meta["data"] | {"next_batch": next_batch, "step": number}
        self.checkpointer.save(number, state, self.meta | {"data": data})


def _renumber(state: TrainState, count: int) -> TrainState:
    """The state with `count` optimizer steps behind it, which differs from the checkpoint's own
    number where a run goes on with another number of updates a step."""
    if int(state.step) == count:
        return state
    log.info("%d optimizer steps of the checkpoint count as %d", int(state.step), count)
    return state._replace(
        step=jax.device_put(np.int32(count), state.step.sharding),
        opt_state=set_schedule(state.opt_state, max(0, count - int(state.skipped))),
    )


def _write_config(path, values):
    """Writes the options of the run, as a reader finds them beside its metrics; process 0 does."""
    if jax.process_index():
        return
    partial = path.with_name(f"{path.name}.part")
    with naming(partial):
        partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)


def _describe_start(start, saved):
    """What a checkpoint says where an adapter was merged before training: that the adapters which
    train do not belong to the weights of `init_from`."""
    is_merged = saved.get("base_is_merged") or (start is not None and not start.trains_on)
    return {"base_is_merged": True} if is_merged else {}


def _read_saved(checkpointer, options, mode, abstract, agreed, workdir):
    """(step, what its checkpoint says) of the newest one, of a fresh run (None, its beginning).
    Raises ValueError where it is of another run or has other arrays; none is read."""
    step = checkpointer.latest_step()
    if step is None:
        checkpointer.check_lost()
        return None, {"data": {"next_batch": 0}}
    saved = checkpointer.read_meta(step)
    _check_same_run(options, mode, saved, workdir)
    checkpointer.check(step, abstract, agreed)
    return step, saved


def _check_same_run(options, mode, saved, workdir):
    """Raises ValueError when the checkpoint is of another command, or was made with options that
    teach something else; says what else has changed."""
    if saved.get("mode", mode) != mode:
        raise ValueError(
            f"{workdir}: holds a run of videorft {saved['mode']}; give another workdir, and export "
            f"this one to start from its weights (videorft export --checkpoint={workdir} --out=DIR)"
        )
    found = changes.find_changes(saved["config"], options.recorded) if "config" in saved else {}
    if found:
        log.warning("changed since the checkpoint: %s", changes.describe(found))
    learnt = {name: pair for name, pair in found.items() if changes.decides_learning(name)}
    if learnt and not options.allow_changes:
        raise ValueError(f"{workdir}: {changes.describe(learnt)}; {changes.say_remedies(learnt)}")


def _count_steps(options, loader):
    """The steps of the whole run. Raises ValueError where one to be profiled lies beyond."""
    total = min(len(loader), options.max_steps or len(loader))
    check_step(options.name, options.log.profile, total)
    return total


def _describe(options, mode, loader):
    """What checkpoints say of a run's options and records."""
    system = find_system(loader.source, _read_template(options.data))
    described = {"mode": mode, "seed": options.seed, "config": options.recorded, "system": system}
    return described | {"data": {"plan": loader.digest}}


def _open_model(options, check_mesh):
    """The mesh, the configuration of the model and its tokenizer, which suit each other."""
    mesh = make_mesh(options)
    if mesh.devices.flat[0].platform == "cpu":
        check_cpus(options, mesh.size)
    model_config, tokenizer = load_model_files(options.model.init_from)
    check_contract(model_config, options.contract, options.name)
    if check_mesh is not None:
        check_mesh(model_config, mesh)
    return mesh, model_config, tokenizer


@contextlib.contextmanager
def open_run(
    options: TrainOptions,
    workdir: str,
    mode: str,
    check_memory: Callable[[Weights, jax.sharding.Mesh, list], None],
    updates: int = 1,
    has_reference: bool = False,
    check_mesh: Callable[[ModelConfig, jax.sharding.Mesh], None] | None = None,
) -> Iterator[Run]:
    """Restores or makes the state and measures the data; the mesh is set inside.

    mode: one of the loader's. check_memory: raises ValueError when a batch of one of the loader's
    buckets has no room on the devices; `planning.fits` has one. updates: optimizer steps a batch.
    has_reference: the state holds a reference policy too, since it changes as the run goes on.
    check_mesh: raises ValueError, before anything is measured or restored, where a command cannot
    use the mesh.

    Raises ValueError for options that cannot work.
    """
    log.info("%s on %s", options.name, describe_environment())
    check_wandb(options.log.wandb)
    mesh, model_config, tokenizer = _open_model(options, check_mesh)
    weights = make_weights(options, model_config)
    abstract = abstract_state(options, weights, mesh, has_reference=has_reference)
    agreed = expected_meta(weights, options.contract)
    kept = {"keep_last": options.checkpoint.keep_last, "keep_every": options.checkpoint.keep_every}
    mirror = Mirror(workdir)
    with (
        contextlib.ExitStack() as last,
        lock_workdir(workdir, gather),
        jax.set_mesh(mesh),
        Checkpointer(resolve(workdir), **kept) as checkpointer,
    ):
        mirror.pull()
        last.callback(mirror.push)
        checkpointer.check_disk(abstract)
        step, saved = _read_saved(checkpointer, options, mode, abstract, agreed, workdir)
        start_from = open_start(options, weights, mode) if step is None else None
        loader = make_loader(options, mode, tokenizer, str(mirror.folder))
        if step is not None:  # What is wrong with the records is told before weights are read.
            loader.check_digest(saved["data"]["plan"])
        check_memory(weights, mesh, loader.buckets)
        total = _count_steps(options, loader)
        check_held_out(options.validate, loader.source)
        optimizer = make_optimizer(options.optim, total * updates)
        if step is None:
            state = fresh_state(options, weights, optimizer, abstract, mesh, start_from)
        else:
            state, saved = checkpointer.restore(None, abstract, agreed)
        start = saved["data"].get("step", int(state.step) // updates)
        state = _renumber(state, start * updates)
        meta = _describe(options, mode, loader) | agreed | _describe_start(start_from, saved)
        _write_config(mirror.folder / "config.json", options.recorded)
        yield Run(
            options, mesh, weights, tokenizer, checkpointer, loader, optimizer, abstract, state,
            start, saved["data"]["next_batch"], total, updates, meta, mirror,
        )  # fmt: skip
    log.info("%s: done; next: videorft export --checkpoint=%s --out=DIR", options.name, workdir)
