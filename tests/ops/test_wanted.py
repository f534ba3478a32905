"""What is computed at wanted positions alone equals what is computed everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax.data.batch import layout
from videorft_jax.grpo.logprobs import Groups, score_completions
from videorft_jax.models import family
from videorft_jax.models.attention.masks import Causal, SharedPrefix
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.ops.masked import CPU_CHUNK, at_masked
from videorft_jax.parallel import sharding

B, T, PROMPT, ROLLOUTS = 8, 620, 20, 3  # more than two chunks, and not a whole number of them


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_a_function_of_positions(count):
    """Eleven positions in chunks of four; the second row wants one less."""
    rng = np.random.default_rng(count)
    x, y, w = (rng.standard_normal(shape, np.float32) for shape in [(2, 11, 3), (2, 11), (3, 5)])
    mask = np.zeros((2, 11), bool)
    for row in range(2):
        mask[row, rng.permutation(11)[: max(count - row, 0)]] = True

    def function(w, x, y):
        return jnp.sin(x @ w) * y[..., None], y**2

    def everywhere(w, x, y):
        out, square = function(w, x, y)
        return jnp.where(mask[..., None], out, 0), jnp.where(mask, square, 0)

    def partly(w, x, y):
        return at_masked(functools.partial(function, w), mask, mask.sum(1).max(), 4, x, y)

    def run(compute):
        results, backward = jax.vjp(compute, w, x, y)
        return results, backward(jax.tree.map(jnp.cos, results))

    for ours, theirs in zip(*map(jax.tree.leaves, (run(partly), run(everywhere))), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def text_problem(kind, layers=2):
    """Makes what a decoder reads: config, weights, embeddings, positions, mask, wanted."""
    config = parse_config(tiny_values(num_hidden_layers=layers))
    params = family.init_params(config, jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf * 3, params)  # attention that is not even
    rng = np.random.default_rng(2)
    x = rng.standard_normal((B, T, config.text.dim), np.float32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32) % 97, (B, 3, T))
    segments = np.ones((B, T), np.int32)
    wanted = rng.random((B, T)) < np.linspace(0.1, 0.55, B)[:, None]  # one chunk, and two of them
    if kind == "causal":
        segments[0, 200:] = 2
        segments[1, 590:] = 0
        mask = Causal(jnp.asarray(segments))
    else:
        segments[0, 15:PROMPT] = 0
        segments[1, -30:] = 0
        mask = SharedPrefix(jnp.asarray(segments), PROMPT, ROLLOUTS)
    return config, params, x, positions, mask, wanted & (segments > 0)


def hidden_and_gradients(problem, attention, *, partly, remat="none"):
    config, params, x, positions, mask, wanted = problem
    weight = np.cos(np.arange(B * T * config.text.dim, dtype=np.float32)).reshape(x.shape)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            settings = {"plan": choose_plan(attention), "remat": remat}
            settings["needed"] = wanted if partly else None
            hidden = family.bind(config, params).text(x, positions, mask, **settings)
            return (hidden * weight * wanted[..., None]).sum(), hidden

        (_, hidden), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return hidden, grads

    return run(params, x)


def assert_same(got, expected, wanted):
    hidden, theirs = np.asarray(got[0])[wanted], np.asarray(expected[0])[wanted]
    np.testing.assert_allclose(hidden, theirs, atol=1e-5 * np.abs(theirs).max())
    for ours, other in zip(*map(jax.tree.leaves, (got[1], expected[1])), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5 * np.abs(other).max() + 1e-7)


@pytest.mark.parametrize(
    ("kind", "layers", "remat"),
    [("causal", 2, "save_dots"), ("shared", 2, "full"), ("causal", 1, "none")],
)
def test_the_last_layer_where_it_is_wanted(kind, layers, remat):
    """Against dense attention and every position of every layer."""
    problem = text_problem(kind, layers)
    wanted = problem[-1]
    assert wanted.sum(1).max() > CPU_CHUNK > wanted.sum(1).min()
    expected = hidden_and_gradients(problem, "reference", partly=False)
    got = hidden_and_gradients(problem, "chunked", partly=True, remat=remat)
    assert_same(got, expected, wanted)
    assert not np.asarray(got[0])[~wanted].any()


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_mesh_equals_one_device(shape):
    config, params, *rest = problem = text_problem("causal")
    expected = hidden_and_gradients(problem, "chunked", partly=True)
    mesh = sharding.make_mesh(*shape)
    params = jax.device_put(params, sharding.state_shardings(params, mesh))
    with jax.set_mesh(mesh):
        got = hidden_and_gradients((config, params, *rest), "chunked", partly=True)
    assert_same(got, expected, problem[-1])


def test_scores_of_a_group():
    """The first token of a completion is predicted by the prompt's last, padded or not."""
    config = parse_config(tiny_values())
    params = jax.tree.map(lambda leaf: leaf * 3, family.init_params(config, jax.random.key(3)))
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 300, length) for length in (PROMPT, PROMPT - 6)]
    samples = [layout.make_sample(x, np.zeros(len(x), bool), [], [], "hf5") for x in rows]
    batch = layout.pack([[sample] for sample in samples], PROMPT, 0, 0)
    completions = rng.integers(0, 300, (2, ROLLOUTS, 200)).astype(np.int32)
    groups = Groups(batch, completions, np.int32([[200, 3, 90], [0, 150, 1]]))
    assert PROMPT + ROLLOUTS * 200 > 2 * CPU_CHUNK

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, attention):
        def loss(params):
            logprobs, entropy = score_completions(
                family.bind(config, params), groups, plan=choose_plan(attention)
            )
            return (logprobs * jnp.cos(jnp.arange(200.0))).sum(), (logprobs, entropy)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, expected), wanted = run(params, "reference")
    (_, scores), grads = run(params, "chunked")
    for ours, theirs in zip(scores, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert (np.asarray(scores[0])[np.asarray(groups.mask)] < 0).all()
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max() + 1e-7)
