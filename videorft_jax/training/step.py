"""The training step that SFT and GRPO share: state, optimizer, accumulation, one compiled function.

Trained weights are kept in float32 and cast for the forward pass, since at a learning rate of 1e-6
a bfloat16 weight never moves. Frozen weights stay as they were read, outside the gradient and the
optimizer. Denominators of a loss are fixed on the whole batch before it is sliced, so that
accumulation never changes it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from videorft_jax.models.compute_plan import compiler_options
from videorft_jax.training.trees import cast, join


class TrainState(NamedTuple):
    """Everything a step reads and writes. `params` are float32; `ema` is None when not kept, and
    `reference` where GRPO has no reference policy that follows the policy."""

    step: jax.Array  # int32, batches consumed
    params: Any  # trained weights, nested dict
    frozen: Any  # weights that are only read, in their own dtype
    opt_state: Any
    ema: Any
    skipped: jax.Array  # int32, steps not taken because something was not finite
    skipped_in_row: jax.Array  # int32
    reference: Any = None  # the reference policy's weights, as `params`, in the computation's dtype


def init_state(trained, frozen, optimizer, *, ema: bool = False) -> TrainState:
    """The state before the first step; run it under `jax.jit` to have it made in place."""
    params = cast(trained, jnp.float32)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.int32(0),
        skipped_in_row=jnp.int32(0),
    )


Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def make_step(
    loss: Loss,
    totals: Callable[[Any], Any],
    optimizer: optax.GradientTransformation,
    *,
    dtype,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    shardings=None,
):
    """Compiles `(state, batch, *fixed) -> (state, metrics)`; the state is donated.

    `totals(batch)` are the denominators of the whole batch; `loss(params, rows, totals, *fixed)`
    gives the share of some rows in the loss and in metrics. These add up over rows; of a metric
    named `..._max`, a number from 0 on, the largest counts. `params` is the joined tree in `dtype`.
    fixed: inputs without gradient; where the state holds a reference policy, it is their last.

    With `accumulate` > 1 the batch [B, ...] is taken in as many slices of rows b, b + accumulate,
    ..., gradients adding up in float32. `shardings` are the state's.

    When the loss or the gradient's norm is not finite the state keeps everything but its counters.
    """

    def step(state: TrainState, batch, *fixed):
        fixed += () if state.reference is None else (state.reference,)
        params, frozen = cast(state.params, dtype), cast(state.frozen, dtype)
        grads, metrics = _accumulated(loss, accumulate, params, frozen, batch, totals(batch), fixed)
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(new, ema, 1.0 - ema_decay)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        state = TrainState(
            step=state.step + 1,
            params=keep(new, state.params),
            frozen=state.frozen,
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema),
            skipped=state.skipped + ~finite,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
            reference=state.reference,
        )
        metrics |= {
            "grad_norm": norm,
            "update_norm": optax.tree.norm(updates),
            "skipped": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }
        return state, metrics

    return _compiled(step, shardings)


def _compiled(step, shardings):
    """The program for a state that lies as `shardings` says, by default on the default device."""
    if shardings is None:
        out, platform = None, jax.default_backend()
    else:
        out = shardings, None
        platform = jax.tree.leaves(shardings)[0].mesh.devices.flat[0].platform
    options = compiler_options(platform) or None
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options)


def _accumulated(loss, accumulate, params, frozen, batch, counts, fixed):
    """(gradients, metrics) of the batch, the sum over `accumulate` slices of its rows."""

    def gradient(params, frozen, rows, counts, fixed):
        def share(params):
            return loss(join(params, frozen), rows, counts, *fixed)

        (value, metrics), grads = jax.value_and_grad(share, has_aux=True)(params)
        return cast(grads, jnp.float32), {"loss": value} | metrics

    if accumulate == 1:
        return gradient(params, frozen, batch, counts, fixed)

    def slices(x):  # strided, so that every device keeps its own rows
        return jnp.swapaxes(x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]), 0, 1)

    def add(total, rows):
        found = gradient(params, frozen, rows, counts, fixed)
        grads, metrics = jax.tree.map(jnp.add, total, found)
        largest = {
            name: jnp.maximum(total[1][name], value)
            for name, value in found[1].items()
            if name.endswith("_max")
        }
        return (grads, metrics | largest), None

    parts = jax.tree.map(slices, batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shape = jax.eval_shape(gradient, params, frozen, first, counts, fixed)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    return jax.lax.scan(add, zeros, parts)[0]
