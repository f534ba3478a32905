"""Adapter folders of PEFT, read and written, and put on a model's weights.

PEFT keeps an A [rank, inputs] and a B [outputs, rank] for every adapted module of every layer, each
with a rank and a scale of its own if it likes. Ours is one stack of factors a parameter, with one
rank and one scale (`lora`). An adapter that fits this is taken as it is. Any other becomes one of
the largest rank, with zeros behind the columns of a smaller one and in layers without any, and with
the scale multiplied into b; what it adds to the weights is the same.
"""

import dataclasses
import functools
import json
import logging
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videorft_jax.models import tensor_files
from videorft_jax.models.adapter_base import check_base
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of
from videorft_jax.models.lora import LoraConfig, merge_weight, pairs
from videorft_jax.models.names import Leaf, linear_layers
from videorft_jax.models.peft_config import CONFIG_FILE, PeftConfig

log = logging.getLogger(__name__)

_TENSORS, _PREFIX = "adapter_model.safetensors", "base_model.model."
_EMBED, _HEAD = "text/embed", "text/head"
_MOST_LISTED = 6  # faults spelled out in one error


@dataclasses.dataclass(frozen=True)
class Adapter:
    """folder: where it was read. factors: a nested dict as `lora.init_lora` makes one, host arrays,
    empty where every module is trained as a whole. config: of the factors, None where there are
    none. replaced: parameter path -> layer -> the whole weight that was trained in its place, the
    layer None where there is no stack. is_plain: whether one rank and one scale hold for all
    factors, every layer has them and nothing is replaced."""

    folder: str
    factors: dict
    config: LoraConfig | None
    replaced: dict[str, dict[int | None, np.ndarray]]
    is_plain: bool


class _Slot(NamedTuple):
    """One tensor of the base that an adapter may change: its leaf, its layer, the module's name on
    the hub and the tensor's own name in the module, "weight" or "bias"."""

    leaf: Leaf
    layer: int | None
    module: str
    part: str

    @property
    def where(self) -> str:
        return self.leaf.path if self.layer is None else f"{self.leaf.path}[{self.layer}]"


def load_adapter(folder, model: ModelConfig) -> Adapter:
    """Reads a PEFT folder of LoRA for a model.

    Old and new module names are accepted. Arrays keep the dtype of the file where one rank and one
    scale hold for all, and are float32 otherwise. Raises ValueError, one line, before an array is
    read: for another method than LoRA, for an adapter of another base, and for tensors that are
    unknown, missing or mis-shaped, of which it names the first.
    """
    folder = pathlib.Path(folder)
    config = PeftConfig(folder)
    path = folder / _TENSORS
    if not path.is_file():
        raise ValueError(f"{folder}: no {_TENSORS}; pickle is never read, save as safetensors")
    check_base(folder, config.base, model)
    reader = _Reader(path, config, model)
    reader.check()
    with path.open("rb") as file:
        factors, replaced = reader.read(file.fileno())
    return _stack(folder, factors, replaced, len(reader.found))


