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
_CHUNK = 128  # queries scored at once on the CPU


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
    batch, length, heads, dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None], scores * dim**-0.5, _HIDDEN)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v).reshape(q.shape)


def _chunked(q, k, v, mask):
    """A block of queries at a time; what a causal mask hides of later keys is left out."""
    if isinstance(mask, SharedPrefix):
        return _chunked_prefix(q, k, v, mask)
    length = q.shape[1]
    queries, (keys, values) = _by_head(q, k.shape[2]), _head_major(k, v)
    outs = []
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        seen = slice(stop) if isinstance(mask, Causal) else slice(None)
        if isinstance(mask, Causal):
            ids, index = mask.segment_ids, jnp.arange(stop)
            allowed = ids[:, start:stop, None] == ids[:, None, :stop]
            allowed &= index[start:, None] >= index
        else:
            allowed = mask.allowed()
        part = (keys[:, :, seen], values[:, :, seen], allowed[None])
        outs.append(_mix(queries[:, :, :, :, start:stop], (part,)))
    return _by_token(jnp.concatenate(outs, axis=4))[0]


def _chunked_prefix(q, k, v, mask):
    """The prompt by itself, then completions a few at a time against prompt and themselves."""
    prompt, length, rollouts = mask.prompt_length, mask.completion_length, mask.num_rollouts
    ids = mask.segment_ids
    first = _chunked(q[:, :prompt], k[:, :prompt], v[:, :prompt], Causal(ids[:, :prompt]))
    shared = _head_major(k[:, :prompt], v[:, :prompt])
    at_once = next(n for n in range(max(1, 4 * _CHUNK // length), 0, -1) if rollouts % n == 0)

    def split(x):  # [B, T, ...] -> [R / n, n, B, C, ...]
        x = x[:, prompt:].reshape(x.shape[0], -1, at_once, length, *x.shape[2:])
        return jnp.moveaxis(x, 0, 2)

    def step(_, group):
        q, k, v, own = group  # [n, B, C, ...]
        causal = jnp.tril(jnp.ones((length, length), bool))
        to_prompt = own[..., None] == ids[:, None, :prompt]
        to_own = causal & (own[..., None] == own[..., None, :])
        queries = jnp.stack([_by_head(x, k.shape[3])[0] for x in q])
        keys, values = jnp.moveaxis(k, 2, 3), jnp.moveaxis(v, 2, 3)
        parts = ((*shared, to_prompt), (keys, values, to_own))
        return None, _by_token(_mix(queries, parts))

    _, outs = jax.lax.scan(step, None, tuple(map(split, (q, k, v, ids))))
    rest = jnp.moveaxis(outs, 2, 0).reshape(q.shape[0], -1, *q.shape[2:])
    return jnp.concatenate([first, rest], axis=1)


def _by_head(q, kv_heads):
    """[B, T, N, H] -> scaled [1, B, K, G, T, H]."""
    grouped = (q * q.shape[-1] ** -0.5).reshape(*q.shape[:2], kv_heads, -1, q.shape[-1])
    return jnp.moveaxis(grouped, 1, 3)[None]


def _head_major(k, v):
    """[B, S, K, H] -> [B, K, S, H]."""
    return jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)


def _by_token(out):
    """[n, B, K, G, T, H] -> [n, B, T, N, H]."""
    out = jnp.moveaxis(out, 4, 2)
    return out.reshape(*out.shape[:3], -1, out.shape[-1])


@jax.custom_vjp
def _mix(q, parts):
    """One softmax over several sets of keys, without joining them.

    q [n, B, K, G, T, H], scaled. Each part is keys and values, [B, K, S, H] (the same for all n) or
    [n, B, K, S, H], and allowed bool [n or 1, B or 1, T, S]. The backward pass makes each score
    once more from the log-sum-exp: left to differentiation it would take twice the passes over
    memory, which is what a CPU spends its time on.
    """
    return _mix_forward(q, parts)[0]


def _labels(keys):
    return "nBKSH" if keys.ndim == 5 else "BKSH"


def _scores(q, k, allowed):
    scores = jnp.einsum(f"nBKGTH,{_labels(k)}->nBKGTS", q, k, preferred_element_type=jnp.float32)
    return jnp.where(allowed[:, :, None, None], scores, _HIDDEN)


def _mix_forward(q, parts):
    scores = [_scores(q, k, allowed) for k, _, allowed in parts]
    peak = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - peak) for part in scores]
    total = sum(part.sum(-1, keepdims=True) for part in weights)
    out = sum(
        jnp.einsum(f"nBKGTS,{_labels(v)}->nBKGTH", w.astype(v.dtype), v)
        for w, (_, v, _) in zip(weights, parts, strict=True)
    )
    out = (out / total).astype(q.dtype)
    return out, (q, parts, out, peak + jnp.log(total))


def _mix_backward(saved, cotangent):
    q, parts, out, log_sum = saved
    delta = (cotangent * out).astype(jnp.float32).sum(-1, keepdims=True)
    dq, gradients = 0.0, []
    for k, v, allowed in parts:
        scores = _scores(q, k, allowed)
        p = jnp.where(allowed[:, :, None, None], jnp.exp(scores - log_sum), 0.0)
        dp = jnp.einsum(
            f"nBKGTH,{_labels(v)}->nBKGTS", cotangent, v, preferred_element_type=jnp.float32
        )
        ds = (p * (dp - delta)).astype(k.dtype)
        dv = jnp.einsum(f"nBKGTS,nBKGTH->{_labels(v)}", p.astype(v.dtype), cotangent)
        dk = jnp.einsum(f"nBKGTS,nBKGTH->{_labels(k)}", ds, q)
        dq += jnp.einsum(f"nBKGTS,{_labels(k)}->nBKGTH", ds, k)
        gradients.append((dk, dv, None))
    return dq, tuple(gradients)


_mix.defvjp(_mix_forward, _mix_backward)


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
