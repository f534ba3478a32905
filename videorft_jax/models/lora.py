"""LoRA as functions on nested dicts; `peft_folder` reads and writes them as PEFT does.

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
import math
import re
import zlib

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from videorft_jax.models.family import all_families
from videorft_jax.models.names import is_stacked, linear_layers


@functools.cache
def _num_inputs() -> dict[str, int]:
    """path -> number of input dims of every weight that is a plain matrix product. A path means
    the same in every family that has it."""
    found = {}
    for family in all_families():
        layers = linear_layers(family.names, family.new_name)
        found |= {path: count for path, (_, count) in layers.items()}
    return found


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
    for path, (a, b) in pairs(lora).items():
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

    flat = flatten_dict(params, sep="/")
    for path, (a, b) in pairs(lora).items():
        flat[path] = merge_weight(_target(flat, path), a, b, config.scale)
    return unflatten_dict(flat, sep="/")


def merge_weight(weight: jax.Array, a: jax.Array, b: jax.Array, scale) -> jax.Array:
    """One weight, or a stack of them layer by layer, with scale * a b added in float32."""
    stacked = a.ndim + b.ndim - 2 > weight.ndim  # L is counted twice in such a stack.
    if not stacked:
        return _merge(weight, a, b, scale)
    return jax.lax.map(lambda layer: _merge(*layer, scale), (weight, a, b))


def _split(path: str, shape: tuple) -> tuple[tuple, tuple, tuple]:
    """Dims of a weight: layers (empty if not stacked), inputs, outputs."""
    num_in, lead = _num_inputs()[path], int(is_stacked(path))
    return shape[:lead], shape[lead : lead + num_in], shape[lead + num_in :]


def pairs(lora: dict) -> dict[str, tuple]:
    """path of the weight -> (a, b), sorted."""
    flat = flatten_dict(lora, sep="/")
    paths = sorted({path.rsplit("/", 1)[0] for path in flat})
    return {path: (flat[f"{path}/a"], flat[f"{path}/b"]) for path in paths}
