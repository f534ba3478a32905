"""The compiled programs of the running batch, which requests join and leave.

A row of the batch holds one completion: the keys and values of its prompt, and those of its own
tokens in a ring of C columns. All rows write the same column at the same time, as in a rollout, but
began at different columns: a row that has drawn n tokens reads the last n columns. No completion
may have more than C tokens, so that a ring never overwrites what is still read.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.kv_cache import KVCache
from videorft_jax.rollout.programs import EMPTY, FAILED, FULL, LIVE, STOPPED
from videorft_jax.rollout.sampling import SamplingConfig, completion_key
from videorft_jax.serving.drawing import NUM_TOP, draw_each, rank, unpack
from videorft_jax.serving.prefill import Prompt

# As in `rollout.programs`: cuBLAS reads stacked weights where they lie.
_GPU = {"xla_gpu_enable_triton_gemm": False}


class Shape(NamedTuple):
    """The size of a running batch: rows, prompt tokens and columns of the rings."""

    rows: int
    length: int
    columns: int


class Wish(NamedTuple):
    """How a completion is drawn, scalars."""

    key: np.ndarray | jax.Array  # uint32 [2]
    limit: int | jax.Array  # most tokens
    temperature: float | jax.Array
    top_p: float | jax.Array


class Told(NamedTuple):
    """What is told of a token of each row, [B], or of the tokens of a chunk, [B, chunk]."""

    token: jax.Array  # int32
    logprob: jax.Array  # float32
    top_ids: jax.Array  # int32 [..., NUM_TOP], zeros where nobody asked
    top_logprobs: jax.Array  # float32 [..., NUM_TOP]


class State(NamedTuple):
    """The running batch of B rows."""

    keys: jax.Array  # The keys of the prompts, [L, B, K, S, H].
    values: jax.Array
    valid: jax.Array  # bool [B, S]
    own_keys: jax.Array  # [L, B, 1, K, C, H]
    own_values: jax.Array
    position: jax.Array  # int32 [B]
    token: jax.Array  # int32 [B], drawn last and not yet run
    length: jax.Array  # int32 [B], tokens drawn
    end: jax.Array  # int32 [B], LIVE or how it ended
    wish: Wish  # each with a leading B


class Programs:
    """The programs for one model; each is compiled once for every shape that it meets."""

    def __init__(self, config: ModelConfig, sampling: SamplingConfig, *, chunk: int, dtype):
        self.config, self.sampling, self.chunk = config, sampling, chunk
        self.dtype = jnp.dtype(dtype)
        allowed = np.arange(config.text.vocab_size) < sampling.num_real_tokens
        allowed[list(sampling.forbidden_ids)] = False
        self.allowed = jnp.asarray(allowed)
        self.mask_width = -(-len(allowed) // 32)
        options = _GPU if jax.default_backend() == "gpu" else None
        self.join = jax.jit(self._join, donate_argnums=0)
        self.decode = jax.jit(self._decode, donate_argnums=1, compiler_options=options)
        self.move = jax.jit(self._move, static_argnums=1)
        self.make_key = jax.jit(completion_key)

    def empty(self, shape: Shape) -> State:
        """A batch without completions."""
        text, (rows, length, columns) = self.config.text, shape
        heads, dim = text.num_kv_heads, text.head_dim
        prompt = jnp.zeros((text.num_layers, rows, heads, length, dim), self.dtype)
        own = jnp.zeros((text.num_layers, rows, 1, heads, columns, dim), self.dtype)
        whole: Any = functools.partial(jnp.zeros, (rows,))
        return State(
            keys=prompt, values=jnp.copy(prompt), valid=jnp.zeros((rows, length), bool),
            own_keys=own, own_values=jnp.copy(own),
            position=whole(jnp.int32), token=whole(jnp.int32), length=whole(jnp.int32),
            end=jnp.full(rows, EMPTY, jnp.int32),
            wish=Wish(jnp.zeros((rows, 2), jnp.uint32), whole(jnp.int32), whole(), whole() + 1),
        )  # fmt: skip

    # What follows is compiled.

    def _join(self, state: State, prompt: Prompt, row, wish: Wish, mask, is_ranked):
        """Puts a completion into a row and draws its first token; mask uint32 [1, ceil(V / 32)].

        Returns the state, and what is told of the token, and the end, of that row.
        """
        wish = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype)[None], wish, state.wish)
        zero = jnp.zeros(1, jnp.int32)
        live = jnp.full(1, LIVE, jnp.int32)
        told, length, end = self._advance(prompt.logits, wish, zero, live, mask, is_ranked)
        room = state.keys.shape[3] - prompt.keys.shape[3]

        def put(old, new, dim):
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), row, dim)

        widths = [(0, 0)] * 3 + [(0, room), (0, 0)]
        state = state._replace(
            keys=put(state.keys, jnp.pad(prompt.keys, widths), 1),
            values=put(state.values, jnp.pad(prompt.values, widths), 1),
            valid=put(state.valid, jnp.pad(prompt.valid, ((0, 0), (0, room))), 0),
            position=put(state.position, prompt.position, 0),
            token=put(state.token, told.token, 0),
            length=put(state.length, length, 0),
            end=put(state.end, end, 0),
            wish=jax.tree.map(lambda old, new: put(old, new, 0), state.wish, wish),
        )
        return state, jax.tree.map(lambda leaf: leaf[0], told), end[0]

    def _advance(self, logits, wish: Wish, length, end, mask, is_ranked):
        """Draws the next token of each live row from logits [B, V].

        Returns what is told of the tokens, and lengths and ends [B].
        """
        allowed = self.allowed & unpack(mask, logits.shape[-1])
        drawn = draw_each(logits, wish.key, length, wish.temperature, wish.top_p, allowed)
        shape = (len(logits), NUM_TOP)
        top = jax.lax.cond(
            is_ranked, rank,
            lambda *_: (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)),
            logits, wish.temperature,
        )  # fmt: skip
        live = end == LIVE
        good = live & ~drawn.failed
        token = jnp.where(good, drawn.token, self.sampling.pad_id)
        length = length + good
        new = jnp.where(length >= wish.limit, FULL, LIVE)
        new = jnp.where(jnp.isin(token, np.array(self.sampling.stop_ids)), STOPPED, new)
        new = jnp.where(drawn.failed, FAILED, new)
        told = Told(token, jnp.where(good, drawn.logprob, 0.0), *top)
        return told, length, jnp.where(live, new, end)

    def _decode(self, params, state: State, column, stopped, mask, is_ranked, limit):
        """Draws up to `limit` tokens of each live row, at most `chunk`.

        column: int32, where the ring is written first. stopped: bool [B], rows whose client has
        gone, which draw no more. mask: uint32 [B, ceil(V / 32)], the ids that each row may draw,
        all of which a grammar changes by token, so that the limit is then 1. is_ranked: bool,
        whether the likeliest ids are told. Returns the state, how many steps there were, and what
        is told [B, chunk, ...].
        """
        model = family.bind(self.config, params)
        columns = state.own_keys.shape[4]
        state = state._replace(end=jnp.where(stopped, EMPTY, state.end))

        def busy(carry):
            done, state, _ = carry
            return (done < limit) & (state.end == LIVE).any()

        def turn(carry):
            done, state, so_far = carry
            index = (column + done) % columns
            age = (index - jnp.arange(columns)) % columns
            seen = age < state.length[:, None, None]  # [B, 1, C]
            cache = KVCache(*state[:5])
            x = model.embed(state.token[:, None], None, None)
            place = (state.position + state.length - 1)[:, None]
            hidden, cache = model.text.decode(x, place, cache, index, seen)
            logits = model.logits(hidden)[:, 0]
            told, length, end = self._advance(
                logits, state.wish, state.length, state.end, mask, is_ranked
            )
            so_far = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, done, 1),
                so_far, told,
            )  # fmt: skip
            state = state._replace(
                own_keys=cache.suffix_k, own_values=cache.suffix_v,
                token=told.token, length=length, end=end,
            )  # fmt: skip
            return done + 1, state, so_far

        shape, more = (len(state.token), self.chunk), (NUM_TOP,)
        kinds = ((), jnp.int32), ((), jnp.float32), (more, jnp.int32), (more, jnp.float32)
        so_far = Told(*[jnp.zeros(shape + extra, kind) for extra, kind in kinds])
        done, state, so_far = jax.lax.while_loop(busy, turn, (0, state, so_far))
        return state, done, so_far

    def _move(self, state: State, shape: Shape, rows, held, last) -> State:
        """Takes rows of one batch into a batch of another shape.

        rows: int32 [shape.rows], where each new row comes from; held: bool, whether it holds a
        completion. last: int32, the column that was written last, which becomes the last one.
        """
        old, width = state.own_keys.shape[4], state.keys.shape[3]
        back = jnp.arange(shape.columns)[::-1]
        columns = (last - back) % old
        state = jax.tree.map(lambda leaf: leaf[rows], state._replace(
            keys=jnp.moveaxis(state.keys, 1, 0), values=jnp.moveaxis(state.values, 1, 0),
            own_keys=jnp.moveaxis(state.own_keys, 1, 0),
            own_values=jnp.moveaxis(state.own_values, 1, 0),
        ))  # fmt: skip

        def fit(leaf, dim):
            leaf = jax.lax.slice_in_dim(leaf, 0, min(width, shape.length), axis=dim)
            widths = [(0, 0)] * leaf.ndim
            widths[dim] = (0, shape.length - leaf.shape[dim])
            return jnp.pad(leaf, widths)

        def turn(leaf):
            return jnp.take(jnp.moveaxis(leaf, 0, 1), columns, axis=4)

        return state._replace(
            keys=fit(jnp.moveaxis(state.keys, 0, 1), 3),
            values=fit(jnp.moveaxis(state.values, 0, 1), 3),
            valid=fit(state.valid, 1),
            own_keys=turn(state.own_keys), own_values=turn(state.own_values),
            end=jnp.where(held, state.end, EMPTY),
        )  # fmt: skip
