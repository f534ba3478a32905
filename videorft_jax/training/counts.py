"""Tokens and operations of a step over all processes, each of which holds as many rows."""

import functools
import operator
from typing import Any

import jax

from videorft_jax.training.options import TrainOptions
from videorft_jax.training.weights import Weights


def train_settings(options: TrainOptions, weights: Weights) -> dict[str, Any]:
    """The keyword arguments of `flops.train_cost` that say which weights train and how."""
    return {
        "remat": options.model.remat,
        "trained": weights.is_trained,
        "merged": weights.targets,
        "rank": options.lora.rank if options.lora else 0,
    }


def over_processes(part: Any) -> Any:
    """The sum of `part`, a number or the work or cost of a step, over all processes."""
    return functools.reduce(operator.add, [part] * jax.process_count())
