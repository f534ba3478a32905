"""Attention for the CPU, a block of queries against a block of keys at a time.

A core multiplies matrices in its own cache ten times faster than it passes over scores in memory,
so that nothing larger than a block of them is ever made: a running softmax forward, and scores made
once more from their log-sum-exp backward. Blocks that nobody may see are left out.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax.models.attention.masks import Causal, Full, Mask, SharedPrefix
from videorft_jax.models.attention.partition import per_device
from videorft_jax.ops.sums import sum_last

_BLOCK = 192  # Tokens of a block, about.
_SCORES = 2**18  # Scores in memory at once: 1 MiB, half of what a core's cache holds.
_HIDDEN = jnp.finfo(jnp.float32).min

# XLA for CPU multiplies blocks at full speed unless the sum is over the first dim of the left one,
# which takes four times as long. Hence scores are [T, S] forward and [S, T] backward.
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attention(q, k, v, mask: Mask, places: jax.Array | None = None) -> jax.Array:
    """Computes attention: q [B, T, N, H], k, v [B, S, K, H] -> [B, T, N, H]; see `dispatch`.

    places: int32 [B, T], the position in the row of each query; None where the queries are all of
    the row's positions in order.
    """
    return per_device(_local, q, k, v, (mask, places))


def _local(q, k, v, seen):
    """Computes attention for the rows and heads that one device holds."""
    mask, places = seen
    if places is None and isinstance(mask, SharedPrefix):
        return _share_prefix(q, k, v, mask)
    return _attend(q, k, v, mask, places)[0]


def attend_before(q, k, v, mask: SharedPrefix) -> jax.Array:
    """Computes attention of what stands before each token of the completions, q [B, R * C, N, H],
    against k, v [B, T, K, H] of whole rows: for the first token of each it is the prompt's last,
    and for every other the token before it. Returns [B, R * C, N, H]."""
    return per_device(_before, q, k, v, mask)


def _before(q, k, v, mask):
    prompt = mask.prompt_length
    seen = Full(mask.segment_ids[:, :prompt] > 0)
    return _mix_in_own(q, *_attend(q, k[:, :prompt], v[:, :prompt], seen), k, v, mask, behind=1)


def _share_prefix(q, k, v, mask: SharedPrefix):
    """Computes attention of whole rows `[prompt | R completions]` without the blocks in which one
    completion would meet another."""
    prompt = mask.prompt_length
    out, log_sum = _attend(q, k[:, :prompt], v[:, :prompt], mask)
    completions = _mix_in_own(*(x[:, prompt:] for x in (q, out, log_sum)), k, v, mask)
    return jnp.concatenate([out[:, :prompt], completions], axis=1)


def _mix_in_own(q, out, log_sum, k, v, mask, behind=0):
    """Adds to the mixed values of the completions' queries, which have seen the prompt's keys, what
    each completion's own keys give, by the sums of exponentials of both. `behind`: how many tokens
    a query stands before its place."""
    size = mask.completion_length

    def own(x):
        return x.reshape(-1, size, *x.shape[2:])

    k, v, ids = (x[:, mask.prompt_length :] for x in (k, v, mask.segment_ids))
    places = jnp.broadcast_to(jnp.arange(size) - behind, (len(own(q)), size)) if behind else None
    inside, own_sum = _attend(own(q), own(k), own(v), Causal(own(ids)), places)
    share = jax.nn.sigmoid(own_sum - own(log_sum))[..., None]
    return (own(out) * (1 - share) + inside * share).reshape(q.shape).astype(q.dtype)


def _attend(q, k, v, mask, places=None):
    """Computes attention block by block: q [B, T, N, H], k, v [B, S, K, H] -> the mixed values
    [B, T, N, H], 0 for a query that sees no key, and the logarithm of each query's sum of
    exponentials, float32 [B, T, N]. Of a SharedPrefix row the keys may be the prompt's alone."""
    batch, length, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    rows, columns = _block(length), _block(keys)
    groups = heads // kv_heads
    units = batch * kv_heads
    most = max(1, _SCORES // (groups * rows * columns))
    at_once = max(n for n in range(1, units + 1) if units % n == 0 and n <= most)

    def split(x, block):
        return _split(x, block, kv_heads, at_once)

    def of_keys(x):
        return split(jnp.broadcast_to(x[..., None], (batch, keys, kv_heads)), columns)

    if places is None:
        places = jnp.broadcast_to(jnp.arange(length), (batch, length))
        first, stop = map(of_keys, _seen_by(mask, length, keys))
        pairs = _pairs(mask, length, keys, rows, columns)
    else:
        first, stop = map(of_keys, _seen_by(mask, keys, keys))
        pairs = tuple(itertools.product(range(-(-length // rows)), range(-(-keys // columns))))
    places = split(jnp.broadcast_to(places[..., None], q.shape[:3]), rows)
    out, log_sum = _mix(
        split(q * dim**-0.5, rows), split(k, columns), split(v, columns), places, first, stop, pairs
    )

    def join(x):
        x = jnp.swapaxes(x, 1, 2).reshape(batch, kv_heads, -1, groups, rows, *x.shape[4:])
        x = jnp.moveaxis(x, (2, 4), (1, 2))  # [B, blocks, block, K, G, ...]
        return x.reshape(batch, -1, heads, *x.shape[5:])[:, :length]

    return join(out), join(log_sum)


def _block(length: int) -> int:
    """Gives the size of the equal blocks, next to _BLOCK, into which a row is cut."""
    return -(-length // max(1, round(length / _BLOCK)))


def _split(x, block, kv_heads, at_once):
    """Cuts [B, T, heads, ...] into blocks [B K / n, blocks, n, G * block, ...], n being `at_once`.
    T is padded with 0 to whole blocks."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(len(x), -1, block, kv_heads, x.shape[2] // kv_heads, *x.shape[3:])
    x = jnp.moveaxis(x, (3, 1, 4, 2), (1, 2, 3, 4))  # [B, K, blocks, G, block, ...]
    x = x.reshape(-1, at_once, x.shape[2], x.shape[3] * block, *x.shape[5:])
    return jnp.swapaxes(x, 1, 2)


def _places(mask, queries: int, keys: int):
    """Gives, for each key, the first query that may see it and the one past the last, int [S] each.
    Only positions count here; padding and segments do not."""
    index = np.arange(keys)
    if isinstance(mask, Full):
        return np.zeros_like(index), np.full_like(index, queries)
    stop = np.full_like(index, queries)
    if isinstance(mask, SharedPrefix):
        prompt, length = mask.prompt_length, mask.completion_length
        own = prompt + ((index - prompt) // length + 1) * length
        stop = np.where(index < prompt, queries, own)
    return index, stop


def _seen_by(mask, queries: int, keys: int):
    """Gives the same as `_places`, int32 [B, S] each, but leaves out queries that are padding or
    belong to another segment. A segment is a run of equal ids."""
    real = (mask.valid if isinstance(mask, Full) else mask.segment_ids)[:, :keys]
    first, stop = (np.int32(x) for x in _places(mask, queries, keys))
    if isinstance(mask, Causal):
        last = real != jnp.roll(real, -1, axis=1)
        ends = jnp.where(last, jnp.arange(1, queries + 1, dtype=jnp.int32), queries)
        stop = jax.lax.cummin(ends, axis=1, reverse=True)
    else:
        stop = jnp.where(real > 0, stop, 0)
    return jnp.broadcast_to(first, real.shape), stop


def _pairs(mask, queries, keys, rows, columns):
    """Lists (i, j) for every block i of queries and each block j of keys that it may see."""
    first, stop = _places(mask, queries, keys)
    blocks = [slice(start, start + columns) for start in range(0, keys, columns)]
    return tuple(
        (i, j)
        for i in range(-(-queries // rows))
        for j, part in enumerate(blocks)
        if ((first[part] < (i + 1) * rows) & (stop[part] > i * rows)).any()
    )


def _over_seen(step, start, places, first, stop, pairs):
    """Runs step(carry, i, j) over those of `pairs` in which a query sees a key, for the n heads of
    one set. Padding and segments, which only the data tell, leave many out."""
    i, j = np.array(pairs, np.int32).T
    low, high = places.min((1, 2)), places.max((1, 2))
    first, stop = first.min((1, 2)), stop.max((1, 2))
    seen = (first[j] <= high[i]) & (low[i] < stop[j])
    (order,) = jnp.nonzero(seen, size=len(pairs), fill_value=0)
    i, j = jnp.asarray(i)[order], jnp.asarray(j)[order]
    return jax.lax.fori_loop(0, seen.sum(), lambda n, carry: step(carry, i[n], j[n]), start)


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _put(x, new, index):
    return jax.lax.dynamic_update_index_in_dim(x, new, index, 0)


def _visible(places, first, stop):
    return (first <= places) & (places < stop)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _mix(q, k, v, places, first, stop, pairs):
    """Computes the pairs of blocks, for U sets of n heads one set after another.

    q [U, I, n, T, H], scaled; k, v [U, J, n, S, H]; places int [U, I, n, T], of the queries in
    their row; first, stop int [U, J, n, S], the queries that see a key. Returns [U, I, n, T, H] and
    the logarithms of the sums of exponentials [U, I, n, T].
    """
    return _forward(q, k, v, places, first, stop, pairs)[0]


def _forward(q, k, v, places, first, stop, pairs):
    # Without this barrier a scan over layers computes the masks of all blocks before its first turn
    # and keeps them in memory.
    q, places, first, stop = jax.lax.optimization_barrier((q, places, first, stop))

    def unit(parts):
        q, k, v, places, first, stop = parts

        def step(carry, i, j):
            peak, total, out = carry
            scores = _product("nTH,nSH->nTS", _at(q, i), _at(k, j))
            low, high = _at(first, j)[:, None], _at(stop, j)[:, None]
            seen = _visible(_at(places, i)[..., None], low, high)
            scores = jnp.where(seen, scores, _HIDDEN)
            higher = jnp.maximum(_at(peak, i), scores.max(-1))
            weights = jnp.exp(scores - higher[..., None])
            kept = jnp.exp(_at(peak, i) - higher)
            mixed = _product("nTS,nSH->nTH", weights.astype(v.dtype), _at(v, j))
            total = _put(total, _at(total, i) * kept + weights.sum(-1), i)
            out = _put(out, _at(out, i) * kept[..., None] + mixed, i)
            return _put(peak, higher, i), total, out

        start = jnp.full(q.shape[:-1], _HIDDEN), jnp.zeros(q.shape[:-1]), jnp.zeros(q.shape)
        peak, total, out = _over_seen(step, start, places, first, stop, pairs)
        total = jnp.maximum(total, 1)  # It is less only where a block of queries sees no key.
        out = jnp.where(peak[..., None] > _HIDDEN, out / total[..., None], 0)
        return out.astype(q.dtype), peak + jnp.log(total)

    out, log_sum = jax.lax.map(unit, (q, k, v, places, first, stop))
    return (out, log_sum), (q, k, v, places, first, stop, out, log_sum)


def _backward(pairs, saved, cotangents):
    q, k, v, places, first, stop, out, log_sum = saved
    cotangent, of_sum = cotangents
    delta = sum_last((cotangent * out).astype(jnp.float32)) - of_sum

    def unit(parts):
        q, k, turned, v, places, first, stop, cotangent, log_sum, delta = parts

        def add(x, new, index):
            return _put(x, _at(x, index) + new, index)

        def step(carry, i, j):
            dq, dk, dv = carry
            scores = _product("nSH,nTH->nST", _at(k, j), _at(q, i))
            low, high = _at(first, j)[..., None], _at(stop, j)[..., None]
            seen = _visible(_at(places, i)[:, None], low, high)
            p = jnp.exp(jnp.where(seen, scores, _HIDDEN) - _at(log_sum, i)[:, None])
            dp = _product("nSH,nTH->nST", _at(v, j), _at(cotangent, i))
            ds = (p * (dp - _at(delta, i)[:, None])).astype(q.dtype)
            dq = add(dq, _product("nHS,nST->nHT", _at(turned, j), ds), i)
            dk = add(dk, _product("nST,nTH->nSH", ds, _at(q, i)), j)
            dv = add(dv, _product("nST,nTH->nSH", p.astype(v.dtype), _at(cotangent, i)), j)
            return dq, dk, dv

        shapes = jnp.swapaxes(q, -1, -2).shape, k.shape, v.shape
        start = tuple(map(jnp.zeros, shapes))
        dq, dk, dv = _over_seen(step, start, places, first, stop, pairs)
        return jnp.swapaxes(dq, -1, -2).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    turned = jnp.swapaxes(k, -1, -2)
    parts = q, k, turned, v, places, first, stop, cotangent, log_sum, delta
    return *jax.lax.map(unit, parts), None, None, None


_mix.defvjp(_forward, _backward)
