"""Counts operations, bytes and the least time of each program of a step, from sizes alone.

The work counted is that of full shapes: prompts and completions are as long as they may be, and a
causal mask costs what it shows. Bytes are those of all devices together, and every part of the mesh
that holds rows of its own reads every weight. Traffic between devices is not counted.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from videorft_jax.metrics import chips, flops
from videorft_jax.metrics.flops import Cost, Work
from videorft_jax.models import family
from videorft_jax.planning.jobs import Job, count_runs, total_bytes
from videorft_jax.rollout.parameters import takes_apart
from videorft_jax.training.counts import train_settings


def program_costs(job: Job) -> dict[str, Cost]:
    """Counts what one run of each program costs; of decode, all tokens but the first."""
    if job.mode == "sft":
        return {"update": _train(job, _packed(job))}
    prompts, clips = _prompts(job), _clips(job)
    model, parts = job.weights.model, job.drawing.parts
    kept = total_bytes(job.policy)
    read = total_bytes((job.state.params, job.state.frozen))
    found = {
        "reshard": Cost(bytes=float(read + kept * parts + _stack(job))),
        "prefill": _read_by_all(flops.forward_cost(model, prompts), parts)
        + Cost(bytes=float(_stack(job))),
        "decode": _decode(job.drawing),
        "compact": Cost(bytes=2.0 * _cache_bytes(job)),
        "update": _update(job, _groups(job, shared=True), clips),
    }
    vision = _read_by_all(flops.forward_cost(model, clips), job.mesh.devices.size)
    if _shares(job):
        found["vision"] = vision
    else:
        found["prefill"] += vision
    if job.siglip is not None:
        found["siglip"] = _siglip(job)
    if job.grpo.needs_score:
        found["score"] = _score(job, _groups(job, shared=True), clips)
    return found


def floor_seconds(job: Job, cost: Cost) -> float:
    """Gives the least seconds that arithmetic and memory allow; see `chips.roofline_seconds`."""
    return chips.roofline_seconds(
        cost.hardware_flops, cost.bytes, job.topology.num_devices, job.topology.chip
    )


def naive_floor(job: Job) -> float:
    """Gives the least seconds of the same GRPO step if every completion had a row of its own, so
    that clip and prompt were computed once for each completion, in rollout and update."""
    rollouts, parts = job.grpo.rollout.num_rollouts, job.drawing.parts
    model = job.weights.model
    prompts, clips = _scaled(_prompts(job), rollouts), _scaled(_clips(job), rollouts)
    groups = _groups(job, shared=False)
    costs = {
        "prefill": _read_by_all(flops.forward_cost(model, prompts + clips), parts),
        "decode": _decode(job.drawing, shared=False),
        "update": _update(job, groups, clips),
    }
    if job.siglip is not None:
        costs["siglip"] = _siglip(job)
    if job.grpo.needs_score:
        costs["score"] = _score(job, groups, clips)
    return sum(count_runs(job, name) * floor_seconds(job, cost) for name, cost in costs.items())


def _stack(job):
    """Counts the bytes of reading and writing the decoder's layers once more on all devices, to
    take their stack apart or to make it; see `rollout.parameters.Preparation`."""
    if not takes_apart(job.drawing.mesh):
        return 0
    return 2 * total_bytes(job.prepared["text"]["layers"]) * job.drawing.parts


def _times(cost, count):
    return Cost(*(value * count for value in dataclasses.astuple(cost)))


def _scaled(work, count):
    return Work(*(value * count for value in dataclasses.astuple(work)))


def _read_by_all(cost, parts):
    return dataclasses.replace(cost, bytes=cost.bytes * parts)


def _shares(job):
    return not job.weights.trains_vision and job.grpo.max_draws == 1


def _clips(job):
    """Counts the work of the vision tower on the frame pairs of all rows."""
    shape = job.shape
    patches = shape.frame * 4
    frames = shape.rows * shape.pairs
    slots = min(patches, job.geometry.slots)
    return Work(
        patches=frames * patches,
        window_pairs=frames * patches * slots,
        frame_pairs=frames * patches**2,
    )


def _prompts(job):
    rows, length = job.shape.rows, job.shape.length
    return Work(tokens=rows * length, pairs=rows * length * (length + 1) // 2, targets=rows)


def _packed(job):
    """Counts the work of rows of packed samples, each as long as a clip and its text."""
    shape = job.shape
    length = shape.length / shape.samples
    pairs = round(shape.rows * shape.samples * length * (length + 1) / 2)
    own = Work(shape.rows * shape.length, pairs, shape.rows * shape.targets)
    return own + _clips(job)


def _groups(job, *, shared):
    """Counts the work of an update's rows without the vision tower."""
    rows, length = job.shape.rows, job.shape.length
    rollouts, size = job.grpo.rollout.num_rollouts, job.grpo.rollout.max_new_tokens
    if not shared:
        rows, rollouts = rows * rollouts, 1
    lengths = np.full((rows, rollouts), size)
    return flops.group_work(np.full(rows, length), lengths, length, size)[0]


