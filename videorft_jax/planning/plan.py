"""`videorft plan`: what a config needs of a machine, before the machine is paid for.

Every program of a run is compiled for the machine on this host, from shapes and shardings alone: no
weight is read and no array is made. TPUs are described by libtpu; GPUs are estimated by formulas.
Records that a config names are measured, and their buckets are what is compiled; else clips that
use up the media contract are taken.
"""

import dataclasses
import os
import sys

from videorft_jax.grpo import update as updating
from videorft_jax.models.family import check_contract, published_config, size_in
from videorft_jax.planning import machines as topology
from videorft_jax.planning import shapes
from videorft_jax.planning.compile import Store
from videorft_jax.planning.jobs import Job, wants_siglip
from videorft_jax.planning.report import advise, make_rows, merge_rows, summarise
from videorft_jax.planning.search import search
from videorft_jax.training.run import check_cpus, load_model_files, make_loader, make_mesh
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.weights import Weights


def make_jobs(
    config, machine: topology.Topology, workdir: str, *, mode=None, size=None
) -> list[Job]:
    """What is planned, a job for each compiled shape, the largest first: of `data.records`, or one
    of clips that use up the media contract. Checks all that a run would check before it reads a
    weight."""
    if not config.data.records:
        return [make_job(config, machine, mode=mode, size=size)]
    if size or not os.path.isdir(config.model.init_from):
        raise ValueError(
            f"{config.name}: data.records are counted in tokens of the model; set model.init_from "
            "to its folder and leave out --model, or leave out data.records"
        )
    options = make_train_options(config)
    make_mesh(options, machine.devices)
    mode, (_, tokenizer) = _mode(config, mode), load_model_files(options.model.init_from)
    loader = make_loader(options, mode, tokenizer, workdir)
    found = []
    for bucket in sorted(loader.buckets, key=lambda bucket: -bucket.cost):
        job = make_job(config, machine, mode=mode, bucket=bucket)
        found.append(dataclasses.replace(job, num_shapes=len(loader.buckets)))
    return found


def make_job(config, machine: topology.Topology, *, mode=None, size=None, bucket=None) -> Job:
    """One shape: that of a loader's bucket, else of clips that use up the media contract."""
    mode = _mode(config, mode)
    config = config.copy_and_resolve_references().unlock()
    if config.model.attention == "auto":
        config.model.attention = machine.attention
    folder = config.model.init_from
    if os.path.isdir(folder) and not size:
        model, tokenizer = load_model_files(folder)
    else:
        model = published_config(size or size_in(config.name))
        tokenizer = shapes.PublishedTokenizer()
    options = make_train_options(config)
    check_contract(model, options.contract, config.name)
    weights = Weights(model, options.freeze, options.lora)
    mesh = make_mesh(options, machine.devices)
    if machine.kind == "cpu":
        check_cpus(options, machine.num_devices)
    siglip = None
    if mode == "grpo":
        updating.make_grpo_config(config)
        if wants_siglip(config):
            siglip = shapes.siglip_config(config.reward.siglip)
    packed = mode == "sft"
    if bucket is None:
        shape = shapes.expected_shape(config, options.contract, packed)
    else:
        shape = shapes.measured_shape(bucket, packed)
    count = config.data.max_buckets
    return Job(mode, config, weights, mesh, machine, shape, siglip, count, tokenizer)


def _mode(config, mode):
    mode = mode or next((known for known in ("sft", "grpo") if known in config.name), None)
    if mode is None:
        raise ValueError(f"{config.name}: neither sft nor grpo by its name; give --mode")
    return mode


def plan(jobs: list[Job], store: Store, try_others: bool = False):
    """(rows, step, problem): problem is None, or one line with numbers and a remedy. Times are of
    the first of the shapes, memory of the worst; other settings are tried on the first."""

    def say(text):
        print(text, file=sys.stderr, flush=True)

    job = jobs[0]
    rows = merge_rows([make_rows(job, store, say) for job in jobs])
    step = summarise(job, rows)
    if len(jobs) > 1 or job.config.data.records:
        step["buckets"] = [job.shape._asdict() for job in jobs]
    problem = advise(job, rows)
    if not problem:
        return rows, step, None
    text = f"{job.config.name} does not fit {job.topology.name}: {problem[0]}"
    if not try_others:
        return rows, step, f"{text}; --search tries such changes"
    found = search(job, store, say)
    if found is None:
        return rows, step, f"{text}; no change of mesh, remat, accumulate or mu_dtype helps"
    changes = " ".join(f"--config.{name}={value}" for name, value in found.changes.items())
    say(f"{text}; what fits: {changes}")
    return found.rows, summarise(found.job, found.rows) | {"changes": found.changes}, None
