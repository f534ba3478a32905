"""Pieces shared by the vision towers and the decoder.

A module declares the weights of a whole stack of layers at once, with a leading L. `scan_layers`
hands one slice of them at a time to the block, so that a tower compiles one block whatever its
depth.

A block reads every weight as `self.w[...]`, never as `self.w`. What stands in a weight's place may
be an array, an `Int8` matrix (`int8`) or a matrix beside its adapter (`lora.Adapted`), and each of
these makes the plain matrix of one layer at `[...]`. No module therefore knows of eight-bit weights
or of LoRA, and only one layer's matrices are widened or merged at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from videorft_jax.ops.sums import sum_last, sum_rows

REMAT_POLICIES = ("none", "full", "save_attention", "save_projections", "save_gate", "save_dots")


def weight(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """A matrix drawn from N(0, 0.02^2), the initializer_range of the published configs."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


def zeros(*shape: int) -> nnx.Param:
    """A bias of zeros."""
    return nnx.Param(jnp.zeros(shape))


def ones(*shape: int) -> nnx.Param:
    """The scale of a norm, all ones."""
    return nnx.Param(jnp.ones(shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last dim: x [..., D], scale [D] -> [..., D].

    It normalises in float32, casts back and only then scales, which is the order of Hugging Face's
    models. The backward pass keeps x and one number per row instead of a float32 copy of x.
    """
    return _normalised(x, _inverse_rms(x, eps)).astype(x.dtype) * scale


def _inverse_rms(x, eps):
    return jax.lax.rsqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=-1, keepdims=True) + eps)


def _normalised(x, inverse):
    return x.astype(jnp.float32) * inverse


def _rms_norm_forward(x, scale, eps):
    inverse = _inverse_rms(x, eps)
    return _normalised(x, inverse).astype(x.dtype) * scale, (x, scale, inverse)


def _rms_norm_backward(_, saved, cotangent):
    x, scale, inverse = _apart(saved)
    normed, wide = _normalised(x, inverse), (cotangent * scale).astype(jnp.float32)
    along = sum_last(wide * normed)[..., None] / x.shape[-1]
    dx = inverse * (wide - normed * along)
    return dx.astype(x.dtype), sum_rows(cotangent * normed.astype(x.dtype), 1)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last dim, x [..., D], scale and bias [D]; computed in float32 and cast
    back at the end."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (normed * scale + bias).astype(x.dtype)


def rotary_waves(angles: jax.Array, dtype=jnp.float32, scale: float = 1.0, *, unroll: int = 0):
    """Computes what `rotate` is given: cosines and sines of `angles` [...], times `scale`. `unroll`
    is that of the plan for the layers that read them."""

    def wave(function):
        values = function(angles)
        return (values if scale == 1 else values * scale).astype(dtype)

    if not unroll:
        return wave(jnp.cos), wave(jnp.sin)
    # Where layers are laid out one after another, XLA for CPU would compute the waves anew for
    # every layer, head and product that reads them. It keeps the results of a loop.
    ways = functools.partial(wave, jnp.cos), functools.partial(wave, jnp.sin)
    return tuple(jax.lax.map(lambda way: jax.lax.switch(way, ways), jnp.arange(2)))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding, halves convention: x [..., N, H], cos and sin [..., H / 2]."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, inner: int = 1) -> jax.Array:
    """Sums over the last `inner` dims of x and the first of w: x [..., I], w [I, O] -> [..., O].

    JAX would derive the gradient of w as a product followed by a transpose, and on a CPU the
    transposes take as long as the products. The backward pass here is a product in w's own order.
    """
    return _linear_forward(x, w, bias, inner)[0]


def _linear_forward(x, w, bias, inner):
    out = jnp.tensordot(x, w, inner)
    return out if bias is None else out + bias, (x, w, bias)


def _linear_backward(inner, saved, cotangent):
    x, w, bias = saved
    outer = w.ndim - inner
    last = tuple(range(cotangent.ndim - outer, cotangent.ndim)), tuple(range(inner, w.ndim))
    dx = jax.lax.dot_general(cotangent, w, (last, ((), ())))
    # All rows become one dim, because a CPU sums over several dims by way of a transposed copy,
    # which is slower than the product.
    flat = (
        x.reshape(-1, math.prod(w.shape[:inner])),
        cotangent.reshape(-1, math.prod(w.shape[inner:])),
    )
    dw = _sum_outer(*flat).reshape(w.shape)
    return dx, dw, None if bias is None else sum_rows(cotangent, outer)


linear.defvjp(_linear_forward, _linear_backward)


def _sum_outer(x, y):
    """The sum over rows of their outer products, x.T @ y: [N, I], [N, O] -> [I, O]."""

    def product(x, y):
        return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))

    def turned(x, y):
        # (y.T @ x).T equals x.T @ y. Without the barrier XLA rewrites it into `product(x, y)`, and
        # the order that is a fifth faster on a CPU is lost.
        return jax.lax.optimization_barrier(product(y, x)).T

    if x.shape[1] <= y.shape[1]:
        return product(x, y)
    # A CPU multiplies a fifth faster when the result is wide than when it is tall.
    return jax.lax.platform_dependent(x, y, cpu=turned, default=product)


def _apart(saved):
    """The same values behind a barrier. Without it XLA sees that the backward pass computes from
    them what the forward pass computed already, and stores that instead of computing it again."""
    return jax.lax.optimization_barrier(saved)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up; keeps only its arguments for the backward pass."""
    return jax.nn.silu(gate) * up


def _swiglu_backward(saved, cotangent):
    gate, up = _apart(saved)
    share = jax.nn.sigmoid(gate)
    gated = gate * share
    return cotangent * up * (share + gated * (1 - share)), cotangent * gated


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_backward)


class GeluMlp(nnx.Module):
    """down(gelu(up x)) of L layers with biases: up [L, D, M], down [L, M, D]. The GELU is the tanh
    approximation."""

    def __init__(self, layers: int, dim: int, mlp_dim: int, *, rngs: nnx.Rngs):
        self.up = weight(rngs, layers, dim, mlp_dim)
        self.up_bias = zeros(layers, mlp_dim)
        self.down = weight(rngs, layers, mlp_dim, dim)
        self.down_bias = zeros(layers, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer: x [..., D] -> [..., D], the weights already sliced."""
        x = jax.nn.gelu(linear(x, self.up[...], self.up_bias[...]), approximate=True)
        return linear(x, self.down[...], self.down_bias[...])


class SwigluMlp(nnx.Module):
    """down(silu(gate x) * up x) of L layers: gate and up [L, D, M], down [L, M, D]; `biased` gives
    all three a bias."""

    def __init__(self, layers: int, dim: int, mlp_dim: int, *, biased: bool, rngs: nnx.Rngs):
        self.gate = weight(rngs, layers, dim, mlp_dim)
        self.up = weight(rngs, layers, dim, mlp_dim)
        self.down = weight(rngs, layers, mlp_dim, dim)
        if biased:
            self.gate_bias = zeros(layers, mlp_dim)
            self.up_bias = zeros(layers, mlp_dim)
            self.down_bias = zeros(layers, dim)
        self.biased = biased

    def __call__(self, x: jax.Array, keep=lambda gate: gate) -> jax.Array:
        """One layer: x [..., D], the weights already sliced; `keep` may name the first product for
        the backward pass, see `scan_layers`."""

        def apply(x, name):
            bias = getattr(self, f"{name}_bias")[...] if self.biased else None
            return linear(x, getattr(self, name)[...], bias)

        return apply(swiglu(keep(apply(x, "gate")), apply(x, "up")), "down")


def scan_layers(
    step,
    stack: nnx.Module,
    carry,
    extras,
    remat: str = "none",
    *,
    unroll: int = 0,
    start: int = 0,
    stop: int | None = None,
):
    """Runs `step(block, carry, extra) -> (carry, out)` over the L layers of `stack`, or those from
    `start` to `stop`; returns the last carry and the outs with a leading L.

    `extras` is a tree of arrays with a leading L, of which each step is given its own slice.
    `remat` is one of REMAT_POLICIES and says what is kept for the backward pass: "none" keeps all,
    "full" only the carry, "save_attention" also what attention returned, "save_projections" the
    products with weights around it too, "save_gate" the MLP's first product besides, "save_dots"
    every matrix product with weights. At most `unroll` layers are laid out one after another, and
    more of them in a loop (`ComputePlan.unroll`).
    """
    graphdef, weights = nnx.split(stack)
    if start or stop is not None:
        weights, extras = jax.tree.map(lambda x: x[start:stop], (weights, extras))
    count = jax.tree.leaves(weights)[0].shape[0]
    laid_out = count <= unroll

    def body(carry, slices):
        layer, extra = slices
        return step(nnx.merge(graphdef, layer), carry, extra)

    # In a loop XLA cannot merge the two computations of a layer, which prevent_cse guards against.
    body = checkpointed(body, remat, prevent_cse=laid_out)
    return jax.lax.scan(body, carry, (weights, extras), unroll=max(count, 1) if laid_out else 1)


def take_layer(stack: nnx.Module, index: int):
    """The block number `index` of `stack`, with its own slice of the weights."""
    graphdef, weights = nnx.split(stack)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], weights))


def checkpointed(function, remat: str, *, prevent_cse: bool):
    """Wraps `function` in `jax.checkpoint` under a policy named in REMAT_POLICIES."""
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return function
        case "full":
            policy = policies.nothing_saveable
        case "save_attention":
            policy = policies.save_only_these_names("attention")
        case "save_projections":
            policy = policies.save_only_these_names("attention", "projection")
        case "save_gate":
            policy = policies.save_only_these_names("attention", "projection", "gate")
        case "save_dots":
            policy = policies.dots_with_no_batch_dims_saveable
        case _:
            raise ValueError(f"remat is {remat!r}; choose one of {REMAT_POLICIES}")
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=prevent_cse)(function)


def gathered(block: nnx.Module) -> nnx.Module:
    """Gives the block with every weight whole on every device of the mesh."""
    graphdef, weights = nnx.split(block)
    return nnx.merge(graphdef, jax.lax.with_sharding_constraint(weights, P()))


def shard_rows(x: jax.Array) -> jax.Array:
    """Keeps activations [B, ...] sharded by row over (data, fsdp) when a mesh is set, so that XLA
    gathers weights and not activations."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp")))
