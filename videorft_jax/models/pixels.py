"""What the vision towers do to pixels and their places before the first layer."""

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax.models.geometry import Geometry


def normalise(patches: jax.Array, geometry: Geometry) -> jax.Array:
    """uint8 [..., patch_dim] -> float32, (x - 255 mean) / (255 std) of each channel: the fused form
    of Hugging Face's processors."""
    mean, std = (
        np.repeat(255 * np.asarray(part, np.float32), geometry.patch_dim // 3)
        for part in (geometry.pixel_mean, geometry.pixel_std)
    )
    return (patches.astype(jnp.float32) - mean) / std


def rotary_angles(hw: jax.Array, head_dim: int, theta: float) -> jax.Array:
    """2-D rotary angles float32 [..., H / 2] of places hw int32 [..., 2]: H / 4 frequencies of the
    row, then as many of the column."""
    exponent = np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2)
    frequency = (1.0 / theta**exponent).astype(np.float32)
    angles = hw[..., None].astype(jnp.float32) * frequency
    return angles.reshape(*hw.shape[:-1], head_dim // 2)
