"""Computing at some positions of a row, those that a mask names, and not at the others."""

import jax
import jax.numpy as jnp

CHUNK = 512  # positions of a row computed at once on an accelerator
CPU_CHUNK = 256  # a core multiplies as fast with fewer, and less of a row's last chunk is padding


def at_masked(function, mask: jax.Array, most: jax.Array, chunk: int, *arrays: jax.Array):
    """What `function` returns where mask, bool [B, T], is True, and 0 elsewhere.

    function(*parts) takes [B, chunk, ...] of every array [B, T, ...] and returns a tree of
    [B, chunk, ...]; it must treat positions one by one. The masked positions of a row are gathered
    to its front in their order, and whole chunks behind the last of them are skipped: `most` is the
    largest number of masked positions in a row. The backward pass computes each chunk once more
    instead of keeping it.
    """
    rows, length = mask.shape
    chunk = min(chunk, length)
    padding = -length % chunk
    back, order = _masked_first(mask)

    def to_front(x):
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def skip(*parts):
        def nothing(x):  # made of `parts`, so that it varies over the same axes of a mesh
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


def _masked_first(mask):
    """Two permutations int32 [B, T], each the inverse of the other, that bring the masked positions
    of a row to its front and keep the order otherwise: where every position goes, and which one
    comes to every place. They are made by counting, because TPU compilers take ten seconds over a
    sort."""
    count = jnp.cumsum(mask, axis=1)
    rest = jnp.cumsum(~mask, axis=1) + count[:, -1:]
    back = jnp.where(mask, count, rest) - 1
    places = jnp.arange(mask.shape[1], dtype=back.dtype)
    order = jax.vmap(lambda row: places.at[row].set(places, unique_indices=True))(back)
    return back, order
