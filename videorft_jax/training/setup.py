"""From a ConfigDict to the frozen dataclasses of a run, and the checks of every option.

This is the one file below `commands/` that reads a ConfigDict. What it refuses is refused before an
array is made.
"""

import dataclasses
import json
import math
from typing import Any

from ml_collections import ConfigDict

from videorft_jax.checkpoints.bucket import resolve
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.records.formats import FORMATS
from videorft_jax.data.records.pass_rates import ORDERS, parse_condition
from videorft_jax.models.attention.dispatch import IMPLEMENTATIONS
from videorft_jax.models.geometry import find_geometry
from videorft_jax.models.layers import REMAT_POLICIES
from videorft_jax.models.lora import LoraConfig
from videorft_jax.models.sources import find_cached, find_folder, is_hub_name
from videorft_jax.rollout.options import ToolOptions
from videorft_jax.rollout.tools import load_tools
from videorft_jax.training.optimizer import OPTIMIZERS, SCHEDULES, OptimOptions
from videorft_jax.training.options import (
    CheckpointOptions,
    DataOptions,
    LogOptions,
    MeshOptions,
    ModelOptions,
    TrainOptions,
    ValidateOptions,
)
from videorft_jax.training.ranges import RANGES
from videorft_jax.training.trees import PARTS

DTYPES = ("float32", "bfloat16")
PRESETS = ("train", "evaluate")
_HELD_OUT_PATHS = ("records", "root")
_DATA_PATHS = ("records", "root", "template_file", "cache", "pass_rates")


def make_train_options(config: ConfigDict) -> TrainOptions:
    """The options that SFT and GRPO have in common.

    The numbers of the other sections, such as `rollout`, are checked here too. Raises ValueError
    for a number outside its range, an unknown choice, and options that exclude each other.
    """
    check_numbers(config)
    _check_choices(config)
    train = config.train.to_dict()
    freeze = split_names(train.pop("freeze"))
    return TrainOptions(
        name=config.name,
        seed=config.seed,
        model=_make_model(config),
        lora=_make_lora(config, freeze),
        data=_make_data(config),
        contract=make_contract(config),
        limits=make_limits(config),
        optim=OptimOptions(**config.optim.to_dict()),
        mesh=MeshOptions(**config.mesh.to_dict()),
        freeze=freeze,
        checkpoint=CheckpointOptions(**config.checkpoint.to_dict()),
        validate=_make_validate(config),
        tools=_make_tools(config),
        log=LogOptions(**config.log.to_dict()),
        recorded=_record(config),
        **train,
    )


def _make_model(config):
    """The options of the model, whose folder is found where a hub's name is cached and where a URL
    leads. A name that is not cached stays: a plan can do without the weights, and what reads them
    says what is missing."""
    values = config.model.to_dict()
    download, name = values.pop("download"), _absolute_model(values["init_from"])
    if "://" in name or (download and is_hub_name(name)):
        name = find_folder(name, download=download)
    elif is_hub_name(name):
        name = find_cached(name) or name
    return ModelOptions(**_with_paths(values, "adapter") | {"init_from": name})


def _absolute_model(name):
    """An absolute path, which means the same in any folder; a hub's name stays as it is."""
    return name if is_hub_name(name) else _absolute(name)


def _with_paths(values, *names):
    """The values with absolute paths, which mean the same in any folder and on the next day."""
    return values | {name: _absolute(values[name]) for name in names}


def _absolute(path):
    return path if not path or path.startswith("tfds:") else resolve(path)


def _record(config):
    """The config as JSON values, from which `videorft export` finds the model again."""
    values = json.loads(config.to_json_best_effort())
    values["model"]["init_from"] = _absolute_model(values["model"]["init_from"])
    values["model"] = _with_paths(values["model"], "adapter")
    values["data"] = _with_paths(values["data"], *_DATA_PATHS)
    values["validate"] = _with_paths(values["validate"], *_HELD_OUT_PATHS)
    return values