def _decode(job, *, shared=True):
    rows, length = job.shape.rows // job.parts, job.shape.length
    rollouts, size = job.grpo.rollout.num_rollouts, job.grpo.rollout.max_new_tokens
    if not shared:
        rows, rollouts = rows * rollouts, 1
    prompts = np.full(rows, length)
    first, last = (
        flops.decode_cost(job.weights.model, prompts, np.full((rows, rollouts), own))
        for own in (2, size)
    )
    steps = size - 1  # Each step costs as much more than the one before it.
    total = _times(first + last, steps / 2)
    model = job.weights.model
    if job.mesh.shape["tensor"] > model.text.num_kv_heads:
        # Zeros fill up heads and channels that do not divide over tensor.
        plain = family.abstract_params(model, jnp.bfloat16)["text"]
        more = total_bytes(job.prepared["text"]) - total_bytes(plain)
        total = dataclasses.replace(total, bytes=total.bytes + steps * more)
    if job.grpo.rollout.int8_weights:
        half = flops.forward_cost(job.weights.model, Work(tokens=1, targets=1)).bytes / 2
        total = dataclasses.replace(total, bytes=total.bytes - steps * half)
    return _times(total, job.parts)


def _cache_bytes(job):
    """Counts the bytes of keys and values of all rows, prompts and completions together."""
    text, rollout = job.weights.model.text, job.grpo.rollout
    tokens = job.shape.rows * (job.shape.length + rollout.num_rollouts * rollout.max_new_tokens)
    each = 2 * text.num_layers * text.num_kv_heads * text.head_dim
    return tokens * each * (1 if rollout.int8_cache else 2)


def _train(job, work):
    settings = train_settings(job.train, job.weights)
    cost = flops.train_cost(job.weights.model, work, **settings)
    passes = 2 + (job.train.model.remat != "none")
    again = flops.forward_cost(job.weights.model, work).bytes * passes
    more = job.parts * job.train.accumulate - 1
    return dataclasses.replace(cost, bytes=cost.bytes + more * again)


def _seen(job, groups, clips):
    """Adds the clips to the work of groups whose visual tokens do not come from the rollout."""
    return groups if _shares(job) else groups + clips


def _score(job, groups, clips):
    forward = flops.forward_cost(job.weights.model, _seen(job, groups, clips))
    return _times(_read_by_all(forward, job.parts), 2 if job.grpo.loss.beta else 1)


def _update(job, groups, clips):
    """Counts what one optimizer step costs, which takes a minibatch of the groups."""
    work = _scaled(_seen(job, groups, clips), 1 / job.grpo.minibatches)
    cost = _train(job, work)
    if job.grpo.loss.beta and not job.grpo.needs_score:
        forward = flops.forward_cost(job.weights.model, work)
        cost += _read_by_all(forward, job.parts * job.train.accumulate)
    return cost


def _siglip(job):
    config, shape = job.siglip, job.shape
    patches = (config.image_size // config.patch_size) ** 2
    frames = shape.rows * job.grpo.semantic.frames
    cost = flops.siglip_cost(
        config.vision, patches, frames, patch_dim=3 * config.patch_size**2
    ) + flops.siglip_cost(
        config.text,
        config.text_length,
        shape.rows * job.grpo.rollout.num_rollouts,
        head=config.vision.hidden_size,
    )
    return _read_by_all(cost, job.parts)
