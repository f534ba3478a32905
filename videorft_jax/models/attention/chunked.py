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

_BLOCK = 192  # Most tokens of a block.
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
        first, stop = map(of_keys, _seen_by(mask, length))
        pairs = _pairs(mask, length, keys, rows, columns)
    else:
        first, stop = map(of_keys, _seen_by(mask, keys))
        pairs = tuple(itertools.product(range(-(-length // rows)), range(-(-keys // columns))))
    places = split(jnp.broadcast_to(places[..., None], q.shape[:3]), rows)
    out = _mix(
        split(q * dim**-0.5, rows), split(k, columns), split(v, columns), places, first, stop, pairs
    )
    out = jnp.swapaxes(out, 1, 2).reshape(batch, kv_heads, -1, groups, rows, dim)
    out = out.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, heads, dim)
    return out[:, :length]


def _block(length: int) -> int:
    """Gives the size of the blocks when a row is cut into as few equal ones as _BLOCK allows."""
    return -(-length // -(-length // _BLOCK))


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


def _seen_by(mask, queries: int):
    """Gives the same as `_places`, int32 [B, S] each, but leaves out queries that are padding or
    belong to another segment. A segment is a run of equal ids."""
    real = mask.valid if isinstance(mask, Full) else mask.segment_ids
    first, stop = (np.int32(x) for x in _places(mask, queries, real.shape[1]))
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


def _columns(pairs):
    return tuple(np.array(pairs, np.int32).T)


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
    their row; first, stop int [U, J, n, S], the queries that see a key. Returns [U, I, n, T, H].
    """
    return _forward(q, k, v, places, first, stop, pairs)[0]


def _forward(q, k, v, places, first, stop, pairs):
    # Without this barrier a scan over layers computes the masks of all blocks before its first turn
    # and keeps them in memory.
    q, places, first, stop = jax.lax.optimization_barrier((q, places, first, stop))

    def unit(parts):
        q, k, v, places, first, stop = parts

        def step(carry, pair):
            i, j = pair
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
            return (_put(peak, higher, i), total, out), None

        start = jnp.full(q.shape[:-1], _HIDDEN), jnp.zeros(q.shape[:-1]), jnp.zeros(q.shape)
        (peak, total, out), _ = jax.lax.scan(step, start, _columns(pairs))
        return (out / total[..., None]).astype(q.dtype), peak + jnp.log(total)

    out, log_sum = jax.lax.map(unit, (q, k, v, places, first, stop))
    return out, (q, k, v, places, first, stop, out, log_sum)


def _backward(pairs, saved, cotangent):
    q, k, v, places, first, stop, out, log_sum = saved
    delta = sum_last((cotangent * out).astype(jnp.float32))

    def unit(parts):
        q, k, turned, v, places, first, stop, cotangent, log_sum, delta = parts

        def add(x, new, index):
            return _put(x, _at(x, index) + new, index)

        def step(carry, pair):
            i, j = pair
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
            return (dq, dk, dv), None

        shapes = jnp.swapaxes(q, -1, -2).shape, k.shape, v.shape
        (dq, dk, dv), _ = jax.lax.scan(step, tuple(map(jnp.zeros, shapes)), _columns(pairs))
        return jnp.swapaxes(dq, -1, -2).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    turned = jnp.swapaxes(k, -1, -2)
    parts = q, k, turned, v, places, first, stop, cotangent, log_sum, delta
    return *jax.lax.map(unit, parts), None, None, None


_mix.defvjp(_forward, _backward)
