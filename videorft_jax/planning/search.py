"""Searches other ways to run the same recipe: meshes, remat, slices of a batch, optimizer dtype.

Candidates are ordered by their least time, ruled out by formulas where they are far too large, and
compiled one after another until one fits. Of a recipe that fits only faster ones are tried. What is
learnt does not change, except by the rounding of the first moment.
"""

import dataclasses
import itertools
import math
from typing import Any

from videorft_jax.planning.compile import GIB, Store
from videorft_jax.planning.drawing import choose_rollout_mesh, on_rollout_mesh
from videorft_jax.planning.estimate import estimate
from videorft_jax.planning.jobs import Job, find_programs
from videorft_jax.planning.links import find_wires
from videorft_jax.planning.report import Row, make_rows
from videorft_jax.planning.traffic import step_seconds
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.run import make_mesh

_MARGIN = 1.35  # An estimate may be this much too high; a guess, not measured.
_TRIES = 6  # candidates that are compiled
_OPTIONS = ("mesh.tensor", "mesh.data", "model.remat", "train.accumulate", "optim.mu_dtype")


@dataclasses.dataclass(frozen=True)
class Found:
    changes: dict[str, Any]  # option -> value, where it differs from the config
    job: Job
    rows: list[Row]


def candidates(job: Job) -> list[tuple[float, dict[str, Any], Job]]:
    """(least seconds, changes, job) of everything worth trying, the fastest first. Of several that
    are equally fast, the one that changes fewest options comes first."""
    heads, devices = job.weights.model.text.num_kv_heads, job.topology.num_devices
    tensors = [size for size in (1, 2, 4, 8) if heads % size == 0 and devices % size == 0]
    moments = ("float32", "bfloat16") if job.train.optim.name == "adamw" else ("float32",)
    remats = ("save_dots", "save_gate", "save_projections", "save_attention", "full")
    slices = job.train.mesh.slices
    meshes = itertools.product(tensors, (slices, 2 * slices))
    found, drawing, knows_links = [], {}, find_wires(job.topology, job.mesh) is not None
    for (tensor, data), remat, moment in itertools.product(meshes, remats, moments):
        parts = devices // tensor
        if job.train.data.rows % parts:
            continue
        own = job.train.data.rows // parts
        for accumulate in (size for size in range(1, own + 1) if own % size == 0):
            values = (tensor, data, remat, accumulate, moment)
            changes = dict(zip(_OPTIONS, values, strict=True))
            other = changed(job, changes)
            if other is None:
                continue
            kept = {
                name: value for name, value in changes.items() if _get(job.train, name) != value
            }
            if job.grpo:
                if (tensor, data) not in drawing:
                    is_left = not knows_links and other.mesh.shape == job.mesh.shape
                    own_mesh = job.grpo.rollout.mesh
                    drawing[tensor, data] = own_mesh if is_left else choose_rollout_mesh(other)
                other = on_rollout_mesh(other, drawing[tensor, data])
                if other.drawing.mesh.devices.shape != job.drawing.mesh.devices.shape:
                    kept["rollout.mesh"] = ",".join(map(str, other.drawing.mesh.devices.shape))
            found.append((step_seconds(other), kept, other))
    return sorted(found, key=lambda each: (round(each[0], 4), len(each[1]), str(each[1])))


def search(job: Job, store: Store, say=lambda text: None, below: float = math.inf) -> Found | None:
    """The first candidate that fits and takes less than `below` seconds, or None when none of the
    few that are tried does. A program that does not fit shows how much too high its estimate is.
    Faster than `below` is, where nothing is known of links, only what sends no more than the job.
    """
    say("pricing other meshes, remat, slices of a batch and moments by formulas")
    tries, shares = 0, dict[str, float]()
    for seconds, changes, other in candidates(job):
        sizes = _estimates(other)
        if not _may_fit(other, sizes, shares):
            continue
        if tries == _TRIES or seconds >= below:
            return None
        if below < math.inf and not _sends_no_more(job, other):
            continue
        tries += 1
        text = ", ".join(f"{name}={value}" for name, value in changes.items()) or "no change"
        say(f"trying {text}: at least {seconds:.3f} s a step")
        rows = make_rows(other, store, say)
        if all(row.fits for row in rows):
            return Found(changes, other, rows)
        missed = [row for row in rows if not row.fits]
        shares |= {row.name: min(1.0, row.peak_gib / sizes[row.name]) for row in missed}
    return None


def changed(job: Job, changes: dict[str, Any]) -> Job | None:
    """The job with other values of all of `_OPTIONS`; None where they do not divide."""
    train = job.train
    train = dataclasses.replace(
        train,
        accumulate=changes["train.accumulate"],
        model=dataclasses.replace(train.model, remat=changes["model.remat"]),
        optim=dataclasses.replace(train.optim, mu_dtype=changes["optim.mu_dtype"]),
        mesh=dataclasses.replace(
            train.mesh, tensor=changes["mesh.tensor"], data=changes["mesh.data"], fsdp=-1
        ),
    )
    grpo = job.grpo and dataclasses.replace(job.grpo, train=train)
    try:
        mesh = make_mesh(train, job.topology.devices)
        if grpo:
            grpo.check_parts(mesh.shape["data"] * mesh.shape["fsdp"])
        other = dataclasses.replace(job, train=train, grpo=grpo, mesh=mesh)
        assert other.state is not None
    except ValueError:
        return None
    return other


def _sends_no_more(job, other):
    """Tells whether another job is known to send no more than the first where links are unknown."""
    if find_wires(job.topology, job.mesh):
        return True
    same = other.mesh.shape == job.mesh.shape and other.drawing.mesh.shape == job.drawing.mesh.shape
    return same and other.train.accumulate <= job.train.accumulate


def _may_fit(job, sizes, shares):
    limit = job.topology.limit_gib
    return all(size * shares.get(name, 1 / _MARGIN) <= limit for name, size in sizes.items())


def _estimates(job):
    return {
        program.name: estimate(job, program.name).peak + program.beside / GIB
        for program in find_programs(job)
    }


def _get(options: TrainOptions, name: str) -> Any:
    section, option = name.split(".")
    return getattr(options if section == "train" else getattr(options, section), option)
