"""The training step that SFT and GRPO share: state, optimizer, accumulation, one compiled function.

Trained weights are kept in float32 and cast for the forward pass, since at a learning rate of 1e-6
a bfloat16 weight never moves. Frozen weights stay as they were read, outside the gradient and the
optimizer. Denominators of a loss are fixed on the whole batch before it is sliced, so that
accumulation never changes it.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "adafactor")
PARTS = {
    "vision": r"^vision/(?!merger/)",
    "merger": r"^vision/merger/",
    "text": r"^text/",
}


class TrainState(NamedTuple):
    """Everything a step reads and writes. `params` are float32; `ema` is None when not kept."""

    step: jax.Array  # int32, batches consumed
    params: Any  # trained weights, nested dict
    frozen: Any  # weights that are only read, in their own dtype
    opt_state: Any
    ema: Any
    skipped: jax.Array  # int32, steps not taken because something was not finite
    skipped_in_row: jax.Array  # int32


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """lr is the peak rate; warmup and the total are optimizer steps; clip the global norm, 0: not;
    mu_dtype that of AdamW's first moment; ema_decay 0 keeps no average."""

    name: str
    lr: float
    schedule: str
    warmup_steps: int
    total_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float
    mu_dtype: str
    ema_decay: float


def make_schedule(config: OptimConfig) -> optax.Schedule:
    """Linear warm-up to `lr`, then linear or cosine decay to 0, or constant."""
    left = max(config.total_steps - config.warmup_steps, 1)
    match config.schedule:
        case "linear":
            after = optax.linear_schedule(config.lr, 0.0, left)
        case "cosine":
            after = optax.cosine_decay_schedule(config.lr, left)
        case "constant":
            after = optax.constant_schedule(config.lr)
        case _:
            raise ValueError(f"schedule is {config.schedule!r}; choose one of {SCHEDULES}")
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Adafactor. Norms and biases are not decayed."""
    rate = make_schedule(config)
    match config.name:
        case "adamw":
            update = optax.adamw(
                rate,
                b1=config.b1,
                b2=config.b2,
                eps=config.eps,
                weight_decay=config.weight_decay,
                mask=_decayed,
                mu_dtype=config.mu_dtype,
            )
        case "adafactor":
            update = optax.adafactor(
                rate, weight_decay_rate=config.weight_decay or None, weight_decay_mask=_decayed
            )
        case _:
            raise ValueError(f"optimizer is {config.name!r}; choose one of {OPTIMIZERS}")
    return optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update


def _decayed(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not re.search(r"(norm|bias)$", path_of(path)), params
    )


def path_of(keys) -> str:
    """`text/layers/attn/q` of a key path."""
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def split_trained(params, freeze: tuple[str, ...]):
    """Two nested dicts: weights to train, and those of the parts named in `freeze` (see PARTS).

    Raises ValueError for an unknown part, or when nothing is left to train.
    """
    unknown = set(freeze) - set(PARTS)
    if unknown:
        raise ValueError(f"freeze names {sorted(unknown)}; choose among {sorted(PARTS)}")
    rules = [re.compile(PARTS[name]) for name in freeze]
    trained, frozen = {}, {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(keys)
        tree = frozen if any(rule.search(path) for rule in rules) else trained
        *parents, name = path.split("/")
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = leaf
    if not trained:
        raise ValueError(f"freeze {sorted(freeze)} leaves nothing to train; name fewer parts")
    return trained, frozen


def join(trained, frozen):
    """The inverse of `split_trained`: one nested dict of both."""
    joined = dict(frozen)
    for name, value in trained.items():
        inner = isinstance(value, dict) and name in joined
        joined[name] = join(value, joined[name]) if inner else value
    return joined


def cast(tree, dtype):
    """Floating leaves in `dtype`."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


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
    gives the share of some rows in the loss and in metrics, all of which add up over rows. `params`
    is the joined tree in `dtype`; `fixed` is whatever else a loss reads and no gradient enters.
    With `accumulate` > 1 the batch [B, ...] is taken in as many slices of rows b, b + accumulate,
    ..., gradients adding up in float32. `shardings` are the state's.

    When the loss or the gradient's norm is not finite the state keeps everything but its counters.
    """

    def gradient(params, frozen, rows, counts, fixed):
        def share(params):
            return loss(join(params, frozen), rows, counts, *fixed)

        (value, metrics), grads = jax.value_and_grad(share, has_aux=True)(params)
        return cast(grads, jnp.float32), {"loss": value} | metrics

    def accumulated(params, frozen, batch, counts, fixed):
        if accumulate == 1:
            return gradient(params, frozen, batch, counts, fixed)

        def slices(x):  # strided, so that every device keeps its own rows
            return jnp.swapaxes(x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]), 0, 1)

        def add(total, rows):
            return jax.tree.map(jnp.add, total, gradient(params, frozen, rows, counts, fixed)), None

        parts = jax.tree.map(slices, batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shape = jax.eval_shape(gradient, params, frozen, first, counts, fixed)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
        return jax.lax.scan(add, zeros, parts)[0]

    def step(state: TrainState, batch, *fixed):
        params, frozen = cast(state.params, dtype), cast(state.frozen, dtype)
        grads, metrics = accumulated(params, frozen, batch, totals(batch), fixed)
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
        )
        metrics |= {
            "grad_norm": norm,
            "update_norm": optax.tree.norm(updates),
            "skipped": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }
        return state, metrics

    out = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out)
