"""Attention of a decoding step whose sequence lies in pieces on devices that share a head, against
the same attention where it lies whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax.models.attention.decode import decode_attention
from videorft_jax.models.attention.pieces import attend_in_pieces, keep_own_places
from videorft_jax.models.int8 import quantise
from videorft_jax.models.kv_cache import write
from videorft_jax.parallel import sharding

ROWS, ROLLOUTS, PROMPT, SUFFIX, DIM = 2, 3, 7, 6, 4  # No number of copies divides 7 or 6.
HEADS = {2: 4, 4: 2, 8: 1}  # heads of keys, by how many of eight devices share each


def test_places_are_dealt_out_one_by_one():
    """By hand: of five places the first of two neighbours keeps 0, 2 and 4, the second 1 and 3."""
    keys = jnp.arange(1.0, 6).reshape(1, 1, 5, 1)
    found = keep_own_places(jnp.repeat(keys, 2, axis=1), 2)
    np.testing.assert_array_equal(found[0, :, :, 0], [[1, 3, 5], [2, 4, 0]])
    assert keep_own_places(keys, 1) is keys


def in_pieces(whole, copies):
    """Keys or values [..., K, T, H] as devices keep them, by indexing: [..., K copies, t, H]."""
    length = -(-whole.shape[-2] // copies)
    filled = np.zeros((*whole.shape[:-2], length * copies, whole.shape[-1]), whole.dtype)
    filled[..., : whole.shape[-2], :] = whole
    heads = [filled[..., k, c::copies, :] for k in range(whole.shape[-3]) for c in range(copies)]
    return np.stack(heads, axis=-3)


def make(copies):
    rng = np.random.default_rng(copies)
    heads = HEADS[copies]

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q = draw(ROWS, ROLLOUTS, heads * copies * 2, DIM)
    prefix = draw(2, ROWS, heads, PROMPT, DIM)
    suffix = draw(2, ROWS, ROLLOUTS, heads, SUFFIX, DIM)
    valid = np.array([[True] * PROMPT, [True] * 3 + [False] * (PROMPT - 3)])
    return q, prefix, valid, suffix, np.arange(SUFFIX) <= 3


@pytest.mark.parametrize("copies", HEADS)
def test_pieces_give_what_the_whole_gives(copies):
    q, prefix, valid, suffix, seen = make(copies)
    wanted = decode_attention(*map(jnp.asarray, (q, prefix, valid, suffix, seen[None, None])))
    shared = [in_pieces(part, copies) for part in (prefix, suffix)]
    with jax.set_mesh(sharding.make_mesh(tensor=8)):
        found = jax.jit(attend_in_pieces, static_argnums=5)(
            q, tuple(shared[0]), valid, tuple(shared[1]), seen, copies
        )
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


def test_keys_of_eight_bits():
    q, prefix, valid, suffix, seen = make(4)

    def halve(parts):
        return tuple(quantise(jnp.asarray(part), -1, keep=False) for part in parts)

    wanted = decode_attention(q, halve(prefix), valid, halve(suffix), seen[None, None])
    shared = [halve([in_pieces(part, 4) for part in pair]) for pair in (prefix, suffix)]
    with jax.set_mesh(sharding.make_mesh(tensor=8)):
        found = jax.jit(attend_in_pieces, static_argnums=5)(q, shared[0], valid, shared[1], seen, 4)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("eight_bits", [False, True])
def test_a_token_is_written_where_its_place_lies(eight_bits):
    """Every place of the suffix, one after another, gives the pieces of what was written."""
    copies, layers = 4, 2
    new = np.random.default_rng(0).normal(size=(SUFFIX, ROWS, ROLLOUTS, 2, DIM))
    new = np.repeat(new.astype(np.float32), copies, axis=3)
    whole = jnp.asarray(np.moveaxis(new[:, :, :, ::copies], 0, 3))
    wanted = jnp.asarray(in_pieces(np.asarray(whole), copies))
    held = jnp.zeros((layers, *wanted.shape))
    if eight_bits:
        held, wanted = (quantise(x, -1, keep=False) for x in (held, wanted))
    put, given = jax.jit(write, static_argnums=4), held
    for place in range(SUFFIX):
        held = put(held, jnp.asarray(new[place]), 1, place, copies)
    for found, before, expected in zip(*map(jax.tree.leaves, (held, given, wanted)), strict=True):
        np.testing.assert_allclose(found[1], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[0], before[0])  # the other layer
