"""Weights of a decoder whose `tensor` axis has more parts than the model has heads of keys.

Each head of keys and values is then held by several parts, and its group of query heads is dealt
out to them. Where a group does not divide, and where the MLP does not, zeros fill it up: a query
head whose rows of `o` are zero, or an MLP channel whose row of `down` is zero, adds nothing, so
that hidden states stay what they were. A tower is not split over `tensor` and stays as it is.
"""

import functools

import jax
import jax.numpy as jnp

from videorft_jax.models.config import ModelConfig
from videorft_jax.parallel import sharding

_TENSOR = ("heads", "kv_heads", "mlp")  # dims that may be filled up; a vocabulary may not


def count_copies(model: ModelConfig, tensor: int) -> int:
    """Counts the parts of a `tensor` axis that hold the same head of keys and values. Raises
    ValueError where the parts can share the heads in no way."""
    heads = model.text.num_kv_heads
    if heads % tensor and tensor % heads:
        raise ValueError(
            f"tensor = {tensor} neither divides kv_heads = {heads} nor is a multiple of it"
        )
    return max(1, tensor // heads)


def widen(params, model: ModelConfig, tensor: int):
    """Gives `params` with dims that `tensor` divides; those that it divides stay as they are.

    params: a tree with the model's own paths, or a part of it, of arrays with a leading L in the
    layers. Raises ValueError where heads cannot be shared; see `count_copies`.
    """
    copies = count_copies(model, tensor)

    def convert(keys, leaf):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        for dim, axis in enumerate(sharding.dims_of(path)):
            if axis not in _TENSOR or not path.startswith("text/"):
                continue
            if not path.startswith("text/layers/attn/"):
                leaf = _fill(leaf, dim, -leaf.shape[dim] % tensor)
            elif axis == "kv_heads":
                leaf = leaf if copies == 1 else jnp.repeat(leaf, copies, axis=dim)
            elif copies > 1:
                leaf = _fill_groups(leaf, dim, model.text.num_kv_heads, copies)
        return leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def abstract_widened(tree, model: ModelConfig, tensor: int):
    """Gives the shapes of `widen` for a tree of abstract arrays."""
    return jax.eval_shape(functools.partial(widen, model=model, tensor=tensor), tree)


def _fill(leaf, dim, count):
    """Puts `count` zeros behind the others of a dim."""
    if not count:
        return leaf
    return jnp.pad(leaf, [(0, count if d == dim else 0) for d in range(leaf.ndim)])


def _fill_groups(leaf, dim, groups, copies):
    """Puts zeros behind each group of query heads, so that `copies` divides its size."""
    size = leaf.shape[dim] // groups
    shape = leaf.shape[:dim], leaf.shape[dim + 1 :]
    grouped = leaf.reshape(*shape[0], groups, size, *shape[1])
    return _fill(grouped, dim + 1, -size % copies).reshape(*shape[0], -1, *shape[1])
