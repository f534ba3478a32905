"""The planner chooses the mesh on which a step would draw its completions fastest."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import NamedTuple

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.planning.estimate import estimated_gib
from videorft_jax.planning.jobs import Job
from videorft_jax.planning.links import find_wires
from videorft_jax.planning.machines import topology_of
from videorft_jax.planning.shapes import measured_shape
from videorft_jax.planning.traffic import step_seconds
from videorft_jax.rollout.mesh import AUTO, Sizes, check_sizes
from videorft_jax.training.weights import Weights

log = logging.getLogger(__name__)

GAIN = 0.95  # A mesh that saves less than 5 % of a step is not worth a change.
_ROOM = 0.8  # An estimate may be a quarter too low; see estimate.py.


class Suggestion(NamedTuple):
    """It holds sizes of data, fsdp and tensor, and the least seconds of a step with them."""

    sizes: Sizes
    floor_s: float


def suggest_rollout_mesh(job: Job) -> Suggestion | None:
    """Finds the sizes of `rollout.mesh` with the least time of a step among those whose estimates
    fit the machine; returns None where none is clearly faster than what the job has."""
    if job.grpo is None:
        return None
    found = [s for s in map(_try, drawn_elsewhere(job)) if s is not None]
    best = min(found, key=lambda each: each.floor_s, default=None)
    return best if best and best.floor_s < GAIN * step_seconds(job) else None


def with_rollout_mesh(job: Job) -> Job:
    """Gives the job with `rollout.mesh=auto` replaced by the planner's best, or by the training's
    mesh where that is as fast or nothing is known of the links between devices."""
    if job.grpo is None or job.grpo.rollout.mesh != AUTO:
        return job
    return on_rollout_mesh(job, choose_rollout_mesh(job))


def choose_rollout_mesh(job: Job) -> Sizes | None:
    """Gives the sizes of the planner's best mesh for the rollouts of a job, whatever they are now;
    None is the training's mesh."""
    if not find_wires(job.topology, job.mesh):
        return None
    best = suggest_rollout_mesh(on_rollout_mesh(job, None))
    return best and best.sizes


class MeshChoice:
    """Chooses the mesh of a run's rollouts for the devices at hand, by its largest shape."""

    def __init__(self, options: GrpoOptions):
        self._options = options

    def __call__(self, weights: Weights, mesh, buckets) -> Sizes | None:
        """Gives sizes; None is the training's mesh."""
        topology = topology_of(mesh)
        if topology is None:
            return None
        train = self._options.train
        largest = max(buckets, key=lambda bucket: bucket.cost)
        shape = measured_shape(largest, packed=False)._replace(rows=train.data.rows)
        job = Job(train, self._options, weights, mesh, topology, shape, None, len(buckets), None)
        sizes = with_rollout_mesh(job).grpo.rollout.mesh
        if sizes:
            log.info("rollout.mesh=auto draws on the mesh %s", ",".join(map(str, sizes)))
        return sizes


def on_rollout_mesh(job: Job, sizes: Sizes | None) -> Job:
    """Gives the job with other sizes of its rollout's mesh."""
    rollout = dataclasses.replace(job.grpo.rollout, mesh=sizes)
    return dataclasses.replace(job, grpo=dataclasses.replace(job.grpo, rollout=rollout))


def drawn_elsewhere(job: Job) -> Iterator[Job]:
    """Yields the job with every split of its devices into parts and tensor axis on which it can
    draw completions, the narrowest tensor first."""
    count, model = job.mesh.devices.size, job.weights.model
    # Nobody should share heads of keys without knowing what the links then carry.
    most = count if find_wires(job.topology, job.mesh) else model.text.num_kv_heads
    for tensor in (size for size in range(1, most + 1) if count % size == 0):
        sizes = (1, count // tensor, tensor)
        try:
            check_sizes(
                job.train.name, sizes, model, job.mesh, job.shape.rows, job.train.mesh.slices
            )
        except ValueError:
            continue
        yield on_rollout_mesh(job, sizes)


def _try(job):
    most = max(estimated_gib(job, name) for name in ("prefill", "decode"))
    if most > _ROOM * job.topology.limit_gib:
        return None
    return Suggestion(job.grpo.rollout.mesh, step_seconds(job))