class _Reader:
    """The tensors of one file beside the slots of a model."""

    def __init__(self, path, config, model):
        self.path, self.config, self.model = path, config, model
        self.family = family_of(model)
        self.linear = linear_layers(self.family.names, self.family.new_name)
        self.found, self.written = {}, {}
        for name, entry in tensor_files.read_header(path).items():
            theirs = name.removeprefix(_PREFIX)
            old = self.family.old_name(theirs).replace(".base_layer.", ".")
            self.found[old] = entry
            self.written[old] = re.sub(r"\.(lora_|base_layer\.).*", "", theirs)
        self.slots = list(self._slots())

    def _slots(self):
        for leaf in self.family.leaves_of(self.model):
            for number, (name, _) in enumerate(leaf.names()):
                module, _, part = name.rpartition(".")
                yield _Slot(leaf, None if leaf.num_layers is None else number, module, part)

    def check(self):
        """Sorts the slots into `adapted`, with the names of A and B, and `saved`, with that of the
        whole tensor; raises ValueError for what is unknown, missing or mis-shaped."""
        self._check_tied()
        self._check_linear()
        self.adapted, self.saved, faults, used = [], [], [], set()
        for slot in self.slots:
            spelt = (slot.module, self.family.new_name(slot.module))
            whole = f"{slot.module}.{slot.part}"
            if whole in self.found or any(map(self.config.saves, spelt)):
                used.add(whole)
                faults += self._fault(whole, slot.leaf.hf_shape, slot.where)
                self.saved.append((slot, whole))
            names = self._factor_names(slot)
            if any(name in self.found for name in names) or (
                names and any(map(self.config.adapts, spelt))
            ):
                used |= set(names)
                for name, shape in zip(names, self._factor_shapes(slot, names), strict=True):
                    faults += self._fault(name, shape, slot.where)
                self.adapted.append((slot, names))
        faults = [f"unknown {name}" for name in sorted(self.found.keys() - used)] + faults
        if faults or not self.found:
            listed = faults[:_MOST_LISTED]
            if len(faults) > len(listed):
                listed.append(f"and {len(faults) - len(listed)} more")
            base = self.config.base or "that it was trained on"
            raise ValueError(
                f"{self.path.parent}: {len(faults)} faulty tensors of {len(self.found)} for this "
                f"model: {'; '.join(listed)}; give the adapter its own base, {base}"
            )

    def _fault(self, name, shape, where):
        if name not in self.found:
            return [f"missing {name} ({where})"]
        there = self.found[name].shape
        return [] if there == shape else [f"mis-shaped {name} ({where}): {there}, must be {shape}"]

    def _factor_names(self, slot):
        """The names of A and B, none where a module is no matrix product."""
        if slot.leaf.path == _EMBED:
            return tuple(f"{slot.module}.lora_embedding_{kind}" for kind in "AB")
        if slot.leaf.path in self.linear or slot.leaf.path == _HEAD:
            return tuple(f"{slot.module}.lora_{kind}.weight" for kind in "AB")
        return ()

    def _factor_shapes(self, slot, names):
        rank = self.config.rank(self._as_written(slot, names))
        rows, columns = slot.leaf.hf_shape
        if slot.leaf.path == _EMBED:
            return (rank, rows), (columns, rank)
        return (rank, columns), (rows, rank)

    def _as_written(self, slot, names):
        """The module's name in the model of the writer, which patterns are matched against."""
        return next((self.written[name] for name in names if name in self.written), slot.module)

    def _check_tied(self):
        """A model that ties its head to its embedding has one weight for both."""
        if not self.model.text.tied:
            return
        embed = next(slot.module for slot in self.slots if slot.leaf.path == _EMBED)
        ends = [name for name in self.found if name.startswith(("lm_head.", f"{embed}."))]
        if ends:
            raise ValueError(
                f"{self.path.parent}: changes {ends[0].rpartition('.')[0]}, and the model ties "
                "head and embedding (tie_word_embeddings); merge it with PEFT into an untied copy"
            )

    def _check_linear(self):
        """PEFT adapts convolutions as well, such as the tower's first layer."""
        taken = {name for slot in self.slots for name in self._factor_names(slot)}
        modules = {slot.module for slot in self.slots}
        for name in sorted(self.found.keys() - taken):
            module, _, kind = name.partition(".lora_")
            if kind and module in modules:
                raise ValueError(
                    f"{self.path.parent}: adapts {module}, which is no matrix product; merge it "
                    "into the weights with PEFT (merge_and_unload, save_pretrained) and give that "
                    "folder"
                )

    def read(self, descriptor):
        """(slot -> (a, b, rank, alpha), path -> layer -> weight), in our layout."""
        factors, replaced = {}, {}
        for slot, names in self.adapted:
            a, b = (self._rows(descriptor, name) for name in names)
            module = self._as_written(slot, names)
            rank = len(a)
            if slot.leaf.path == _HEAD:  # Our head keeps outputs first, as the hub does.
                a, b = b, a
            elif slot.leaf.path == _EMBED:
                a, b = a.T, b.T
            else:
                ins, outs = self._split(slot.leaf)
                a, b = a.T.reshape(*ins, rank), b.T.reshape(rank, *outs)
            factors[slot] = a, b, rank, self.config.alpha(module)
        for slot, name in self.saved:
            block = self._rows(descriptor, name).reshape(slot.leaf.split)
            layers = replaced.setdefault(slot.leaf.path, {})
            layers[slot.layer] = block.transpose(slot.leaf.perm)
        return factors, replaced

    def _rows(self, descriptor, name):
        entry = self.found[name]
        return tensor_files.read_rows(descriptor, entry, 0, entry.shape[0])

    def _split(self, leaf):
        """Input and output dims of a parameter, without its layers."""
        dims = leaf.shape if leaf.num_layers is None else leaf.shape[1:]
        count = self.linear[leaf.path][1]
        return dims[:count], dims[count:]


