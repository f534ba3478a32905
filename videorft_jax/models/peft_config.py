"""What an `adapter_config.json` of PEFT says about each module, and which ones we cannot read."""

import json
import math
import pathlib
import re

from videorft_jax.models.json_file import (
    check_kind,
    is_count,
    is_flag,
    is_list,
    is_positive,
    is_whole,
)

CONFIG_FILE = "adapter_config.json"
# Keys that are read, or that do not change what the matrices mean; all others must be unset.
_KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
_UNSET = (None, False, 0, "none", [], {})
_PLAIN_INITS = (True, False, "gaussian")  # the others move a part of the base weights
# Methods that learn inputs, which no weight of the model can hold.
_PROMPTS = ("PROMPT", "P_TUNING", "PREFIX", "ADAPTION")


class PeftConfig:
    """One `adapter_config.json` of LoRA. Modules have the names that the writer's model had, such
    as `model.layers.3.self_attn.q_proj`."""

    def __init__(self, folder: pathlib.Path):
        """Raises ValueError, one line, for a file that is missing or damaged, and for every method
        and option whose result is not W + scale * B A."""
        self.where = folder / CONFIG_FILE
        self._raw = _read(folder)
        _refuse_others(self._raw, self.where)
        _check_kinds(self._raw, self.where)

    @property
    def base(self) -> str:
        """The name or folder of the weights that the adapter was trained on, empty for unknown."""
        return self._raw.get("base_model_name_or_path") or ""

    def rank(self, module: str) -> int:
        """The number of columns of the module's A."""
        return self._of(module, "rank_pattern", "r")

    def alpha(self, module: str) -> float:
        """The number that the scale is made of, which rsLoRA divides by the root of the rank."""
        alpha = self._of(module, "alpha_pattern", "lora_alpha")
        return alpha * math.sqrt(self.rank(module)) if self._raw.get("use_rslora") else alpha

    def _of(self, module, patterns, default):
        for pattern, value in (self._raw.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return self._raw[default]

    def saves(self, module: str) -> bool:
        """Whether the module, or one that it lies in, is trained as a whole, without LoRA
        (`modules_to_save`, which holds ends of names)."""
        names, parts = tuple(self._raw.get("modules_to_save") or ()), module.split(".")
        outer = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        return bool(names) and any(name.endswith(names) for name in outer)

    def adapts(self, module: str) -> bool:
        """Whether the module has an A and a B, by the rules of PEFT: a list of targets holds ends
        of names, a string is a regular expression for whole ones, and layers are counted where
        `layers_to_transform` names some of them."""
        if _holds(self._raw.get("exclude_modules"), module) or self.saves(module):
            return False
        targets = self._raw.get("target_modules")
        if not _holds(targets, module):
            return False
        layers = self._raw.get("layers_to_transform")
        if isinstance(targets, str) or layers is None or layers == []:
            return True
        found = _layer(module, self._raw.get("layers_pattern"))
        return found in ([layers] if isinstance(layers, int) else layers)


def _read(folder):
    path = folder / CONFIG_FILE
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"{folder}: is a run of ours, no adapter; write its adapters as a folder first "
            f"(videorft export --checkpoint={folder} --out=DIR --adapter)"
        )
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable ({error}); give a PEFT adapter folder") from None
    if not isinstance(raw, dict) or "peft_type" not in raw:
        raise ValueError(f"{path}: no 'peft_type'; give a folder saved by PEFT")
    return raw


def _refuse_others(raw, where):
    kind = raw["peft_type"]
    if str(kind).startswith(_PROMPTS) or "PROMPT" in str(kind):
        raise ValueError(
            f"{where}: peft_type={kind!r} learns inputs, which no weights can hold; train LoRA "
            "or the weights instead"
        )
    wrong = []
    if kind != "LORA":
        wrong = ["peft_type"]
    else:
        for key in ("r", "lora_alpha", "target_modules"):
            if key not in raw:
                raise ValueError(f"{where}: no {key!r}; give a folder saved by PEFT")
        wrong = [key for key, value in raw.items() if key not in _KNOWN and value not in _UNSET]
        if raw.get("init_lora_weights", True) in _PLAIN_INITS:
            wrong = [key for key in wrong if key != "init_lora_weights"]
    if wrong:
        found = ", ".join(f"{key}={str(raw[key])[:60]!r}" for key in wrong)
        raise ValueError(
            f"{where}: {found} is not plain LoRA; merge it into the weights with PEFT "
            "(merge_and_unload, save_pretrained) and give that folder"
        )


def _check_kinds(raw, where):
    """Raises ValueError for a value that is of another kind than PEFT writes, and for a pattern
    that is no regular expression."""
    for key, (holds, what) in _KINDS.items():
        if raw.get(key) is not None or key in _NEEDED:
            check_kind(raw, key, holds, what, f"{where}: ")
    for key in ("rank_pattern", "alpha_pattern"):
        holds, what = _KINDS[_PATTERNED[key]]
        for pattern in raw.get(key) or {}:
            _check_pattern(pattern, where)
            check_kind(raw[key], pattern, holds, what, f"{where}: {key}.")
    for key in ("target_modules", "exclude_modules"):
        if isinstance(raw.get(key), str):
            _check_pattern(raw[key], where)
    for pattern in _listed(raw.get("layers_pattern")):
        _check_pattern(pattern, where)


def _listed(value):
    """What stands in a list, or alone in its place."""
    return [value] if isinstance(value, str | int) else value or []


def _is_text(value):
    return isinstance(value, str)


def _are_texts(value):
    return is_list(_listed(value), _is_text)


def _are_layers(value):
    return is_list(_listed(value), is_whole)


_PATTERNED = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
_NEEDED = ("r", "lora_alpha")
_OBJECT = (lambda value: isinstance(value, dict), "object")
_NAMES = (_are_texts, "name or list of names")
# The keys that are read -> (whether a value is of their kind, the kind in words).
_KINDS = {
    "r": (is_count, "whole number above 0"),
    "lora_alpha": (is_positive, "number above 0"),
    "base_model_name_or_path": (_is_text, "name"),
    "rank_pattern": _OBJECT,
    "alpha_pattern": _OBJECT,
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "modules_to_save": (lambda value: is_list(value, _is_text), "list of names"),
    "layers_to_transform": (_are_layers, "number or list of numbers"),
    "layers_pattern": _NAMES,
    "use_rslora": (is_flag, "true or false"),
}


def _check_pattern(pattern, where):
    if pattern == "all-linear":
        return
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{where}: pattern {pattern!r} is no regular expression ({error}); correct the file"
        ) from None


def _holds(names, module):
    """Whether a list of names or a regular expression means a module."""
    if not names:
        return False
    if isinstance(names, str):
        return names == "all-linear" or bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer(module, patterns):
    """The number of the layer that a module belongs to; None where it belongs to none."""
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", module)
        return int(found["number"]) if found else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", module):
            return int(found["number"])
    return None
