"""Attention: one function, three masks, one reference and three fast paths.

`attention` takes q [B, T, N, H], k and v [B, S, K, H] and one of the masks below, and every path
gives the numbers of `reference`, gradients included. Softmax is in float32 on every path.

    reference   one dense score matrix; the oracle, and right for a window of 64 slots
    chunked     a block of queries and keys at a time; for the CPU (attention_chunked.py)
    splash      Pallas kernel for TPU (attention_splash.py)
    flash       cuDNN kernel for GPU (attention_flash.py)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from videorft_jax.models.int8 import Int8

IMPLEMENTATIONS = ("auto", "reference", "chunked", "splash", "flash")
_HIDDEN = jnp.finfo(jnp.float32).min  # finite, so that a row without keys gives no NaN


def _mask(*, data, static=()):
    return functools.partial(jax.tree_util.register_dataclass, data_fields=data, meta_fields=static)


@_mask(data=["segment_ids"])
@dataclasses.dataclass(frozen=True)
class Causal:
    """A token sees itself and what precedes it in its segment; segment_ids int32 [B, T].

    1 1 2 2         x . . .
                    x x . .
                    . . x .
                    . . x x
    """

    segment_ids: jax.Array

    def allowed(self) -> jax.Array:
        """bool [B, T, S]."""
        ids, index = self.segment_ids, jnp.arange(self.segment_ids.shape[1])
        return (ids[:, :, None] == ids[:, None, :]) & (index[:, None] >= index)


@_mask(data=["segment_ids"], static=["prompt_length", "num_rollouts"])
@dataclasses.dataclass(frozen=True)
class SharedPrefix:
    """A group's row `[prompt | R completions]`: completion r sees the prompt and itself.

        p p a a b b     x . . . . .
                        x x . . . .
                        x x x . . .
                        x x x x . .
                        x x . . x .
                        x x . . x x

    `segment_ids` int32 [B, T] is 1 on real tokens and 0 on padding, which stands at the right of
    the prompt and of each completion. T = prompt_length + num_rollouts * C.
    """

    segment_ids: jax.Array
    prompt_length: int
    num_rollouts: int

    @property
    def completion_length(self) -> int:
        return (self.segment_ids.shape[1] - self.prompt_length) // self.num_rollouts

    def static_mask(self, query, key):
        """Whether position `query` may see position `key`, by place alone; any integer arrays."""
        prompt, length = self.prompt_length, self.completion_length
        same = (query - prompt) // length == (key - prompt) // length
        return (query >= key) & ((key < prompt) | same)

    def allowed(self) -> jax.Array:
        """bool [B, T, S]."""
        ids, index = self.segment_ids, jnp.arange(self.segment_ids.shape[1])
        places = self.static_mask(index[:, None], index[None, :])
        return places & (ids[:, :, None] == ids[:, None, :])


@_mask(data=["valid"])
@dataclasses.dataclass(frozen=True)
class Full:
    """Every query sees every valid key; valid bool [B, S]."""

    valid: jax.Array

    def allowed(self) -> jax.Array:
        """bool [B, 1, S]."""
        return self.valid[:, None, :]


Mask = Causal | SharedPrefix | Full


def attention(q, k, v, mask: Mask, implementation: str = "auto") -> jax.Array:
    """Softmax attention under `mask`: q [B, T, N, H], k, v [B, S, K, H] -> [B, T, N, H].

    Query head n reads key/value head n // (N / K). "auto" chooses by the default backend; name the
    path to compile for another platform than the one at hand.
    """
    match resolve(implementation):
        case "reference":
            return reference(q, k, v, mask.allowed())
        case "chunked":
            from videorft_jax.models.attention import chunked as attention_chunked

            return attention_chunked.attention(q, k, v, mask)
        case "splash":
            from videorft_jax.models.attention import splash as attention_splash

            return attention_splash.attention(q, k, v, mask)
        case "flash":
            from videorft_jax.models.attention import flash as attention_flash

            return attention_flash.attention(q, k, v, mask)
    raise ValueError(f"attention is {implementation!r}; choose one of {IMPLEMENTATIONS}")


def per_device(run, q, k, v, rows):
    """`run(q, k, v, rows)` on every device's own rows, over (data, fsdp), and heads, over tensor;
    `rows` is a tree of arrays [B, ...]. For what XLA can't partition by itself: kernels, and loops
    over rows, which it would gather."""
    if not jax.sharding.get_abstract_mesh().empty:
        split = P(("data", "fsdp"))
        heads = P(*split, None, "tensor")
        run = jax.shard_map(
            run, in_specs=(heads, heads, heads, split), out_specs=heads, check_vma=False
        )
    return run(q, k, v, rows)


def resolve(implementation: str) -> str:
    """The path that "auto" stands for on the default backend; any other as it is."""
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


def decode_attention(q, prefix, prefix_valid, suffix, suffix_valid) -> jax.Array:
    """One new token of each completion against the shared prompt and its own suffix.

    q [B, R, N, H]; prefix: k, v [B, K, S, H] with prefix_valid bool [B, S]; suffix: k, v
    [B, R, K, C, H] with suffix_valid bool, broadcast to [B, R, C]. Keys and values may be `Int8`
    with one scale per token and head. One softmax over both parts. Returns [B, R, N, H].
    """
    (prefix_k, prefix_v), (suffix_k, suffix_v) = (
        [_widen(part, dims, q.dtype) for part in pair]
        for pair, dims in ((prefix, (1, 3)), (suffix, 3))
    )
    batch, rollouts, heads, dim = q.shape
    grouped = q.reshape(batch, rollouts, prefix_k[0].shape[1], -1, dim)

    def scores(spec, keys, scale):
        products = jnp.einsum(spec, grouped, keys, preferred_element_type=jnp.float32)
        return products * (scale * dim**-0.5)

    to_prefix = scores("BRKGH,BKSH->BRKGS", *prefix_k)
    to_suffix = scores("BRKGH,BRKCH->BRKGC", *suffix_k)
    to_prefix = jnp.where(prefix_valid[:, None, None, None, :], to_prefix, _HIDDEN)
    to_suffix = jnp.where(suffix_valid[:, :, None, None, :], to_suffix, _HIDDEN)
    to_prefix, to_suffix = _softmax([to_prefix, to_suffix])

    def mixed(spec, weights, values, scale):
        weights = (weights * scale).astype(q.dtype)
        # In the other order XLA for CPU has no such product of bfloat16.
        return jnp.einsum(spec, values, weights, preferred_element_type=jnp.float32)

    # Rounded once, after the sum, as where the keys are not in two parts.
    out = mixed("BKSH,BRKGS->BRKGH", to_prefix, *prefix_v)
    out += mixed("BRKCH,BRKGC->BRKGH", to_suffix, *suffix_v)
    return out.reshape(batch, rollouts, heads, dim).astype(q.dtype)


def _softmax(parts):
    """One softmax over the concatenation of score blocks, without concatenating them."""
    peak = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in parts])
    weights = [jnp.exp(part - peak) for part in parts]
    total = sum(part.sum(-1, keepdims=True) for part in weights)
    return [part / total for part in weights]


def _widen(part, dims, dtype):
    """A cached part in the compute dtype, and the scale of products with it, `dims` inserted."""
    if isinstance(part, Int8):
        return part.values.astype(dtype), jnp.expand_dims(part.scale, dims).astype(jnp.float32)
    return part, 1.0
