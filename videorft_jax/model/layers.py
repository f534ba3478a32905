"""Pieces shared by the vision tower and the decoder.

A module declares the weights of a whole stack at once, with a leading L; `scan_layers` hands one
slice of them at a time to the block, so that each tower compiles one block whatever its depth.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

REMAT_POLICIES = ("none", "full", "save_attention", "save_dots")


def weight(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """A matrix drawn from N(0, 0.02^2), the initializer_range of the published configs."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


def zeros(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


def ones(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.ones(shape))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Normalises in float32, casts back, and only then scales: the reference's order."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding, halves convention: x [..., N, H], cos and sin [..., H / 2]."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Mlp(nnx.Module):
    """SwiGLU of a stack of L layers; the vision tower's has biases."""

    def __init__(self, layers: int, dim: int, mlp_dim: int, *, biased: bool, rngs: nnx.Rngs):
        self.gate = weight(rngs, layers, dim, mlp_dim)
        self.up = weight(rngs, layers, dim, mlp_dim)
        self.down = weight(rngs, layers, mlp_dim, dim)
        if biased:
            self.gate_bias = zeros(layers, mlp_dim)
            self.up_bias = zeros(layers, mlp_dim)
            self.down_bias = zeros(layers, dim)
        self.biased = biased

    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer: x [..., D], the weights already sliced."""
        gate, up = x @ self.gate[...], x @ self.up[...]
        if self.biased:
            gate, up = gate + self.gate_bias[...], up + self.up_bias[...]
        out = (jax.nn.silu(gate) * up) @ self.down[...]
        return out + self.down_bias[...] if self.biased else out


def scan_layers(step, stack: nnx.Module, carry, extras, remat: str = "none"):
    """Runs `step(block, carry, extra) -> (carry, out)` over the L layers of `stack`.

    `extras` is a tree of arrays with leading L that rides the scan. `remat` is one of
    REMAT_POLICIES: "full" keeps only the carry, "save_attention" also what attention returned,
    "save_dots" every matrix product with weights.
    """
    graphdef, weights = nnx.split(stack)

    def body(carry, slices):
        layer, extra = slices
        return step(nnx.merge(graphdef, layer), carry, extra)

    return jax.lax.scan(checkpointed(body, remat), carry, (weights, extras))


def checkpointed(function, remat: str):
    """Wraps `function` in `jax.checkpoint` under a policy named in REMAT_POLICIES."""
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return function
        case "full":
            policy = policies.nothing_saveable
        case "save_attention":
            policy = policies.save_only_these_names("attention")
        case "save_dots":
            policy = policies.dots_with_no_batch_dims_saveable
        case _:
            raise ValueError(f"remat is {remat!r}; choose one of {REMAT_POLICIES}")
    # Inside a scan the loop itself prevents the merging that prevent_cse guards against.
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)(function)


def shard_rows(x: jax.Array) -> jax.Array:
    """Keeps activations [B, ...] sharded by row when a mesh is set, so that XLA gathers weights
    and not activations."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp")))
