"""The three compiled programs of a rollout.

*Prefill* encodes the clips, runs the prompts and draws the first tokens. *Decode* is a loop on the
device that draws one token of every completion per turn. *Compact* moves live completions into a
smaller batch. Each is compiled once per shape, and the compilations are counted.
"""

import collections
import functools
import logging
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videorft_jax.models.attention.masks import Causal
from videorft_jax.models.compute_plan import choose_plan, compiler_options
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.int8 import Int8, quantise
from videorft_jax.models.kv_cache import KVCache
from videorft_jax.models.vision_language import next_position
from videorft_jax.parallel import sharding
from videorft_jax.rollout.clips import encode
from videorft_jax.rollout.compaction import Grid
from videorft_jax.rollout.heads import count_copies
from videorft_jax.rollout.parameters import Preparation, bind_prepared
from videorft_jax.rollout.sampling import SamplingConfig, completion_key, draw

log = logging.getLogger(__name__)

LIVE, STOPPED, FULL, FAILED, EMPTY = range(5)  # how a slot's completion ended; EMPTY: it has none
_ROWS = ("data", "fsdp")
# Triton's matrix products first copy a layer's weights out of the stack of all layers; cuBLAS reads
# them where they lie. At 7B on an H200 a step takes 7.7 ms instead of 13.9.
_OPTIONS = {("decode", "gpu"): {"xla_gpu_enable_triton_gemm": False}}
# Cached keys and values of prompts [L, B, K, ...] and of completions [L, B, R, K, ...].
_SHARED, _OWN = (
    P(None, _ROWS, "tensor"),
    P(None, _ROWS, None, "tensor"),
)


class Slots(NamedTuple):
    """The state of the completions in a batch grid, each field [B, R]."""

    token: jax.Array  # int32, drawn last and not yet run
    position: jax.Array  # int32, M-RoPE position of the completion's first token
    key: jax.Array  # uint32 [B, R, 2]
    limit: jax.Array  # int32, its maximum length
    length: jax.Array  # int32, tokens drawn
    end: jax.Array  # int32, LIVE or how it ended


class Report(NamedTuple):
    """What every process learns after a program, the same on all devices."""

    steps: jax.Array | int  # tokens drawn of each completion by this call
    length: jax.Array  # int32 [B, R], tokens of each completion so far
    end: jax.Array  # int32 [B, R], LIVE or how it ended


