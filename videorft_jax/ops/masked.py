"""Computing at the positions of a row that are wanted, and not at the others."""

import jax
import jax.numpy as jnp

CHUNK = 512  # positions of a row computed at once
CPU_CHUNK = 256  # a core multiplies as fast, and fewer of a last chunk are not wanted


def at_wanted(function, mask: jax.Array, most: jax.Array, chunk: int, *arrays: jax.Array):
    """`function` where mask, bool [B, T], is True; what it returns, with 0 elsewhere.

    function(*parts) takes [B, chunk, ...] of every array [B, T, ...] and returns a tree of
    [B, chunk, ...], position by position. Within a row wanted positions are gathered to the front
    in their order, so that whole chunks without one are skipped; `most` is how many wanted
    positions a row has at most. What is computed in a chunk is made again in the backward pass.
    """
    rows, length = mask.shape
    chunk = min(chunk, length)
    padding = -length % chunk
    back, order = _wanted_first(mask)

    def to_front(x):
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def skip(*parts):
        def nothing(x):  # which varies over the axes of a mesh as `parts` do
            return jnp.zeros_like(parts[0], x.dtype, x.shape)

        return jax.tree.map(nothing, jax.eval_shape(function, *parts))

    @jax.checkpoint
    def step(done, parts):
        return done + chunk, jax.lax.cond(done < most, function, skip, *parts)

    _, results = jax.lax.scan(step, 0, tuple(map(to_front, arrays)))

    def restore(x):  # [chunks, B, chunk, ...] -> [B, T, ...]
        x = jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :length]
        ones = (1,) * (x.ndim - 2)
        x = jnp.take_along_axis(x, back.reshape(back.shape + ones), axis=1)
        return jnp.where(mask.reshape(mask.shape + ones), x, 0.0)

    return jax.tree.map(restore, results)


def _wanted_first(mask):
    """int32 [B, T] each: where every position goes, and which position goes where, such that those
    of `mask` come first and nothing else changes. By counting: a sort would take TPU compilers ten
    seconds."""
    count = jnp.cumsum(mask, axis=1)
    rest = jnp.cumsum(~mask, axis=1) + count[:, -1:]
    back = jnp.where(mask, count, rest) - 1
    places = jnp.arange(mask.shape[1], dtype=back.dtype)
    order = jax.vmap(lambda row: places.at[row].set(places, unique_indices=True))(back)
    return back, order
