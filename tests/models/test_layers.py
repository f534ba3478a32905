"""Layers laid out one after another against a loop, and the layers' own backward passes against
those that JAX derives from the plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videorft_jax.models import layers
from videorft_jax.models.compute_plan import MAX_UNROLLED, choose_plan

DIM = 5


class Stack(nnx.Module):
    def __init__(self, count):
        self.w = layers.weight(nnx.Rngs(params=0), count, DIM, DIM)


@pytest.mark.parametrize("path", ["chunked", "reference"])  # laid out, in a loop
@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
@pytest.mark.parametrize("count", [2, 3, MAX_UNROLLED + 1])
def test_scanned_layers_equal_a_python_loop(count, remat, path):
    stack, x = Stack(count), jnp.linspace(-1.0, 1.0, DIM)
    graphdef, weights = nnx.split(stack)
    scales = jnp.arange(1.0, count + 1)

    def step(block, x, scale):
        return jnp.sin(x + scale * x @ block.w[...]), scale

    def scanned(weights):
        stack = nnx.merge(graphdef, weights)
        return layers.scan_layers(step, stack, x, scales, remat, unroll=choose_plan(path).unroll)[0]

    def looped(weights):
        y = x
        for w, scale in zip(nnx.to_pure_dict(weights)["w"], scales, strict=True):
            y = jnp.sin(y + scale * y @ w)
        return y

    for run in (lambda f: f(weights), lambda f: jax.grad(lambda w: f(w).sum())(weights)):
        got, wanted = (jax.tree.leaves(run(f))[0] for f in (scanned, looped))
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    hlo = jax.jit(scanned).lower(weights).as_text()
    assert ("stablehlo.while" in hlo) == (path == "reference" or count > MAX_UNROLLED)


def test_remat_of_layers_laid_out_still_computes_them_twice():
    weights = nnx.split(Stack(2))[1]
    graphdef = nnx.split(Stack(2))[0]

    def loss(weights, remat):
        def step(block, x, _):
            return jnp.sin(x @ block.w[...]), None

        stack = nnx.merge(graphdef, weights)
        return layers.scan_layers(step, stack, jnp.ones(DIM), None, remat, unroll=MAX_UNROLLED)[
            0
        ].sum()

    def cosines(remat):  # sin is made again where it is not kept
        hlo = jax.jit(jax.grad(loss), static_argnums=1).lower(weights, remat).compile().as_text()
        return hlo.count("dot(") + hlo.count("dot_general")

    assert cosines("full") > cosines("none")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("left", "right", "inner", "spec"),
    [
        ((2, 3, 5), (5, 7), 1, "btd,df->btf"),
        ((2, 3, 5), (5, 4, 6), 1, "btd,dnh->btnh"),
        ((2, 3, 4, 6), (4, 6, 5), 2, "btnh,nhd->btd"),
        ((5,), (5, 7), 1, "d,df->f"),
    ],
)
def test_linear_equals_einsum(left, right, inner, spec, biased):
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=shape) for shape in (left, right, right[inner:]))
    out = np.einsum(spec, x, w) + (b if biased else 0)
    cotangent = rng.normal(size=out.shape)
    (first, second), result = spec.split("->")[0].split(","), spec.split("->")[1]
    wanted = [
        out,
        np.einsum(f"{result},{second}->{first}", cotangent, w),
        np.einsum(f"{first},{result}->{second}", x, cotangent),
        cotangent.reshape(-1, *b.shape).sum(0),
    ]
    x, w, b, cotangent = (jnp.asarray(value, jnp.float32) for value in (x, w, b, cotangent))
    if biased:
        got, backward = jax.vjp(lambda x, w, b: layers.linear(x, w, b, inner), x, w, b)
    else:
        got, backward = jax.vjp(lambda x, w: layers.linear(x, w, inner=inner), x, w)
        wanted.pop()
    for ours, theirs in zip((got, *backward(cotangent)), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_has_the_gradients_of_its_arithmetic(dtype):
    rng = np.random.default_rng(0)
    x, scale, cotangent = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((3, 4, DIM), (DIM,), (3, 4, DIM))
    )

    def plain(x, scale):
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
        return wide.astype(x.dtype) * scale

    results = []
    for function in (lambda x, scale: layers.rms_norm(x, scale, 1e-6), plain):
        out, backward = jax.vjp(function, x, scale)
        results.append((out, *backward(cotangent)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        atol = 1e-6 if dtype == "float32" else 4e-2
        np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (ours, theirs)), atol=atol)


def test_swiglu_has_the_gradients_of_its_arithmetic():
    rng = np.random.default_rng(0)
    gate, up, cotangent = (jnp.asarray(rng.normal(size=(3, DIM)), jnp.float32) for _ in range(3))
    results = []
    for function in (layers.swiglu, lambda gate, up: gate / (1 + jnp.exp(-gate)) * up):
        out, backward = jax.vjp(function, gate, up)
        results.append((out, *backward(cotangent)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
