"""The optimizer of a run: learning-rate schedule, clipping, AdamW or Adafactor."""

import dataclasses
import re

import jax
import optax

from videorft_jax.training.trees import path_of

SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "adafactor")


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
