"""Eight-bit weights and caches for sampling; off unless asked for.

A matrix keeps its place in the parameters: `Int8` is a pytree that rides the scan over layers and
gives its values back at `[...]`, which is how every module reads a weight, so no module knows of
it. XLA fuses the product with the scale into the matrix product that follows.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format
from jax.sharding import NamedSharding, PartitionSpec

# For each weight, the dims that its product sums over. All values along them share one scale, so
# that each output channel has one. The embedding is not quantised, since single rows of it are
# read; nor is a head that is tied to the embedding.
_SUMMED = (
    (r"text/layers/attn/[qkv]", (1,)),
    (r"text/layers/attn/o", (1, 2)),
    (r"text/layers/mlp/(gate|up|down)", (1,)),
    (r"text/head", (1,)),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """An array as 8-bit values and their scales.

    values: int8. scale: in the dtype of the computation, with size 1 in the dims whose values share
    a scale, or without the last dim. `[...]` gives the array back in the dtype of the scale.
    """

    values: jax.Array
    scale: jax.Array

    def __getitem__(self, index) -> jax.Array:
        return (self.values.astype(self.scale.dtype) * self.scale)[index]


def quantise(x, axes, *, keep: bool) -> Int8:
    """Quantises symmetrically: the largest magnitude along `axes` becomes 127.

    keep: leave those dims in the scale with size 1.
    """
    wide = x.astype(jnp.float32)
    peak = jnp.abs(wide).max(axes, keepdims=True)
    # The scale is rounded to the dtype of the computation before anything is divided by it.
    scale = (jnp.where(peak > 0, peak, 1.0) / 127).astype(x.dtype)
    values = jnp.clip(jnp.round(wide / scale), -127, 127).astype(jnp.int8)
    return Int8(values, scale if keep else scale.squeeze(axes))


def quantise_weights(params):
    """Replaces the decoder's matrices by `Int8`; call it inside `jax.jit`."""

    def convert(keys, leaf):
        axes = _summed(keys)
        return leaf if axes is None else quantise(leaf, axes, keep=True)

    return jax.tree_util.tree_map_with_path(convert, params)


def quantised_formats(formats):
    """Gives the shardings (or Formats) of what `quantise_weights` returns."""

    def convert(keys, held):
        axes = _summed(keys)
        if axes is None:
            return held
        sharding = held.sharding if isinstance(held, Format) else held
        spec = [None if dim in axes else axis for dim, axis in enumerate(sharding.spec)]
        return Int8(held, NamedSharding(sharding.mesh, PartitionSpec(*spec)))

    return jax.tree_util.tree_map_with_path(convert, formats)


def _summed(keys):
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    return next((axes for rule, axes in _SUMMED if re.fullmatch(rule, path)), None)
