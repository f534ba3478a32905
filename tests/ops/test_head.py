"""The chunked head against every logit at once, on one device and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import collectives
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from random_head import B, D, T, draw

from videorft_jax.ops.head import token_logprobs
from videorft_jax.parallel import sharding


def dense(hidden, head, targets, mask, temperature):
    """The naive way: every logit at once."""
    logprobs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head) / temperature)
    picked = jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]
    entropy = -(jnp.exp(logprobs) * logprobs).sum(-1)
    return picked * mask, entropy * mask


@pytest.mark.parametrize(("chunk", "temperature"), [(4, 1.0), (23, 0.7), (512, 1.0), (7, 1.3)])
def test_chunked_head_equals_full_head(chunk, temperature):
    hidden, head, targets, mask = draw()
    weights = jax.random.normal(jax.random.key(9), (2, B, T))

    def total(function, hidden, head):
        return sum(
            (w * part).sum() for w, part in zip(weights, function(hidden, head), strict=True)
        )

    ours = functools.partial(
        token_logprobs, targets=targets, mask=mask, chunk=chunk, temperature=temperature
    )
    naive = functools.partial(dense, targets=targets, mask=mask, temperature=temperature)
    for got, wanted in zip(jax.jit(ours)(hidden, head), naive(hidden, head), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    got = jax.jit(jax.grad(functools.partial(total, ours), (0, 1)))(hidden, head)
    wanted = jax.grad(functools.partial(total, naive), (0, 1))(hidden, head)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_head_crosses_devices_once_whatever_the_number_of_chunks(shape):
    """Row 1 has no target: a device that holds it alone takes as many turns as the others."""
    problem = draw(3, rows=8, words=48)
    weights = jax.random.normal(jax.random.key(9), (2, 8, T))

    def total(hidden, head, targets, mask):
        scores = token_logprobs(hidden, head, targets, mask, chunk=4)
        return sum((w * part).sum() for w, part in zip(weights, scores, strict=True)), scores

    step = jax.grad(total, (0, 1), has_aux=True)
    wanted = jax.jit(step)(*problem)
    mesh = sharding.make_mesh(*shape)
    rows, split = sharding.batch_sharding(mesh), NamedSharding(mesh, P("tensor", "fsdp"))
    placed = jax.device_put(problem, (rows, split, rows, rows))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=((rows, split), None)).lower(*placed).compile()
    for ours, theirs in zip(*map(jax.tree.leaves, (compiled(*placed), wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    size = 48 // shape[2] * D
    head = [key for key in collectives(compiled.as_text()).elements() if np.prod(key[1]) == size]
    once = [("all-gather", 0)] * (shape[1] > 1) + [("all-reduce", 0)] * (shape[2] < 8)
    assert sorted((kind, loops) for kind, _, loops in head) == once
