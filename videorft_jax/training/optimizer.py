"""The optimizer of a run: learning-rate schedule, clipping, AdamW or Adafactor."""

import dataclasses
import re

import jax
import numpy as np
import optax

from videorft_jax.training.trees import path_of

SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "adafactor")


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """name: "adamw" or "adafactor". lr: the peak rate. schedule: how it falls after `warmup_steps`
    optimizer steps. b1, b2, eps: of AdamW. clip: the global norm of the gradient, 0 for none.
    mu_dtype: of AdamW's first moment. ema_decay: of the moving average of the weights, 0 for none.
    """

    name: str
    lr: float
    schedule: str
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float
    mu_dtype: str
    ema_decay: float


def make_schedule(options: OptimOptions, total_steps: int) -> optax.Schedule:
    """Linear warm-up to `lr`, then linear or cosine decay to 0 at `total_steps`, or a constant.
    Raises ValueError for another schedule."""
    left = max(total_steps - options.warmup_steps, 1)
    match options.schedule:
        case "linear":
            after = optax.linear_schedule(options.lr, 0.0, left)
        case "cosine":
            after = optax.cosine_decay_schedule(options.lr, left)
        case "constant":
            after = optax.constant_schedule(options.lr)
        case _:
            raise ValueError(f"schedule is {options.schedule!r}; choose one of {SCHEDULES}")
    if not options.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, options.lr, options.warmup_steps)
    return optax.join_schedules([warmup, after], [options.warmup_steps])


def make_optimizer(options: OptimOptions, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Adafactor; norms and biases are not decayed. The rate
    falls over `total_steps`. Raises ValueError for another optimizer or schedule."""
    rate = make_schedule(options, total_steps)
    match options.name:
        case "adamw":
            update = optax.adamw(
                rate,
                b1=options.b1,
                b2=options.b2,
                eps=options.eps,
                weight_decay=options.weight_decay,
                mask=_decayed,
                mu_dtype=options.mu_dtype,
            )
        case "adafactor":
            update = _make_adafactor(rate, options.weight_decay)
        case _:
            raise ValueError(f"optimizer is {options.name!r}; choose one of {OPTIMIZERS}")
    return optax.chain(optax.clip_by_global_norm(options.clip), update) if options.clip else update


def _make_adafactor(rate, weight_decay):
    """Adafactor whose decay is a share of the learning rate, as that of AdamW is. That of
    `optax.adafactor` is not: at a rate of 1e-6 and a decay of 0.01 weights would lose a hundredth
    of themselves in each step."""
    if not weight_decay:
        return optax.adafactor(rate)
    # The rate stands third in both, so that a checkpoint of either is restored into the other.
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.chain(
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
            optax.add_decayed_weights(weight_decay, mask=_decayed),
        ),
        optax.scale_by_learning_rate(rate),
    )


def _decayed(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not re.search(r"(norm|bias)$", path_of(path)), params
    )


def _is_schedule(part):
    return isinstance(part, optax.ScaleByScheduleState)


def read_schedule(opt_state) -> int:
    """The number of optimizer steps that the learning-rate schedule has seen."""
    parts = jax.tree.leaves(opt_state, is_leaf=_is_schedule)
    return int(next(part for part in parts if _is_schedule(part)).count)


def set_schedule(opt_state, count: int):
    """Puts the learning-rate schedule of an optimizer's state at optimizer step `count`; moments
    and their bias corrections stay as they are."""

    def put(part):
        if not _is_schedule(part):
            return part
        return part._replace(count=jax.device_put(np.int32(count), part.count.sharding))

    return jax.tree.map(put, opt_state, is_leaf=_is_schedule)
