"""What differs between the options that a run was begun with and those that it goes on with."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

_PATHS = ("model.init_from", "data.records", "data.root", "data.template_file", "data.cache")

# Options and sections that change neither what is learnt nor from which data, but where, how fast
# and how long. Records that changed are found by the digest of the loader's plan.
_FREE = (
    "name",
    "compile_cache",
    "model.init_from",
    "model.strip_prefix",
    "model.attention",
    "model.remat",
    "data.records",
    "data.root",
    "data.cache",
    "data.pass_rates",
    "data.other_pass_rates",
    "data.epochs",
    "data.max_bad_fraction",
    "data.threads",
    "data.workers",
    "data.timeout_s",
    "data.isolate",
    "mesh",
    "train.accumulate",
    "train.max_steps",
    "train.max_skipped_in_row",
    "train.allow_changes",
    "rollout.chunk",
    "rollout.mesh",
    "rollout.num_buckets",
    "grpo.reference_on_host",
    "grpo.length_buckets",
    "reward.timeout_s",
    "reward.siglip",
    "reward.cache",
    "evaluate",
    "ablate",
    "checkpoint",
    "validate",
    "alarms",
    "log",
)

# Options that decide which arrays a checkpoint holds, or which record stands in which batch; no run
# goes on with others.
_FIXED = ("seed", "data.rows", "media", "lora", "optim.name", "optim.mu_dtype", "train.freeze")


def find_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """option -> (value before, value now), of the options that both configs have.

    Checkpoints of earlier releases hold paths as they were typed, later ones absolute paths, so a
    relative path equals an absolute one that ends with it.
    """
    old, new = _flatten(before), _flatten(now)
    return {
        name: (old[name], new[name])
        for name in old
        if name in new and old[name] != new[name] and not _same_path(name, old[name], new[name])
    }


def decides_learning(name: str) -> bool:
    """Whether another value of this option makes the run learn something else."""
    return not _is_among(name, _FREE)


def say_remedies(learnt: Iterable[str]) -> str:
    """What may be done about options that decide learning and have changed."""
    if any(_is_among(name, _FIXED) for name in learnt):
        return "go on with the same options, or begin in another workdir"
    return "go on with the same options, begin in another workdir, or add --allow_changes"


def _is_among(name, options):
    return any(name == option or name.startswith(f"{option}.") for option in options)


def describe(changes: dict[str, tuple[Any, Any]]) -> str:
    """`optim.lr was 1e-06 and is 0.001, ...`"""
    return ", ".join(f"{name} was {a!r} and is {b!r}" for name, (a, b) in changes.items())


def _same_path(name, typed, absolute):
    if name not in _PATHS or not typed or os.path.isabs(typed):
        return False
    steps = pathlib.PurePath(os.path.normpath(typed)).parts
    return pathlib.PurePath(absolute).parts[-len(steps) :] == steps


def _flatten(values, prefix=""):
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
