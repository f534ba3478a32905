"""Attention over whole rows: one function, three masks, and a path for each platform.

`attention` takes q [B, T, N, H], k and v [B, S, K, H] and a mask of `masks`. Every path gives the
numbers of `reference`, gradients included, and takes the softmax in float32.

    reference   one dense score matrix; the oracle, and right for a window of 64 slots
    chunked     a block of queries against a block of keys at a time; for the CPU
    splash      a Pallas kernel for TPU
    flash       a cuDNN kernel for GPU
"""

import jax
import jax.numpy as jnp

from videorft_jax.models.attention import chunked, flash, splash
from videorft_jax.models.attention.masks import Mask

IMPLEMENTATIONS = ("auto", "reference", "chunked", "splash", "flash")
_HIDDEN = jnp.finfo(jnp.float32).min  # finite, so that a row without keys gives no NaN


def attention(q, k, v, mask: Mask, implementation: str = "auto") -> jax.Array:
    """Softmax attention under `mask`: q [B, T, N, H], k, v [B, S, K, H] -> [B, T, N, H].

    Query head n reads key/value head n // (N / K). "auto" chooses by the default backend; name the
    path to compile for another platform than the one at hand. Raises ValueError for a name that is
    not in IMPLEMENTATIONS.
    """
    match resolve(implementation):
        case "reference":
            return reference(q, k, v, mask.allowed())
        case "chunked":
            return chunked.attention(q, k, v, mask)
        case "splash":
            return splash.attention(q, k, v, mask)
        case "flash":
            return flash.attention(q, k, v, mask)
    raise ValueError(f"attention is {implementation!r}; choose one of {IMPLEMENTATIONS}")


def resolve(implementation: str) -> str:
    """The path that "auto" stands for on the default backend; any other name as it is."""
    if implementation != "auto":
        return implementation
    return {"cpu": "chunked", "tpu": "splash"}.get(jax.default_backend(), "flash")


def reference(q, k, v, allowed) -> jax.Array:
    """Dense attention; allowed bool, broadcast to [B, T, S]."""
    batch, length, heads, dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None], scores * dim**-0.5, _HIDDEN)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v).reshape(q.shape)