def check_numbers(config: ConfigDict) -> None:
    """Raises ValueError for the first number of the config that is outside its range."""
    for path, allowed in RANGES.items():
        value: Any = config
        for name in path.split("."):
            value = value[name]
        if not allowed.holds(value):
            finite = "a finite number, " if abs(value) == math.inf else ""
            raise ValueError(f"{config.name}: {path} is {value}; give {finite}{allowed}")


def _check_choices(config):
    for path, value, known in (
        ("model.remat", config.model.remat, REMAT_POLICIES),
        ("model.attention", config.model.attention, IMPLEMENTATIONS),
        ("model.dtype", config.model.dtype, DTYPES),
        ("optim.name", config.optim.name, OPTIMIZERS),
        ("optim.schedule", config.optim.schedule, SCHEDULES),
        ("optim.mu_dtype", config.optim.mu_dtype, DTYPES),
        ("data.format", config.data.format, FORMATS),
        ("media.preset", config.media.preset, PRESETS),
    ):
        if value not in known:
            raise ValueError(f"{config.name}: {path} is {value!r}; choose one of {tuple(known)}")
    if unknown := set(split_names(config.train.freeze)) - set(PARTS):
        raise ValueError(
            f"{config.name}: train.freeze names {sorted(unknown)}; choose among {sorted(PARTS)}"
        )


def make_contract(config: ConfigDict) -> MediaContract:
    """The media contract of the config: a preset for the model's patches, with the fields that are
    not 0 in place of its own; a greatest number of frames below the preset's least brings that down
    with it. Raises ValueError for a contract that cannot be."""
    media = config.media.to_dict()
    preset, geometry = media.pop("preset"), find_geometry(media.pop("patch_size"))
    own = getattr(MediaContract, preset)(geometry)
    changes = {field: value for field, value in media.items() if value}
    if most := changes.get("max_frames"):
        changes.setdefault("min_frames", min(most, own.min_frames))
    return dataclasses.replace(own, **changes)


def make_limits(config: ConfigDict) -> Limits:
    """What a clip may cost, and where its path may lead."""
    limits = config.limits.to_dict()
    return Limits(**limits | {"roots": tuple(map(_absolute, split_names(limits["roots"])))})


def split_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, of which one string may hold several: a command line gives `vision,merger`."""
    return tuple(name for part in names for name in part.split(","))


def _make_data(config):
    options = DataOptions(**_with_paths(config.data.to_dict(), *_DATA_PATHS))
    is_used = options.filter or options.order
    if is_used and not options.pass_rates:
        raise ValueError(
            f"{config.name}: data.filter and data.order choose by pass rates; give a file of "
            "videorft pass_rate by --config.data.pass_rates=FILE"
        )
    if options.pass_rates and not is_used:
        raise ValueError(
            f"{config.name}: data.pass_rates is not used; give data.filter or data.order too"
        )
    if options.order not in ORDERS:
        raise ValueError(f"{config.name}: data.order is {options.order!r}; choose one of {ORDERS}")
    if options.filter:
        parse_condition(options.filter)
    return options


def _make_validate(config):
    values = _with_paths(config.validate.to_dict(), *_HELD_OUT_PATHS)
    if not values["records"] and (values["keep_best"] or values["patience"]):
        raise ValueError(
            f"{config.name}: validate.keep_best and validate.patience compare held-out records; "
            "give some by --config.validate.records=FILE"
        )
    return ValidateOptions(**values, mode=config.reward.mode)


def _make_tools(config):
    """What completions may call. Functions of the user are imported here, before anything is
    allocated."""
    values = config.tools.to_dict()
    values["names"] = split_names(values["names"])
    if not values["names"]:
        return None
    if values["max_turns"] < 2:
        raise ValueError(
            f"{config.name}: tools.max_turns is {values['max_turns']}, so no turn could follow a "
            "call; give at least 2, or leave tools.names empty"
        )
    try:
        load_tools(values["names"])
    except ValueError as error:
        raise ValueError(f"{config.name}: {error}") from error
    return ToolOptions(**values)


def _make_lora(config, freeze):
    if not config.lora.rank:
        return None
    if freeze:
        raise ValueError(f"{config.name}: lora freezes every weight; leave train.freeze empty")
    return LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
