"""Eight-bit values against what they stand for."""

import jax
import jax.numpy as jnp

from videorft_jax.models import int8 as quantise


def test_quantised_values_are_within_half_a_step():
    x = jax.random.normal(jax.random.key(0), (3, 8, 4, 16)) * jnp.arange(4)[:, None]
    for axes, keep in (((1,), True), (-1, False)):
        held = quantise.quantise(x, axes, keep=keep)
        scale = held.scale if keep else held.scale[..., None]
        assert (jnp.abs(held.values * scale - x) <= scale * 0.501).all()
        assert (jnp.abs(held.values).max(axes) >= 127 * (jnp.abs(x).max(axes) > 0)).all()
