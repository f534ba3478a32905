"""Nested dicts of weights: their paths, their split into trained and frozen parts, and casts."""

import re

import jax
import jax.numpy as jnp

PARTS = {
    "vision": r"^vision/(?!merger/|deepstack/)",
    "merger": r"^vision/(merger|deepstack)/",
    "text": r"^text/",
}


def path_of(keys) -> str:
    """`text/layers/attn/q` of a key path."""
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def split_trained(params, freeze: tuple[str, ...]):
    """Two nested dicts: weights to train, and those of the parts named in `freeze` (see PARTS).

    Raises ValueError for an unknown part, or when nothing is left to train.
    """
    unknown = set(freeze) - set(PARTS)
    if unknown:
        raise ValueError(f"freeze names {sorted(unknown)}; choose among {sorted(PARTS)}")
    rules = [re.compile(PARTS[name]) for name in freeze]
    trained, frozen = {}, {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(keys)
        tree = frozen if any(rule.search(path) for rule in rules) else trained
        *parents, name = path.split("/")
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = leaf
    if not trained:
        raise ValueError(f"freeze {sorted(freeze)} leaves nothing to train; name fewer parts")
    return trained, frozen


def join(trained, frozen):
    """The inverse of `split_trained`: one nested dict of both."""
    joined = dict(frozen)
    for name, value in trained.items():
        inner = isinstance(value, dict) and name in joined
        joined[name] = join(value, joined[name]) if inner else value
    return joined


def cast(tree, dtype):
    """Floating leaves in `dtype`."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
