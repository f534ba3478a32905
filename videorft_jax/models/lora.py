"""LoRA as functions on nested dicts, and PEFT adapters in and out.

A tuned weight is W + (alpha / rank) a b (Hu et al. 2021, section 4.1), and the model knows nothing
of it. `merge_lora` gives parameters of the same structure, shapes and dtypes, so that a tuned model
runs in every program written for the full one. Training differentiates through `adapt`, which makes
the same merge where a layer is read, so that one merged layer and its gradient exist at a time.

An adapter has the paths of its targets with `a` and `b` below them: `text/layers/attn/q/a`
[L, D, rank] and `text/layers/attn/q/b` [L, rank, N, H]. Input dims stay apart in `a`, output dims
in `b`.
"""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videorft_jax.models import tensor_files
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import abstract_params, all_families, family_of
from videorft_jax.models.names import is_stacked, linear_layers

log = logging.getLogger(__name__)


@functools.cache
def _num_inputs() -> dict[str, int]:
    """path -> number of input dims of every weight that is a plain matrix product. A path means
    the same in every family that has it."""
    found = {}
    for family in all_families():
        layers = linear_layers(family.names, family.new_name)
        found |= {path: count for path, (_, count) in layers.items()}
    return found


def _modules(model: ModelConfig) -> dict[str, str]:
    """path -> Hugging Face module, {} for the layer, of the weights that adapters can have."""
    family = family_of(model)
    layers = linear_layers(family.names, family.new_name)
    return {path: module for path, (module, _) in layers.items()}


_ADAPTER_FILE, _CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
# Keys of adapter_config.json that do not change what the matrices mean; all others must be unset.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
}
_UNSET = (None, False, 0, "none", [], {})
_PLAIN_INITS = (True, False, "gaussian")  # the others move a part of the base weights


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which weights are adapted, and how. `targets` are regular expressions that are searched in
    parameter paths, as in `LoraConfig(16, 32, (r"text/layers/attn/(q|k|v|o)$",))`. Raises
    ValueError for a rank, alpha or number of targets that is not positive."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise ValueError(
                f"lora rank {self.rank}, alpha {self.alpha}, {len(self.targets)} targets: rank and "
                f"alpha must be positive and targets name at least one path"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight beside its adapter, standing in the weight's place: it rides the scan over layers
    and gives the merged weight at `[...]`, which is how every module reads a weight."""

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self):
        return self.weight.shape

    def __getitem__(self, index) -> jax.Array:
        return _merge(self.weight, self.a, self.b, self.scale)[index]


def adapt(params: dict, lora: dict, config: LoraConfig) -> dict:
    """The parameters with `Adapted` in place of the targets; nothing is computed.

    Raises ValueError, as `merge_lora`.
    """
    flat = flatten_dict(params, sep="/")
    for path, (a, b) in _pairs(lora).items():
        flat[path] = Adapted(_target(flat, path), a, b, config.scale)
    return unflatten_dict(flat, sep="/")


def resolve(params):
    """The same tree with every `Adapted` merged."""
    return jax.tree.map(
        lambda leaf: leaf[...] if isinstance(leaf, Adapted) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, Adapted),
    )


def _merge(weight, a, b, scale):
    """The tuned weight of one layer, computed in float32 and cast back to the weight's dtype."""
    delta = jnp.tensordot(
        a.astype(jnp.float32), b.astype(jnp.float32), 1, precision=jax.lax.Precision.HIGHEST
    )
    return (weight.astype(jnp.float32) + scale * delta).astype(weight.dtype)


def _target(flat, path):
    if path not in flat:
        raise ValueError(f"lora has {path}, the params do not: use the adapter's own model")
    return flat[path]