class Programs:
    """The programs for one model, one way of sampling and one mesh; arguments as in
    `RolloutEngine`."""

    def __init__(
        self,
        config: ModelConfig,
        sampling: SamplingConfig,
        mesh,
        *,
        chunk: int,
        dtype,
        attention: str,
        int8_weights: bool,
        int8_cache: bool,
    ):
        self.config, self.sampling, self.mesh, self.chunk = config, sampling, mesh, chunk
        self.dtype, self.plan = jnp.dtype(dtype), choose_plan(attention)
        self.int8_cache = int8_cache
        self.params = Preparation(config, mesh, dtype=self.dtype, int8=int8_weights)
        self.shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.copies = count_copies(config, mesh.shape["tensor"])
        self.compiles: collections.Counter[str] = collections.Counter()
        self._made: dict[Any, Any] = {}
        self._rows, self._all = NamedSharding(mesh, P(_ROWS)), NamedSharding(mesh, P())
        shared, own = NamedSharding(mesh, _SHARED), NamedSharding(mesh, _OWN)
        self._cache = (shared, shared, self._rows), (own, own)

    @property
    def prepare(self):
        """The program that copies parameters into the form that the others read."""
        return self.params.program

    # Each phase has a method that lowers it from shapes alone, which the planner uses, and one that
    # gives the compiled executable, kept by its shapes.

    def lower_prefill(self, batch_shapes, grid: Grid):
        """Lowers the prefill program for a tree of shapes (Batch, uids [B], limits [B, R], visual
        tokens or None)."""
        args = (self.params.shapes, batch_shapes, *[jax.ShapeDtypeStruct((), jnp.uint32)] * 2)
        into = (self.params.formats, self._rows, self._all, self._all)
        out = (*self._cache, self._rows, self._rows, self._all)
        return self._lower("prefill", self._run_prompts, args, into, out)

    def prefill(self, batch_shapes, grid: Grid):
        """Gives the compiled prefill program; arguments as in `lower_prefill`."""
        length, visual = batch_shapes[0].tokens.shape[1], getattr(batch_shapes[3], "shape", None)
        key = (length, grid, batch_shapes[0].patches.shape[1:3], visual)
        return self._compile("prefill", key, self.lower_prefill, batch_shapes, grid)

    def lower_decode(self, length: int, grid: Grid):
        """Lowers the decode program for prompts of `length` tokens; see `_run_completions`."""
        prefix, suffix, slots = self._state_shapes(length, grid)
        scalars = [jax.ShapeDtypeStruct((), jnp.int32)] * 2
        args = (self.params.shapes, prefix, suffix, slots, *scalars)
        into = (self.params.formats, *self._cache, self._rows, self._all, self._all)
        out = (self._cache[1], self._rows, self._rows, self._all)
        return self._lower("decode", self._run_completions, args, into, out, (2, 3))

    def decode(self, length: int, grid: Grid):
        """Gives the compiled decode program; arguments as in `lower_decode`."""
        return self._compile("decode", (length, grid), self.lower_decode, length, grid)

    def lower_compact(self, length: int, grid: Grid, smaller: Grid):
        """Lowers the program that moves completions from one batch grid into another; see
        `_move`."""
        sizes = (smaller.rows, jnp.int32), (smaller.size, jnp.int32), (smaller.size, bool)
        index = [jax.ShapeDtypeStruct((self.shards, size), kind) for size, kind in sizes]
        args = (*self._state_shapes(length, grid), *index)
        into = (*self._cache, self._rows, *[self._rows] * 3)
        out = (*self._cache, self._rows)
        return self._lower("compact", functools.partial(self._move, smaller), args, into, out)

    def compact(self, length: int, grid: Grid, smaller: Grid):
        """Gives the compiled program of `lower_compact`."""
        key = (length, grid, smaller)
        return self._compile("compact", key, self.lower_compact, *key)

    def _lower(self, kind, function, args, into, out, donated=()):
        platform = self.mesh.devices.flat[0].platform
        options = compiler_options(platform) | _OPTIONS.get((kind, platform), {})
        jitted = jax.jit(
            function, in_shardings=into, out_shardings=out, donate_argnums=donated,
            compiler_options=options or None,
        )  # fmt: skip
        with jax.set_mesh(self.mesh):
            return jitted.lower(*args)

    def _compile(self, kind, key, lower, *shapes):
        if (kind, key) not in self._made:
            started = time.perf_counter()
            with jax.set_mesh(self.mesh):
                self._made[kind, key] = lower(*shapes).compile()
            self.compiles[kind] += 1
            log.info(
                "rollout: compiled %s %s in %.1f s, program number %d",
                kind, key, time.perf_counter() - started, self.compiles.total(),
            )  # fmt: skip
        return self._made[kind, key]

    def _state_shapes(self, length, grid):
        text, rows, slots = self.config.text, self.shards * grid.rows, grid.slots

        def cached(*shape):
            if not self.int8_cache:
                return jax.ShapeDtypeStruct(shape, self.dtype)
            values: Any = jax.ShapeDtypeStruct(shape, jnp.int8)
            scale: Any = jax.ShapeDtypeStruct(shape[:-1], self.dtype)
            return Int8(values, scale)

        outer, inner = (text.num_layers, rows), text.num_kv_heads * self.copies
        kept, own = (-(-n // self.copies) for n in (length, self.sampling.max_new_tokens))
        prefix = cached(*outer, inner, kept, text.head_dim)
        suffix = cached(*outer, slots, inner, own, text.head_dim)
        valid = jax.ShapeDtypeStruct((rows, length), bool)
        per_slot: Any = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
        key: Any = jax.ShapeDtypeStruct((rows, slots, 2), jnp.uint32)
        state = Slots(*[per_slot] * len(Slots._fields))._replace(key=key)
        return (prefix, prefix, valid), (suffix, suffix), state

    # The compiled programs follow.

    def _run_prompts(self, params, inputs, seed, step):
        """Runs clips and prompts and draws the first tokens.

        Returns the keys and values of the prompts, the empty ones of the completions, the slots,
        what was drawn and the report.
        """
        batch, uids, limits, visual = inputs
        model = bind_prepared(self.config, params)
        if visual is None and batch.patches.size:
            visual = encode(model, batch, self.mesh, self.plan)
        x = model.embed(batch.tokens, visual, batch.visual_index)
        hidden, *prefix = self._prefill(model, x, batch, visual)
        valid = batch.segment_ids > 0
        last = valid.sum(1) - 1
        logits = model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))

        rollouts = jnp.arange(self.sampling.num_rollouts)
        keys = jax.vmap(completion_key, (None, None, None, 0))
        following = next_position(batch)
        zeros = jnp.zeros_like(limits)
        slots = Slots(
            token=zeros,
            position=jnp.broadcast_to(following[:, None], limits.shape),
            key=jax.vmap(keys, (None, None, 0, None))(seed, step, uids, rollouts),
            limit=limits,
            length=zeros,
            end=jnp.where(limits > 0, LIVE, EMPTY),
        )
        logits = jnp.broadcast_to(logits, (*limits.shape, logits.shape[-1]))
        slots, drawn = self._advance(slots, logits, 0)
        if self.int8_cache:
            prefix = [quantise(part, -1, keep=False) for part in prefix]
        grid = Grid(len(limits) // self.shards, limits.shape[1])
        suffix = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            self._state_shapes(batch.tokens.shape[1], grid)[1],
        )
        drawn = jax.tree.map(lambda leaf: leaf[..., None], drawn)
        return (*prefix, valid), suffix, slots, drawn, Report(1, slots.length, slots.end)

    def _prefill(self, model, x, batch, visual):
        """Runs the embedded prompts; gives final hidden states, keys and values.

        Where the rows divide over all devices, those along tensor take rows of their own and gather
        the weights of a layer, which a computation on so many tokens hides. Split by heads they
        would wait for sums of all hidden states twice a layer.
        """
        is_whole = self.mesh.shape["tensor"] > 1 and len(x) % self.mesh.size == 0
        mesh = sharding.flattened(self.mesh) if is_whole else self.mesh.abstract_mesh
        with jax.sharding.use_abstract_mesh(mesh):
            return model.text.prefill(
                x,
                batch.positions,
                Causal(batch.segment_ids),
                injection=model.injection(visual, batch.visual_index),
                plan=self.plan,
                is_whole=is_whole,
                copies=self.copies,
            )

    def _advance(self, slots, logits, place):
        """Draws the token at `place` of each live completion from logits [B, R, V]."""
        share = functools.partial(jax.lax.with_sharding_constraint, shardings=self._rows)
        parts = self.mesh.shape["tensor"]
        drawn = draw(logits, slots.key, place, self.sampling, parts=parts, share=share)
        live = slots.end == LIVE
        good = live & ~drawn.failed
        token = jnp.where(good, drawn.token, self.sampling.pad_id)
        length = slots.length + good
        end = jnp.where(length >= slots.limit, FULL, LIVE)
        for stop in self.sampling.stop_ids:
            end = jnp.where(token == stop, STOPPED, end)
        end = jnp.where(drawn.failed, FAILED, end)
        slots = slots._replace(token=token, length=length, end=jnp.where(live, end, slots.end))
        return slots, (token, *(jnp.where(good, x, 0.0) for x in drawn[1:3]))

    def _run_completions(self, params, prefix, suffix, slots, start, wake):
        """Draws tokens `start`, `start` + 1, ... of each live completion.

        The loop ends when the buffer of `chunk` tokens is full or no shard has more than `wake`
        live completions. Returns the suffix, the slots, what was drawn [B, R, chunk] and the
        report.
        """
        model = bind_prepared(self.config, params)
        if self.params.is_apart:
            apart = model.text.give_apart(params["text"]["layers"])
        else:
            apart = model.text.take_apart(prefix[:2], self.plan.unroll)

        def busy(state):
            done, _, slots, _ = state
            live = (slots.end == LIVE).reshape(self.shards, -1).sum(1).max()
            return (done < self.chunk) & (live > wake)

        def turn(state):
            done, suffix, slots, drawn = state
            before = start + done - 1  # The token drawn last has this place and is run now.
            cache = KVCache(*prefix, *suffix)
            x = model.embed(slots.token, None, None)
            places = slots.position + before
            hidden, cache = model.text.decode(
                x, places, cache, before, apart=apart, copies=self.copies
            )
            slots, new = self._advance(slots, model.logits(hidden), before + 1)
            drawn = jax.tree.map(
                lambda old, x: jax.lax.dynamic_update_index_in_dim(old, x, done, 2), drawn, new
            )
            return done + 1, (cache.suffix_k, cache.suffix_v), slots, drawn

        shape = (*slots.token.shape, self.chunk)
        drawn = tuple(jnp.zeros(shape, kind) for kind in (jnp.int32, jnp.float32, jnp.float32))
        state = jax.lax.while_loop(busy, turn, (0, suffix, slots, drawn))
        done, suffix, slots, drawn = state
        return suffix, slots, drawn, Report(done, slots.length, slots.end)

    def _move(self, smaller, prefix, suffix, slots, from_row, from_slot, held):
        """Gathers the rows and slots of a smaller batch from those of the present one.

        Every shard gathers from its own. `from_row` int32 [shards, rows] and `from_slot` int32
        [shards, rows * slots] say where from; slots that `held` marks False stay empty.
        """

        def move(prefix, suffix, slots, from_row, from_slot, held):
            keys, values, valid = prefix
            rows, shape = from_row[0], (smaller.rows, smaller.slots)
            prefix = jax.tree.map(lambda leaf: leaf[:, rows], (keys, values))

            def gather(leaf, dim):
                merged = leaf.reshape(*leaf.shape[:dim], -1, *leaf.shape[dim + 2 :])
                taken = jnp.take(merged, from_slot[0], axis=dim)
                return taken.reshape(*leaf.shape[:dim], *shape, *leaf.shape[dim + 2 :])

            suffix = jax.tree.map(lambda leaf: gather(leaf, 1), suffix)
            slots = jax.tree.map(lambda leaf: gather(leaf, 0), slots)
            slots = slots._replace(end=jnp.where(held[0].reshape(shape), slots.end, EMPTY))
            return (*prefix, valid[rows]), suffix, slots

        rows = P(_ROWS)
        state = ((_SHARED, _SHARED, rows), _OWN, rows)
        spread = jax.shard_map(move, in_specs=(*state, rows, rows, rows), out_specs=state)
        return spread(prefix, suffix, slots, from_row, from_slot, held)
