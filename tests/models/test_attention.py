"""Every attention path against the dense reference, and the shared prefix against repeated rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax.models.attention import chunked, decode, dispatch, flash, splash
from videorft_jax.models.attention.masks import Causal, Full, SharedPrefix
from videorft_jax.models.qwen2_5_vl.vision import attend_windows

PROMPT, ROLLOUTS, LENGTH = 7, 3, 5
HEADS, KV_HEADS, DIM = 4, 2, 16

PATHS = {
    "chunked": functools.partial(dispatch.attention, implementation="chunked"),
    "splash": functools.partial(splash.attention, interpret=True),
    "flash": functools.partial(flash.attention, backend="xla"),
}


def draw(length, seed=0, batch=2):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(batch, length, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_grads(function, q, k, v, cotangent):
    @jax.jit
    def run(q, k, v, cotangent):
        out, backward = jax.vjp(function, q, k, v)
        return out, *backward(cotangent)

    return run(q, k, v, cotangent)


def masks():
    segments = np.ones((2, 22), np.int32)
    segments[0, 9:] = 2
    segments[0, 19:] = 0
    segments[1, 15:] = 0
    group = np.ones((2, PROMPT + ROLLOUTS * LENGTH), np.int32)
    group[0, 5:PROMPT] = 0  # a shorter prompt
    group[1, PROMPT + LENGTH + 2 : PROMPT + 2 * LENGTH] = 0  # a shorter second completion
    valid = np.ones((2, 22), bool)
    valid[1, 4:9] = False
    return {
        "causal": (Causal(jnp.asarray(segments)), segments > 0),
        "shared": (SharedPrefix(jnp.asarray(group), PROMPT, ROLLOUTS), group > 0),
        "full": (Full(jnp.asarray(valid)), valid),
    }


@pytest.mark.parametrize("kind", ["causal", "shared", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_path_equals_reference(path, kind, monkeypatch):
    monkeypatch.setattr(chunked, "_BLOCK", 4)  # several chunks even at this length
    mask, real = masks()[kind]
    q, k, v, cotangent = draw(22)
    cotangent *= real[:, :, None, None]  # what padding returns is nobody's business
    expected = value_and_grads(
        lambda q, k, v: dispatch.reference(q, k, v, mask.allowed()), q, k, v, cotangent
    )
    got = value_and_grads(lambda q, k, v: PATHS[path](q, k, v, mask), q, k, v, cotangent)
    np.testing.assert_allclose(
        np.asarray(got[0])[real], np.asarray(expected[0])[real], atol=2e-6, rtol=1e-5
    )
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "shared", "full"])
def test_rows_of_padding_give_finite_numbers(kind, monkeypatch):
    """No block of such a row holds a key that a query sees; every number must be finite all the
    same, or the gradients of weights that all rows share would not be."""
    monkeypatch.setattr(chunked, "_BLOCK", 4)
    mask = {
        "causal": Causal(jnp.zeros((2, 22), jnp.int32)),
        "shared": SharedPrefix(jnp.zeros((2, 22), jnp.int32), PROMPT, ROLLOUTS),
        "full": Full(jnp.zeros((2, 22), bool)),
    }[kind]
    q, k, v, cotangent = draw(22)
    out, *grads = value_and_grads(lambda *x: chunked.attention(*x, mask), q, k, v, cotangent)
    assert all(np.isfinite(values).all() for values in grads)
    if kind == "full":  # The masks of rows let padding see padding, this one does not.
        assert not np.asarray(out).any()
    assert np.isfinite(out).all()
    if kind == "shared":
        behind, weight = q[:, PROMPT:], cotangent[:, PROMPT:]
        for values in value_and_grads(
            lambda *x: chunked.attend_before(*x, mask), behind, k, v, weight
        ):
            assert np.isfinite(values).all()


@pytest.mark.parametrize("kind", ["causal", "shared", "full"])
def test_queries_in_any_places(kind, monkeypatch):
    """Some of a row's queries, in no order, on the CPU's path."""
    monkeypatch.setattr(chunked, "_BLOCK", 4)
    mask, real = masks()[kind]
    q, k, v, cotangent = draw(22)
    rng = np.random.default_rng(4)
    places = np.stack([rng.permutation(22)[:9] for _ in range(2)]).astype(np.int32)
    real = np.take_along_axis(real, places, axis=1)
    q, cotangent = (jnp.take_along_axis(x, places[..., None, None], axis=1) for x in (q, cotangent))
    cotangent *= real[:, :, None, None]
    allowed = jnp.broadcast_to(mask.allowed(), (2, 22, 22))
    allowed = jnp.take_along_axis(allowed, places[..., None], axis=1)
    expected = value_and_grads(lambda *x: dispatch.reference(*x, allowed), q, k, v, cotangent)
    got = value_and_grads(lambda *x: chunked.attention(*x, mask, places), q, k, v, cotangent)
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(got[0])[real], np.asarray(expected[0])[real], atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_shared_prefix_equals_repeated_rows(path):
    """The oracle knows nothing of shared prefixes: R separate causal rows per prompt."""
    q, k, v, cotangent = draw(PROMPT + ROLLOUTS * LENGTH, seed=1)
    mask, real = masks()["shared"]
    cotangent *= real[:, :, None, None]
    run = PATHS.get(path) or functools.partial(dispatch.attention, implementation="reference")

    def rows(x):  # [B, T, ...] -> [B * R, prompt + C, ...]
        prompt, rest = x[:, :PROMPT], x[:, PROMPT:]
        rest = rest.reshape(x.shape[0], ROLLOUTS, LENGTH, *x.shape[2:])
        prompt = jnp.broadcast_to(prompt[:, None], (x.shape[0], ROLLOUTS, *prompt.shape[1:]))
        joined = jnp.concatenate([prompt, rest], axis=2)
        return joined.reshape(-1, PROMPT + LENGTH, *x.shape[2:])

    def repeated(q, k, v):
        segments = rows(mask.segment_ids)
        index = jnp.arange(PROMPT + LENGTH)
        allowed = (index[:, None] >= index) & (segments[:, :, None] == segments[:, None, :])
        out = dispatch.reference(rows(q), rows(k), rows(v), allowed)
        out = out.reshape(2, ROLLOUTS, PROMPT + LENGTH, HEADS, DIM)
        rest = out[:, :, PROMPT:].reshape(2, -1, HEADS, DIM)
        return jnp.concatenate([out[:, 0, :PROMPT], rest], axis=1)

    expected = value_and_grads(repeated, q, k, v, cotangent)
    got = value_and_grads(lambda q, k, v: run(q, k, v, mask), q, k, v, cotangent)
    np.testing.assert_allclose(
        np.asarray(got[0])[real], np.asarray(expected[0])[real], atol=2e-6, rtol=1e-5
    )
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "shared", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_costs_no_more_than_it_costs_the_reference(path, kind):
    """Nothing but inputs and results is rounded to it; a log-sum-exp would double the error."""
    mask, real = masks()[kind]
    rounded = [x.astype(jnp.bfloat16) for x in draw(22, seed=5)[:3]]
    exact = dispatch.reference(*(x.astype(jnp.float32) for x in rounded), mask.allowed())

    def error(out):
        return np.linalg.norm((np.asarray(out, np.float32) - exact)[real])

    dense = error(dispatch.reference(*rounded, mask.allowed()))
    assert error(PATHS[path](*rounded, mask)) < 1.3 * dense


def test_splash_under_a_mesh():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
    q, k, v, _ = draw(22, seed=3, batch=4)
    mask = Causal(jnp.ones((4, 22), jnp.int32))
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *args: PATHS["splash"](*args, mask))(q, k, v)
    np.testing.assert_allclose(
        got, dispatch.reference(q, k, v, mask.allowed()), atol=2e-6, rtol=1e-5
    )


def test_decode_attention_equals_one_dense_row():
    """R completions with suffixes against a padded prompt, one completion at a time."""
    batch, rollouts, prompt, suffix = 2, 3, 6, 4
    keys = iter(jax.random.split(jax.random.key(4), 5))
    q = jax.random.normal(next(keys), (batch, rollouts, HEADS, DIM))
    prefix = [jax.random.normal(next(keys), (batch, KV_HEADS, prompt, DIM)) for _ in range(2)]
    own = [
        jax.random.normal(next(keys), (batch, rollouts, KV_HEADS, suffix, DIM)) for _ in range(2)
    ]
    prompt_valid = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    suffix_valid = np.arange(suffix) <= 2
    got = decode.decode_attention(
        q, prefix, jnp.asarray(prompt_valid), own, suffix_valid[None, None]
    )
    for b in range(batch):
        for r in range(rollouts):
            k, v = (
                jnp.concatenate([p[b][:, prompt_valid[b]], o[b, r][:, suffix_valid]], 1)
                for p, o in zip(prefix, own, strict=True)
            )
            k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=0) for x in (k, v))
            weights = jax.nn.softmax(jnp.einsum("nh,nsh->ns", q[b, r], k) * DIM**-0.5)
            np.testing.assert_allclose(
                got[b, r], jnp.einsum("ns,nsh->nh", weights, v), atol=2e-6, rtol=1e-5
            )


@pytest.mark.parametrize(("path", "loops"), [("chunked", True), ("splash", False)])
def test_windows_are_taken_in_a_loop_on_a_cpu_alone(path, loops):
    q = jnp.ones((3, 5, 64, HEADS, DIM))
    valid = jnp.ones((3, 5, 64), bool)
    traced = jax.make_jaxpr(functools.partial(attend_windows, path=path))
    found = {equation.primitive.name for equation in traced(q, q, q, valid).jaxpr.eqns}
    assert any("custom_vjp" in name for name in found) == loops  # the chunks' own backward pass


def test_unknown_path_is_refused():
    q, k, v, _ = draw(4)
    with pytest.raises(ValueError, match="attention is 'fast'; choose one of"):
        dispatch.attention(q, k, v, Causal(jnp.ones((2, 4), jnp.int32)), "fast")