def find_targets(params: dict, config: LoraConfig) -> list[str]:
    """Sorted paths of `params` that the config adapts; leaves may be abstract.

    Raises ValueError for a pattern that is no regular expression, that matches nothing, or that
    matches something other than the weight of a linear layer.
    """
    paths, targets = list(flatten_dict(params, sep="/")), set()
    for pattern in config.targets:
        try:
            matched = [path for path in paths if re.search(pattern, path)]
        except re.error as error:
            raise ValueError(
                f"lora target {pattern!r} is no regular expression: {error}"
            ) from error
        if not matched:
            raise ValueError(
                f"lora target {pattern!r} matches none of {len(paths)} parameters: see their "
                f"paths, such as text/layers/attn/q"
            )
        if other := [path for path in matched if path not in _num_inputs()]:
            raise ValueError(
                f"lora target {pattern!r} matches {other[0]}, no weight of a linear layer: end it "
                f"with $ or name the weights, such as text/layers/attn/(q|k|v|o)$"
            )
        targets |= set(matched)
    return sorted(targets)


def init_lora(params: dict, config: LoraConfig, key: jax.Array) -> dict:
    """Float32 adapter of `params` (leaves may be abstract) whose product is zero.

    `a` is uniform in +-1/sqrt(inputs), as PEFT's kaiming-uniform with a = sqrt(5); `b` is zero. The
    draw of a target depends on the key and its path only. Raises ValueError, see `find_targets`.
    """
    flat, lora = flatten_dict(params, sep="/"), {}
    for path in find_targets(params, config):
        lead, ins, outs = _split(path, flat[path].shape)
        bound = math.prod(ins) ** -0.5
        target_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        lora[f"{path}/a"] = jax.random.uniform(
            target_key, (*lead, *ins, config.rank), minval=-bound, maxval=bound
        )
        lora[f"{path}/b"] = jnp.zeros((*lead, config.rank, *outs))
    return unflatten_dict(lora, sep="/")


def merge_lora(params: dict, lora: dict, config: LoraConfig) -> dict:
    """Params with `W + (alpha / rank) * a b`, computed in float32 and cast back. Pure: jit it.

    Works on sharded arrays, and layer by layer, so that no float32 copy of a stack exists.
    Differentiable with respect to both arguments.
    """

    def merge(weight, a, b):
        return _merge(weight, a, b, config.scale)

    flat = flatten_dict(params, sep="/")
    for path, (a, b) in _pairs(lora).items():
        layers = (_target(flat, path), a, b)
        stacked = a.ndim + b.ndim - 2 > flat[path].ndim  # L is counted twice in such a stack.
        flat[path] = jax.lax.map(lambda x: merge(*x), layers) if stacked else merge(*layers)
    return unflatten_dict(flat, sep="/")


