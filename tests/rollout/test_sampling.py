"""Drawn tokens against exact probabilities, and the thresholds against a sort."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.stats import chisquare, kstest

from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.parallel.sharding import make_mesh
from videorft_jax.rollout import sampling
from videorft_jax.rollout.sampling import SamplingConfig, completion_key, media_ids

SIZE, DRAWS = 24, 20000
RNG = np.random.default_rng(5)
draw = jax.jit(sampling.draw, static_argnums=3)
noise_of = jax.jit(
    lambda keys, place, size: sampling.exponential(keys, place, jnp.arange(size, dtype=jnp.uint32)),
    static_argnums=2,
)
LOGITS = np.sort(RNG.normal(0, 2, SIZE)).astype(np.float32)[RNG.permutation(SIZE)]


def exact(logits, config):
    """float64 probabilities drawn from, and the mass they had before truncation; by sorting."""
    scaled = logits.astype(np.float64) / (config.temperature or 1.0)
    full = np.exp(scaled - scaled.max())
    full /= full.sum()
    left = full.copy()
    left[list(config.forbidden_ids)] = 0
    left[config.num_real_tokens or len(logits) :] = 0
    if config.temperature == 0:
        left = np.where(np.arange(len(left)) == left.argmax(), left, 0)
    if config.top_k:
        left[left < np.sort(left)[-min(config.top_k, SIZE)]] = 0
    if config.top_p < 1:
        values = np.sort(left / left.sum())[::-1]
        bound = values[np.searchsorted(np.cumsum(values), config.top_p)]
        left[left / left.sum() < bound * (1 - 1e-9)] = 0
    left[left < config.min_p * left.max()] = 0
    return left / left.sum(), left.sum(), full


CASES = {
    "plain": SamplingConfig(),
    "cold": SamplingConfig(temperature=0.6),
    "hot": SamplingConfig(temperature=1.7),
    "top_k": SamplingConfig(top_k=5),
    "top_k_beyond": SamplingConfig(top_k=1000),
    "top_p": SamplingConfig(top_p=0.8),
    "top_p_small": SamplingConfig(top_p=0.01),
    "min_p": SamplingConfig(min_p=0.1, temperature=1.3),
    "forbidden": SamplingConfig(forbidden_ids=(0, 3, int(LOGITS.argmax())), num_real_tokens=20),
    "all": SamplingConfig(
        temperature=1.5, top_k=12, top_p=0.9, min_p=0.05, forbidden_ids=(1, 2), num_real_tokens=22
    ),
    "greedy": SamplingConfig(temperature=0, forbidden_ids=(int(LOGITS.argmax()),)),
}


@functools.cache
def keys_of(count):
    keys = jax.jit(jax.vmap(completion_key, (None, None, 0, None)))
    return keys(0, 0, jnp.arange(count), 0)


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_the_exact_probabilities(name):
    config = CASES[name]
    wanted, mass, full = exact(LOGITS, config)
    logits = jnp.broadcast_to(LOGITS, (DRAWS, SIZE))
    got = draw(logits, keys_of(DRAWS), 3, config)
    counts = np.bincount(got.token, minlength=SIZE)
    assert not counts[wanted == 0].any()
    assert not got.failed.any()
    kept = wanted > 0
    if kept.sum() > 1:
        likely = kept & (wanted * DRAWS >= 5)
        pooled = [counts[kept & ~likely].sum()], [wanted[kept & ~likely].sum() * DRAWS]
        use = pooled[1][0] > 1
        observed = np.concatenate([counts[likely], pooled[0] if use else []])
        expected = np.concatenate([wanted[likely] * DRAWS, pooled[1] if use else []])
        expected *= observed.sum() / expected.sum()
        assert chisquare(observed, expected).pvalue > 1e-3
    np.testing.assert_allclose(got.logprob, np.log(full)[got.token], atol=2e-6)
    np.testing.assert_allclose(got.truncation, np.log(mass), atol=2e-6)
    drawn_with = np.asarray(got.logprob - got.truncation)
    np.testing.assert_allclose(drawn_with, np.log(wanted[got.token]), atol=4e-6)


def test_a_wrong_temperature_fails_the_chi_square():
    """The test above can tell 1.0 from 1.1."""
    wanted = exact(LOGITS, SamplingConfig(temperature=1.1))[0]
    logits = jnp.broadcast_to(LOGITS, (DRAWS, SIZE))
    counts = np.bincount(draw(logits, keys_of(DRAWS), 3, SamplingConfig()).token, minlength=SIZE)
    likely = wanted * DRAWS >= 5
    expected = wanted[likely] * counts[likely].sum() / wanted[likely].sum()
    assert chisquare(counts[likely], expected).pvalue < 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e30])
def test_thresholds_equal_a_sort(scale):
    """A vocabulary of 4096 at any magnitude, negative numbers and zeros among the logits."""
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(0, 1, (6, 4096))).astype(np.float32)
    logits[0, ::3] = 0.0
    for top_k in (1, 7, 4095):
        config = SamplingConfig(top_k=top_k)
        got = draw(jnp.asarray(logits), keys_of(6), 0, config)
        bound = np.sort(logits, axis=-1)[:, -top_k]
        wide = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        left = np.where(logits >= bound[:, None], np.exp(wide), 0).sum(-1)
        wanted = np.log(left) - np.log(np.exp(wide).sum(-1))
        np.testing.assert_allclose(got.truncation, wanted, atol=1e-5)
        assert (logits[np.arange(6), got.token] >= bound).all()


def test_ties_stay_together():
    logits = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 0.0]])
    for config in (SamplingConfig(top_k=2), SamplingConfig(top_p=0.3)):
        got = draw(jnp.repeat(logits, 500, 0), keys_of(500), 0, config)
        assert set(np.asarray(got.token)) == {1, 2, 3}
    greedy = draw(logits, keys_of(1), 0, SamplingConfig(temperature=0))
    assert greedy.token[0] == 1  # the lowest id


def test_the_same_sequence_draws_the_same_token_in_any_company():
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 1, (32, 512)), jnp.float32)
    keys, config = keys_of(32), SamplingConfig(top_p=0.95)
    together = draw(logits, keys, 7, config)
    alone = [draw(logits[i : i + 1], keys[i : i + 1], 7, config).token for i in range(32)]
    np.testing.assert_array_equal(together.token, np.concatenate(alone))
    grid = draw(logits.reshape(8, 4, -1), keys.reshape(8, 4, 2), 7, config)
    np.testing.assert_array_equal(grid.token.reshape(-1), together.token)


def test_keys_depend_on_every_part():
    parts = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    keys = {tuple(np.asarray(completion_key(*part))) for part in parts}
    assert len(keys) == len(parts)
    key = completion_key(0, 0, 0, 0)
    first, second = (np.asarray(noise_of(key, place, 64)) for place in (0, 1))
    assert (first != second).all()


def test_noise_is_exponential_and_does_not_tie():
    noise = np.asarray(noise_of(completion_key(0, 0, 0, 0), 0, 200000), np.float64)
    assert (noise > 0).all()
    assert kstest(noise, "expon").pvalue > 1e-3
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.01
    assert len(np.unique(np.sort(noise)[:2000])) > 1990


def test_threefry_gives_the_published_words():
    """Known answers of Random123 for Threefry-2x32-20, and JAX's own."""
    cases = [
        ((0, 0), (0, 0), 0x6B200159),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, 0x1CB996FC),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), 0xC4923A9C),
    ]
    for key, counter, wanted in cases:
        words = [jnp.uint32(word) for word in (*key, *counter)]
        assert int(sampling.threefry(*words)) == wanted
        theirs = threefry_2x32(jnp.stack(words[:2]), jnp.stack(words[2:]))
        assert int(theirs[0]) == wanted


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_the_search_finds_every_kind_of_number(bits):
    edges = [-(2**31), -(2**31) + 1, -1, 0, 1, 2**30 - 1, 2**30, 2**31 - 1]
    wanted = np.concatenate([edges, np.random.default_rng(2).integers(-(2**31), 2**31, 500)])
    wanted = jnp.asarray(wanted, jnp.int32)
    found = jax.jit(
        lambda: sampling.find_largest(lambda tried: [x <= wanted for x in tried], wanted, bits)
    )()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.9}, {"top_k": 40, "top_p": 0.8, "min_p": 0.01}, {"temperature": 0}, {}],
    ids=str,
)
def test_a_vocabulary_that_is_split_draws_the_same(settings):
    """Over two rows of four devices; two parts hold ids that tie for the largest logit."""
    config = SamplingConfig(forbidden_ids=(5, 3000), num_real_tokens=4090, **settings)
    logits = np.random.default_rng(3).normal(0, 2, (32, 4096)).astype(np.float32)
    logits[0, [1500, 1501, 3500]] = logits.max() + 1
    logits[1, 7] = np.nan
    alone = draw(jnp.asarray(logits), keys_of(32), 3, config)
    mesh = make_mesh(fsdp=2, tensor=4)
    rows = NamedSharding(mesh, P("fsdp"))
    split = functools.partial(
        sampling.draw, position=3, config=config, parts=4,
        share=lambda x: jax.lax.with_sharding_constraint(x, rows),
    )  # fmt: skip
    places = NamedSharding(mesh, P("fsdp", "tensor")), rows
    found = jax.jit(split, in_shardings=places)(logits, keys_of(32))
    np.testing.assert_array_equal(found.failed, np.arange(32) == 1)
    good = ~np.asarray(found.failed)
    np.testing.assert_array_equal(found.token[good], alone.token[good])
    np.testing.assert_allclose(found.logprob[good], alone.logprob[good], atol=2e-6)
    np.testing.assert_allclose(found.truncation[good], alone.truncation[good], atol=2e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_fail_their_row_alone(value):
    logits = np.tile(LOGITS, (3, 1))
    logits[1, 4] = value
    got = draw(jnp.asarray(logits), keys_of(3), 0, SamplingConfig(top_p=0.9))
    np.testing.assert_array_equal(got.failed, [False, True, False])
    assert np.isfinite(np.asarray(got.logprob)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"num_rollouts": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": -1},
     {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 1.0}, {"temperature": float("nan")}],
    ids=str,
)  # fmt: skip
def test_bad_values_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"sampling: {next(iter(wrong))} is"):
        SamplingConfig(**wrong)


def test_media_ids():
    config = parse_config(tiny_values())
    assert sorted(media_ids(config)) == [302, 303, 304, 305, 306]
    bare = dataclasses.replace(config, source="{}")
    assert sorted(media_ids(bare)) == [302, 303, 305, 306]
