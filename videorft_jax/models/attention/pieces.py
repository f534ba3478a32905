"""Attention of a decoding step where several devices share a head of keys and values.

Where the axis `tensor` has more parts than the model has heads of keys, `copies` neighbours share
each head, and its group of query heads is dealt out to them (`rollout.heads`). None of them keeps
the whole sequence: place p lies with neighbour p % copies, at p // copies. Each gathers the queries
of the group, attends to its own places and sends the results to where the queries came from. So
every key is read by one device, as where no head is shared.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from videorft_jax.models.attention.decode import attend_partly

_ROWS = ("data", "fsdp")
_PREFIX, _SUFFIX = P(_ROWS, "tensor"), P(_ROWS, None, "tensor")


def keep_own_places(x: jax.Array, copies: int) -> jax.Array:
    """Gives what each device keeps of keys or values [B, K, T, H], in which neighbours hold the
    same: [B, K, T / copies rounded up, H]."""
    if copies == 1:
        return x
    batch, heads, length, dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -length % copies), (0, 0)))
    x = x.reshape(batch, -1, copies, x.shape[2] // copies, copies, dim)
    own = jnp.eye(copies, dtype=bool)[:, None, :, None]
    return jnp.where(own, x, 0).sum(4, dtype=x.dtype).reshape(batch, heads, -1, dim)


def attend_in_pieces(q, prefix, prefix_valid, suffix, seen, copies: int) -> jax.Array:
    """As `decode.decode_attention`, over places that neighbours along `tensor` share.

    q [B, R, N, H], whose heads `tensor` splits; prefix: k, v [B, K, S / copies, H] with
    prefix_valid bool [B, S]; suffix: k, v [B, R, K, C / copies, H] with seen bool [C]; sizes of
    pieces are rounded up. Keys and values may be `Int8`. Returns [B, R, N, H]. Call it inside
    `jit` with the mesh set.
    """

    def own(valid, held):
        """Gives the flags of the places that this device keeps, of which there are `held`."""
        missing = held * copies - valid.shape[-1]
        padded = jnp.pad(valid, [(0, 0)] * (valid.ndim - 1) + [(0, missing)])
        parts = padded.reshape(*valid.shape[:-1], held, copies)
        number = jax.lax.axis_index("tensor") % copies
        return jax.lax.dynamic_index_in_dim(parts, number, parts.ndim - 1, keepdims=False)

    def attend(q, prefix, prefix_valid, suffix, seen):
        size = jax.lax.axis_size("tensor")
        groups = [list(range(first, first + copies)) for first in range(0, size, copies)]
        group = {"axis_name": "tensor", "axis_index_groups": groups}
        queries = jax.lax.all_gather(q, axis=2, tiled=True, **group)
        held = [jax.tree.leaves(pair)[0].shape[dim] for pair, dim in ((prefix, 2), (suffix, 3))]
        parts = attend_partly(
            queries, prefix, own(prefix_valid, held[0]), suffix, own(seen, held[1])[None, None]
        )
        # Each result [B, R, N of the group, ...] goes back to the device whose queries they were.
        out, scale = (
            jax.lax.all_to_all(
                x.reshape(*x.shape[:2], copies, -1, x.shape[-1]), split_axis=2, concat_axis=0,
                **group,
            )
            for x in parts
        )  # fmt: skip
        return (jax.nn.softmax(scale, axis=0) * out).sum(0).astype(q.dtype)

    spread = jax.shard_map(
        attend,
        in_specs=(_SUFFIX, _PREFIX, P(_ROWS), _SUFFIX, P()),
        out_specs=_SUFFIX,
        check_vma=False,
    )
    return spread(q, prefix, prefix_valid, suffix, seen)