def save_adapter(
    folder: str, lora: dict, config: LoraConfig, model: ModelConfig, base_model: str | None = None
) -> None:
    """Writes a PEFT adapter folder for the model's class in transformers >= 4.52.

    `base_model` is the name or folder of the weights it was trained on. Tensors keep their dtype.
    """
    tensors, pairs, known = {}, _pairs(jax.device_get(lora)), _modules(model)
    for path, (a, b) in pairs.items():
        module = known[path]
        stacked = "{}" in module
        for i in range(len(a)) if stacked else (0,):
            one_a, one_b = (a[i], b[i]) if stacked else (a, b)
            name = f"base_model.model.{module.format(i)}"
            tensors[f"{name}.lora_A.weight"] = one_a.reshape(-1, config.rank).T
            tensors[f"{name}.lora_B.weight"] = one_b.reshape(config.rank, -1).T
    modules = [re.escape(known[path]).replace(r"\{\}", r"\d+") for path in pairs]
    adapter = {
        "peft_type": "LORA",
        "task_type": None,  # that of AutoPeftModel, which finds the class by the next key
        "auto_mapping": {
            "base_model_class": "AutoModelForImageTextToText",
            "parent_library": "transformers",
        },
        "base_model_name_or_path": base_model,
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
    tensor_files.write_file(folder / _ADAPTER_FILE, specs, tensors.values())
    (folder / _CONFIG_FILE).write_text(json.dumps(adapter, indent=2))


def load_adapter(folder: str, model: ModelConfig) -> tuple[dict, LoraConfig]:
    """Reads a PEFT adapter of a model.

    Returns the adapter, host arrays in the dtype of the file, and its config, whose targets are the
    paths found. Old and new module names are accepted. Raises ValueError in one line for features
    beyond plain LoRA, and one that lists every unknown, missing or mis-shaped tensor.
    """
    old_name, modules = family_of(model).old_name, _modules(model)
    folder = pathlib.Path(folder)
    rank, alpha = _read_config(folder / _CONFIG_FILE)
    if not (folder / _ADAPTER_FILE).is_file():
        raise ValueError(f"{folder}: no {_ADAPTER_FILE}; pickle is never read, save as safetensors")
    found = {
        old_name(name.removeprefix("base_model.model.")): entry
        for name, entry in tensor_files.read_header(folder / _ADAPTER_FILE).items()
    }
    flat = flatten_dict(abstract_params(model), sep="/")
    leaves, expected = {}, {}
    for path in sorted(modules.keys() & flat.keys()):
        lead, ins, outs = _split(path, flat[path].shape)
        kinds = {
            "a": ("lora_A", (rank, math.prod(ins)), (*ins, rank)),
            "b": ("lora_B", (math.prod(outs), rank), (rank, *outs)),
        }
        rows = {}
        for kind, (suffix, theirs, ours) in kinds.items():
            for i in range(*lead or (1,)):
                name = f"{old_name(modules[path].format(i))}.{suffix}.weight"
                rows[name] = (f"{path}/{kind}", theirs, ours)
        if rows.keys() & found.keys():  # A tensor found for one layer must be there for all.
            expected |= rows
            leaves |= {f"{path}/{kind}": bool(lead) for kind in kinds}
    faults = [f"unknown {name}" for name in sorted(found.keys() - expected.keys())]
    for name, (path, theirs, _) in expected.items():
        if name not in found:
            faults.append(f"missing {name} ({path})")
        elif found[name].shape != theirs:
            faults.append(f"mis-shaped {name} ({path}): {found[name].shape}, must be {theirs}")
    if faults or not found:
        raise ValueError(
            f"{folder}: {len(faults)} faulty tensors of {len(found)}, use one of this model: "
            + "; ".join(faults)
        )
    layers = {path: [] for path in sorted(leaves)}
    with (folder / _ADAPTER_FILE).open("rb") as file:
        for name, (path, theirs, ours) in expected.items():
            tensor = tensor_files.read_rows(file.fileno(), found[name], 0, theirs[0])
            layers[path].append(tensor.T.reshape(ours))
    lora = {path: np.stack(x) if leaves[path] else x[0] for path, x in layers.items()}
    targets = tuple(f"^{path.removesuffix('/a')}$" for path in lora if path.endswith("/a"))
    log.info("read %d tensors for %d targets from %s", len(found), len(targets), folder)
    return unflatten_dict(lora, sep="/"), LoraConfig(rank, alpha, targets)


def _read_config(path: pathlib.Path) -> tuple[int, float]:
    """Rank and alpha of an adapter_config.json that describes plain LoRA."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable ({error}): give a PEFT adapter folder") from error
    for key in ("peft_type", "r", "lora_alpha"):
        if key not in raw:
            raise ValueError(f"{path}: no {key!r}: give a folder saved by PEFT")
    wrong = [key for key, value in raw.items() if key not in _HARMLESS and value not in _UNSET]
    if raw.get("init_lora_weights", True) in _PLAIN_INITS:
        wrong = [key for key in wrong if key != "init_lora_weights"]
    if raw["peft_type"] != "LORA":
        wrong.insert(0, "peft_type")
    if wrong:
        found = ", ".join(f"{key}={raw[key]!r}" for key in wrong)
        raise ValueError(f"{path}: {found} is not plain LoRA: merge it into the weights with PEFT")
    return raw["r"], raw["lora_alpha"]


def _split(path: str, shape: tuple) -> tuple[tuple, tuple, tuple]:
    """Dims of a weight: layers (empty if not stacked), inputs, outputs."""
    num_in, lead = _num_inputs()[path], int(is_stacked(path))
    return shape[:lead], shape[lead : lead + num_in], shape[lead + num_in :]


def _pairs(lora: dict) -> dict[str, tuple]:
    """path of the weight -> (a, b), sorted."""
    flat = flatten_dict(lora, sep="/")
    paths = sorted({path.rsplit("/", 1)[0] for path in flat})
    return {path: (flat[f"{path}/a"], flat[f"{path}/b"]) for path in paths}
