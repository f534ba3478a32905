"""What a model family provides, and the families there are.

A family is a folder of `models` that answers a short list of questions, the fields of `Family`. All
rooms above (loader, rollout, update, planner, export, commands) ask the family of a config and know
no family by name. docs/how_to/model.md tells how to add one.
"""

import dataclasses
import functools
import importlib
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videorft_jax.models.config import ModelConfig, read_values
from videorft_jax.models.geometry import Geometry
from videorft_jax.models.names import Leaf, Row
from videorft_jax.models.vision_language import VLM

# Hugging Face's `model_type` -> the folder that holds `family.FAMILY`.
_FOLDERS = {
    "qwen2_5_vl": "videorft_jax.models.qwen2_5_vl",
    "qwen3_vl": "videorft_jax.models.qwen3_vl",
}
# Models that stand close to a family and are none of it, by `model_type`.
_REFUSED = {
    "qwen3_vl_moe": "Qwen3-VL with experts (30B-A3B, 235B-A22B)",
    "qwen3_5": "Qwen3.5, whose decoder has linear attention",
    "qwen3_5_moe": "Qwen3.5 with experts",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """The answers of one family.

    title: the name for people.
    geometry: how pixels are cut and normalised.
    parse_config: a checkpoint's JSON and the file's name -> a config, or a ValueError.
    hf_values, tiny_values, demo_values: the JSON of a published size, of a random model for tests,
        and of a small one whose sizes the demo names; all take keys to replace.
    sizes: names of the published sizes, such as "7b".
    build: a config and rngs -> the module, whose parameter paths are promises to checkpoints.
    names: the table of all parameters. leaves_of: its rows with the sizes of a config.
    old_name, new_name: a tensor's name as on the hub, and as transformers >= 4.52 has it.
    position_rules: versions of transformers (major, minor) from which on it numbers the positions
        of clips by another rule than that of the release, None where no rule of ours is its equal.
    """

    title: str
    geometry: Geometry
    parse_config: Callable[[dict[str, Any], str], ModelConfig]
    hf_values: Callable[..., dict[str, Any]]
    tiny_values: Callable[..., dict[str, Any]]
    demo_values: Callable[..., dict[str, Any]]
    sizes: tuple[str, ...]
    build: Callable[[ModelConfig, nnx.Rngs], VLM]
    names: tuple[Row, ...]
    leaves_of: Callable[[ModelConfig], list[Leaf]]
    old_name: Callable[[str], str]
    new_name: Callable[[str], str]
    position_rules: tuple[tuple[tuple[int, int], str | None], ...] = ()


def find_family(model_type: str, where: str = "config.json") -> Family:
    """The family of a Hugging Face `model_type`. Raises ValueError, naming those there are."""
    if model_type not in _FOLDERS:
        what = f", {_REFUSED[model_type]}" if model_type in _REFUSED else ""
        titles = ", ".join(family.title for family in all_families())
        raise ValueError(
            f"{where}: model_type is {model_type!r}{what}; give a checkpoint of {titles} "
            f"({', '.join(map(repr, _FOLDERS))})"
        )
    return importlib.import_module(f"{_FOLDERS[model_type]}.family").FAMILY


def family_of(config: ModelConfig) -> Family:
    """The family that a config belongs to."""
    return find_family(config.model_type)


def all_families() -> list[Family]:
    """Every family there is."""
    return [find_family(model_type) for model_type in _FOLDERS]


def check_contract(config: ModelConfig, contract, name: str) -> None:
    """Raises ValueError when a media contract cuts frames otherwise than the model wants them, and
    writes a line to the log where the folder's writer has another position rule."""
    family = family_of(config)
    if contract.geometry != family.geometry:
        raise ValueError(
            f"{name}: media.patch_size is {contract.geometry.patch}, but the patches of "
            f"{family.title} have {family.geometry.patch} pixels; set "
            f"media.patch_size={family.geometry.patch}"
        )
    _name_positions(config, contract.mrope_rule, name)


def rule_of_version(config: ModelConfig, version: str, released: str) -> str | None:
    """The position rule of a version of transformers, such as "5.23.0"; `released` where it is that
    of the release, None where no rule of ours equals it."""
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    rules = [theirs for first, theirs in family_of(config).position_rules if number >= first]
    return rules[-1] if rules else released


def _name_positions(config, rule, name):
    """Says so where the transformers that wrote a folder numbers positions by another rule than
    `rule`, since only the user knows whether it fine-tuned the weights or merely saved them."""
    version = str(json.loads(config.source).get("transformers_version", ""))
    theirs = rule_of_version(config, version, released=rule)
    if theirs == rule:
        return
    remedy = "no rule equals its own, and weights that it fine-tuned on clips suffer"
    if theirs is not None:
        remedy = f"and where it fine-tuned them on clips, mrope_rule should be {theirs}"
    logging.info(
        "%s: mrope_rule is %s; transformers %s wrote the weights, %s", name, rule, version, remedy
    )


def size_in(name: str) -> str:
    """The published size that a recipe's name holds, such as "7b" in "grpo_7b_lora". Raises
    ValueError when it holds none."""
    found = [size for size in published_sizes() if f"_{size}_" in f"_{name}_"]
    if not found:
        raise ValueError(
            f"{name}: model.init_from is no folder here and the name holds no size; give --model=7b"
        )
    return max(found, key=len)


def find_size(size: str) -> Family:
    """The family that has a published size of this name. Raises ValueError, naming the sizes."""
    for family in all_families():
        if size in family.sizes:
            return family
    raise ValueError(f"model size {size!r} is unknown; choose one of {sorted(published_sizes())}")


def published_sizes() -> tuple[str, ...]:
    """Names of the published sizes of all families."""
    return tuple(name for family in all_families() for name in family.sizes)


def published_config(size: str) -> ModelConfig:
    """The config of a published size, such as "7b"."""
    family = find_size(size)
    return family.parse_config(family.hf_values(size), f"the published {size}")


def parse_config(values: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The JSON of a checkpoint -> the config of its family. Raises ValueError, one line."""
    return find_family(values.get("model_type"), where).parse_config(values, where)


def load_config(folder) -> ModelConfig:
    """The config of a Hugging Face folder, whatever its family. Raises ValueError, one line."""
    values, where = read_values(folder)
    try:
        return parse_config(values, where)
    except (AttributeError, TypeError) as error:  # A text, say, stands where a number belongs.
        problem = f"a value is of a wrong kind ({error})"
        raise ValueError(f"{where}: {problem}; download the file again") from None


@functools.lru_cache
def _abstract(config: ModelConfig):
    build = family_of(config).build
    return nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(params=0))))


def bind(config: ModelConfig, params) -> VLM:
    """The module with `params` (nested dict of arrays) as its weights; call it inside `jax.jit`."""
    return nnx.merge(_abstract(config)[0], params)


def abstract_params(config: ModelConfig, dtype=jnp.float32):
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`, which take no memory."""
    shapes = nnx.to_pure_dict(_abstract(config)[1])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def init_params(config: ModelConfig, key, dtype=jnp.float32):
    """Random weights, N(0, 0.02^2) with zero biases, as a nested dict."""
    state = nnx.split(family_of(config).build(config, nnx.Rngs(params=key)))[1]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.to_pure_dict(state))


def count_params(config: ModelConfig) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
