"""Attention: one function, three masks, one reference and three fast paths.

`attention` takes q [B, T, N, H], k and v [B, S, K, H] and one of the masks below, and every path
gives the numbers of `reference`, gradients included. Softmax is in float32 on every path.

    reference   one dense score matrix; the oracle, and right for a window of 64 slots
    chunked     a block of queries at a time, recomputed in the backward pass; for the CPU
    splash      Pallas kernel for TPU (attention_splash.py)
    flash       cuDNN kernel for GPU (attention_flash.py)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from videorft_jax.model.quantise import Int8

IMPLEMENTATIONS = ("auto", "reference", "chunked", "splash", "flash")
_HIDDEN = jnp.finfo(jnp.float32).min  # finite, so that a row without keys gives no NaN
_CHUNK = 256  # queries scored at once on the CPU


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
    if implementation == "auto":
        implementation = {"cpu": "chunked", "tpu": "splash"}.get(jax.default_backend(), "flash")
    match implementation:
        case "reference":
            return reference(q, k, v, mask.allowed())
        case "chunked":
            return _chunked(q, k, v, mask)
        case "splash":
            from videorft_jax.model import attention_splash

            return attention_splash.attention(q, k, v, mask)
        case "flash":
            from videorft_jax.model import attention_flash

            return attention_flash.attention(q, k, v, mask)
    raise ValueError(f"attention is {implementation!r}; choose one of {IMPLEMENTATIONS}")


def reference(q, k, v, allowed) -> jax.Array:
    """Dense attention; allowed bool, broadcast to [B, T, S]."""
    probabilities = _softmax([_scores(q, k, allowed)])[0]
    return _mix(probabilities, v)


def _scores(q, k, allowed):
    """float32 [B, K, G, T, S]."""
    batch, length, heads, dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    return jnp.where(allowed[:, None, None], scores * dim**-0.5, _HIDDEN)


def _softmax(parts):
    """One softmax over the concatenation of score blocks, without concatenating them."""
    peak = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in parts])
    weights = [jnp.exp(part - jax.lax.stop_gradient(peak)) for part in parts]
    total = functools.reduce(jnp.add, [part.sum(-1, keepdims=True) for part in weights])
    return [part / total for part in weights]


def _mix(probabilities, v):
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", probabilities.astype(v.dtype), v)
    return mixed.reshape(*mixed.shape[:2], -1, mixed.shape[-1])


def _chunked(q, k, v, mask):
    if isinstance(mask, SharedPrefix):
        return _chunked_prefix(q, k, v, mask)
    length = q.shape[1]
    outs = []
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        if isinstance(mask, Causal):  # later keys are never seen: leave them out
            ids, index = mask.segment_ids, jnp.arange(stop)
            allowed = (ids[:, start:stop, None] == ids[:, None, :stop]) & (
                index[start:, None] >= index
            )
            seen = slice(stop)
        else:
            allowed, seen = mask.allowed(), slice(None)
        outs.append(jax.checkpoint(reference)(q[:, start:stop], k[:, seen], v[:, seen], allowed))
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)


def _chunked_prefix(q, k, v, mask):
    """The prompt by itself, then completions a few at a time against prompt and themselves."""
    prompt, length, rollouts = mask.prompt_length, mask.completion_length, mask.num_rollouts
    ids = mask.segment_ids
    first = _chunked(q[:, :prompt], k[:, :prompt], v[:, :prompt], Causal(ids[:, :prompt]))
    batch, _, heads, dim = q.shape

    def split(x):  # [B, T, ...] -> [R, B, C, ...]
        return jnp.moveaxis(x[:, prompt:].reshape(batch, rollouts, length, *x.shape[2:]), 1, 0)

    at_once = next(n for n in range(max(1, 2 * _CHUNK // length), 0, -1) if rollouts % n == 0)

    def step(_, group):
        q, k, v, ids_own = group  # [n, B, C, ...]
        return None, _prefix_and_own(q, k, v, ids_own, *shared)

    shared = (k[:, :prompt], v[:, :prompt], ids[:, :prompt])
    groups = jax.tree.map(
        lambda x: x.reshape(-1, at_once, *x.shape[1:]), tuple(map(split, (q, k, v, ids)))
    )
    _, outs = jax.lax.scan(jax.checkpoint(step), None, groups)
    rest = jnp.moveaxis(outs.reshape(rollouts, batch, length, heads, dim), 0, 1)
    return jnp.concatenate([first, rest.reshape(batch, -1, heads, dim)], axis=1)


def _prefix_and_own(q, k, v, ids, prompt_k, prompt_v, prompt_ids):
    """q, k, v [n, B, C, ...] of n completions of each row, one softmax over prompt and own keys."""
    n, batch, length = q.shape[:3]
    folded = jnp.moveaxis(q, 0, 1).reshape(batch, n * length, *q.shape[3:])
    folded_ids = jnp.moveaxis(ids, 0, 1).reshape(batch, n * length)
    to_prompt = _scores(folded, prompt_k, folded_ids[:, :, None] == prompt_ids[:, None, :])
    rows = to_prompt.shape[:3]
    to_prompt = jnp.moveaxis(to_prompt.reshape(*rows, n, length, -1), 3, 0)

    def flat(x):
        return x.reshape(n * batch, *x.shape[2:])

    own = _scores(flat(q), flat(k), Causal(flat(ids)).allowed())
    own = own.reshape(n, *rows, length, length)
    to_prompt, own = _softmax([to_prompt, own])
    to_prompt = jnp.moveaxis(to_prompt, 0, 3).reshape(*rows, n * length, -1)
    from_prompt = _mix(to_prompt, prompt_v).reshape(batch, n, length, *q.shape[3:])
    from_own = _mix(own.reshape(n * batch, *own.shape[2:]), flat(v)).reshape(q.shape)
    return jnp.moveaxis(from_prompt, 1, 0) + from_own


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


def _widen(part, dims, dtype):
    """A cached part in the compute dtype, and the scale of products with it, `dims` inserted."""
    if isinstance(part, Int8):
        return part.values.astype(dtype), jnp.expand_dims(part.scale, dims).astype(jnp.float32)
    return part, 1.0
