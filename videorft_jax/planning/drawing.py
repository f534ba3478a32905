"""The planner suggests the mesh on which a step would draw its completions fastest."""

import dataclasses
from typing import NamedTuple

from videorft_jax.planning.estimate import estimated_gib
from videorft_jax.planning.jobs import Job
from videorft_jax.planning.traffic import step_seconds
from videorft_jax.rollout.mesh import Sizes, check_sizes

_GAIN = 0.95  # A mesh that saves less than 5 % of a step is not worth a suggestion.


class Suggestion(NamedTuple):
    """It holds sizes of data, fsdp and tensor, and the least seconds of a step with them."""

    sizes: Sizes
    floor_s: float


def suggest_rollout_mesh(job: Job) -> Suggestion | None:
    """Finds the sizes of `rollout.mesh` with the least time of a step among those whose estimates
    fit the machine; returns None where none is clearly faster than what the job has."""
    if job.grpo is None:
        return None
    found = [s for s in map(_try, _candidates(job)) if s is not None]
    best = min(found, key=lambda each: each.floor_s, default=None)
    return best if best and best.floor_s < _GAIN * step_seconds(job) else None


def _candidates(job):
    """Yields the job with every split of its devices into parts and tensor axis that works."""
    count, model = job.mesh.devices.size, job.weights.model
    for tensor in (size for size in range(1, count + 1) if count % size == 0):
        sizes = (1, count // tensor, tensor)
        try:
            check_sizes(job.train.name, sizes, model, job.mesh, job.shape.rows)
        except ValueError:
            continue
        rollout = dataclasses.replace(job.grpo.rollout, mesh=sizes)
        yield dataclasses.replace(job, grpo=dataclasses.replace(job.grpo, rollout=rollout))


def _try(job):
    most = max(estimated_gib(job, name) for name in ("prefill", "decode"))
    if most > job.topology.limit_gib:
        return None
    return Suggestion(job.grpo.rollout.mesh, step_seconds(job))