def _stack(folder, factors, replaced, num_tensors) -> Adapter:
    by_path: dict[str, dict] = {}
    for slot, found in sorted(factors.items(), key=lambda item: item[0].leaf.path):
        by_path.setdefault(slot.leaf.path, {})[slot.layer] = found
    sizes = {slot.leaf.path: slot.leaf.num_layers or 1 for slot in factors}
    kinds = {(rank, alpha) for _, _, rank, alpha in factors.values()}
    is_even = len(kinds) == 1 and all(len(by_path[path]) == sizes[path] for path in by_path)
    config, flat = None, {}
    if factors:
        rank = max(rank for rank, _ in kinds)
        alpha = next(iter(kinds))[1] if is_even else float(rank)
        config = LoraConfig(rank, alpha, tuple(f"^{path}$" for path in by_path))
        for path, layers in by_path.items():
            made = {i: x[:2] if is_even else _widen(*x, rank) for i, x in layers.items()}
            for part, kind in enumerate("ab"):
                blocks = {i: pair[part] for i, pair in made.items()}
                zeros = np.zeros_like(next(iter(blocks.values())))
                flat[f"{path}/{kind}"] = (
                    blocks[None]
                    if None in blocks
                    else np.stack([blocks.get(i, zeros) for i in range(sizes[path])])
                )
    log.info("read %d tensors for %d targets from %s", num_tensors, len(by_path), folder)
    tree = unflatten_dict(flat, sep="/")
    return Adapter(str(folder), tree, config, replaced, is_even and not replaced)


def _widen(a, b, rank, alpha, most):
    """Factors of the largest rank in float32, with zeros in place of absent columns, and with the
    scale in b."""
    short = most - rank
    a = np.pad(a.astype(np.float32), [(0, 0)] * (a.ndim - 1) + [(0, short)])
    b = np.pad(
        b.astype(np.float32) * np.float32(alpha / rank), [(0, short)] + [(0, 0)] * (b.ndim - 1)
    )
    return a, b


def merge_adapter(params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """The parameters with an adapter in them: replaced weights first, then W + scale a b in
    float32, cast to the dtype of each weight and in its shards. `params` are given up."""
    flat = flatten_dict(params, sep="/")
    for path, layers in adapter.replaced.items():
        for layer, value in layers.items():
            flat[path] = _replace(flat[path], layer, value)
    for path, (a, b) in pairs(adapter.factors).items():
        scale = np.float32(adapter.config.scale)
        flat[path] = _program(flat[path].sharding)(flat[path], a, b, scale)
    return unflatten_dict(flat, sep="/")


@functools.cache
def _program(place):
    """The merge of one weight into its own memory; weights of equal shapes share it."""
    return jax.jit(merge_weight, donate_argnums=0, out_shardings=place)


def _replace(leaf, layer, value):
    value = value.astype(leaf.dtype)
    if layer is None:
        return jax.device_put(value, leaf.sharding)
    put = jax.jit(lambda leaf, value: leaf.at[layer].set(value), donate_argnums=0)
    return put(leaf, jnp.asarray(value))


def save_adapter(
    folder: str | pathlib.Path,
    lora: dict,
    config: LoraConfig,
    model: ModelConfig,
    base_model: str | None = None,
    revision: str | None = None,
) -> None:
    """Writes a PEFT adapter folder for the model's class in transformers >= 4.52.

    `base_model` is the name or folder of the weights it was trained on, `revision` that of the name
    on the hub. Tensors keep their dtype.
    """
    family = family_of(model)
    known = linear_layers(family.names, family.new_name)
    tensors, found = {}, pairs(jax.device_get(lora))
    for path, (a, b) in found.items():
        module = known[path][0]
        stacked = "{}" in module
        for i in range(len(a)) if stacked else (0,):
            one_a, one_b = (a[i], b[i]) if stacked else (a, b)
            name = f"{_PREFIX}{module.format(i)}"
            tensors[f"{name}.lora_A.weight"] = one_a.reshape(-1, config.rank).T
            tensors[f"{name}.lora_B.weight"] = one_b.reshape(config.rank, -1).T
    modules = [re.escape(known[path][0]).replace(r"\{\}", r"\d+") for path in found]
    adapter = {
        "peft_type": "LORA",
        "task_type": None,  # that of AutoPeftModel, which finds the class by the next key
        "auto_mapping": {
            "base_model_class": "AutoModelForImageTextToText",
            "parent_library": "transformers",
        },
        "base_model_name_or_path": base_model,
        "revision": revision,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": "|".join(modules),
        "inference_mode": True,
    }
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    tensor_files.write_file(folder / _TENSORS, specs, tensors.values())
    (folder / CONFIG_FILE).write_text(json.dumps(adapter, indent=2))
