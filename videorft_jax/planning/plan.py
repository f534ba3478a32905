"""Plans a run: the programs of every compiled shape, what they need, and whether they fit.

Every program of a run is compiled for the machine on this host, from shapes and shardings alone: no
weight is read and no array is made. TPUs are described by libtpu; GPUs are estimated by formulas.
Records that a config names are measured, and their buckets are what is compiled; else clips that
use up the media contract are taken.
"""

import dataclasses
import logging
import math
import os
import sys
from typing import Any

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.family import check_contract, published_config, size_in
from videorft_jax.models.sources import find_cached, is_hub_name
from videorft_jax.planning import machines, shapes
from videorft_jax.planning.compile import Store
from videorft_jax.planning.drawing import GAIN, with_rollout_mesh
from videorft_jax.planning.jobs import Job
from videorft_jax.planning.report import Row, advise, make_rows, merge_rows, summarise
from videorft_jax.planning.search import search
from videorft_jax.planning.traffic import step_seconds
from videorft_jax.rollout.mesh import check_sizes
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.run import check_cpus, load_model_files, make_loader, make_mesh
from videorft_jax.training.weights import make_weights

log = logging.getLogger(__name__)


def make_jobs(
    options: TrainOptions | GrpoOptions,
    machine: machines.Topology,
    workdir: str,
    *,
    size: str | None = None,
) -> list[Job]:
    """What is planned: a job for each compiled shape of `data.records`, the largest first, or one
    job of clips that use up the media contract where no records are named.

    size: name of a published model that is not here, such as 7b. Raises ValueError for everything
    that a run would refuse before it reads a weight.
    """
    train = _common(options)
    if not train.data.records:
        return [make_job(options, machine, size=size)]
    if size or not _is_here(train.model.init_from):
        raise ValueError(
            f"{train.name}: data.records are counted in tokens of the model; set model.init_from "
            "to its folder and leave out --model, or leave out data.records"
        )
    _make_mesh(options, machine)
    _, tokenizer = load_model_files(train.model.init_from)
    mode = "sft" if options is train else "grpo"
    loader = make_loader(train, mode, tokenizer, workdir)
    found = []
    for bucket in sorted(loader.buckets, key=lambda bucket: -bucket.cost):
        job = make_job(options, machine, bucket=bucket)
        found.append(dataclasses.replace(job, num_shapes=len(loader.buckets)))
    return found


def make_job(
    options: TrainOptions | GrpoOptions, machine: machines.Topology, *, size=None, bucket=None
) -> Job:
    """The job of one shape: of a loader's bucket, or of clips that use up the media contract."""
    train = _common(options)
    if train.model.attention == "auto":
        model = dataclasses.replace(train.model, attention=machine.attention)
        train = dataclasses.replace(train, model=model)
    grpo = None if isinstance(options, TrainOptions) else dataclasses.replace(options, train=train)
    folder = train.model.init_from
    if _is_here(folder) and not size:
        config, tokenizer = load_model_files(folder)
    else:
        if folder and not size:
            log.warning(
                "model.init_from=%s is no folder here; the published %s is planned, by the name of "
                "the recipe (--model takes another)", folder, size_in(train.name),
            )  # fmt: skip
        config = published_config(size or size_in(train.name))
        tokenizer = shapes.PublishedTokenizer()
    check_contract(config, train.contract, train.name)
    weights = make_weights(train, config)
    mesh = _make_mesh(options, machine)
    if grpo:
        check_sizes(train.name, grpo.rollout.mesh, config, mesh, train.data.rows, train.mesh.slices)
    if machine.kind == "cpu":
        check_cpus(train, machine.num_devices)
    siglip = None
    if grpo and grpo.semantic:
        siglip = shapes.siglip_config(grpo.semantic.siglip)
    if bucket is None:
        shape = shapes.expected_shape(train, packed=grpo is None)
    else:
        shape = shapes.measured_shape(bucket, packed=grpo is None)
    count = train.data.max_buckets
    job = Job(train, grpo, weights, mesh, machine, shape, siglip, count, tokenizer)
    return with_rollout_mesh(job)


def _common(options: TrainOptions | GrpoOptions) -> TrainOptions:
    """The options that SFT and GRPO have in common."""
    return options if isinstance(options, TrainOptions) else options.train


def _is_here(model):
    """Tells whether a model is a folder, or a name of the hub that is in its local cache."""
    return os.path.isdir(model) or (is_hub_name(model) and find_cached(model) is not None)


def _make_mesh(options, machine):
    """Makes the mesh of a run, or raises ValueError where the run would refuse its rows."""
    mesh = make_mesh(_common(options), machine.devices)
    if isinstance(options, GrpoOptions):
        options.check_parts(mesh.shape["data"] * mesh.shape["fsdp"])
    return mesh


def plan(
    jobs: list[Job], store: Store, try_others: bool = False
) -> tuple[list[Row], dict[str, Any], str | None]:
    """(rows, step, problem), where problem is None or one line with numbers and a remedy.

    Times are those of the first shape, memory is that of the worst. With `try_others` other
    settings are tried on the first shape: until one fits, or is faster where the recipe's own do.
    """

    def say(text):
        print(text, file=sys.stderr, flush=True)

    job = jobs[0]
    rows = merge_rows([make_rows(job, store, say) for job in jobs])
    step = summarise(job, rows)
    if len(jobs) > 1 or job.train.data.records:
        step["buckets"] = [job.shape._asdict() for job in jobs]
    problem = advise(job, rows)
    if not try_others:
        text = problem and f"{_say_misfit(job, problem)}; --search tries such changes"
        return rows, step, text or None
    below = math.inf if problem else GAIN * step_seconds(job)
    found = search(job, store, say, below)
    if found is None and problem:
        tried = "no change of mesh, remat, accumulate or mu_dtype that was tried helps"
        return rows, step, f"{_say_misfit(job, problem)}; {tried}"
    if found is None:
        say(f"{job.train.name} fits, and nothing that fits is known to be 5 % faster")
        return rows, step, None
    changes = " ".join(f"--config.{name}={value}" for name, value in found.changes.items())
    before = f"{_say_misfit(job, problem)}; what fits" if problem else "what fits and is faster"
    say(f"{before}: {changes}")
    return found.rows, summarise(found.job, found.rows) | {"changes": found.changes}, None


def _say_misfit(job, problem):
    return f"{job.train.name} does not fit {job.topology.name}: {problem[0]}"
