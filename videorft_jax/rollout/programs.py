"""The three compiled programs of a rollout, and the parameters' way into them.

*Prefill* encodes the clips, runs the prompts and draws the first tokens. *Decode* is a loop on the
device, one token of every completion per turn. *Compact* moves live completions into a smaller
batch. Each is compiled once per shape and the compiles are counted.
"""

import collections
import functools
import logging
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from videorft_jax.models.attention.dispatch import Causal
from videorft_jax.models.int8 import Int8, quantise, quantise_weights, quantised_formats
from videorft_jax.models.lora import resolve
from videorft_jax.models.qwen2_5_vl import model as vlm
from videorft_jax.models.qwen2_5_vl.config import ModelConfig
from videorft_jax.models.qwen2_5_vl.text import KVCache
from videorft_jax.parallel import sharding
from videorft_jax.rollout.compaction import Bucket
from videorft_jax.rollout.sampling import SamplingConfig, completion_key, draw

log = logging.getLogger(__name__)

LIVE, STOPPED, FULL, FAILED, EMPTY = range(5)  # how a completion ended; EMPTY: no completion
_ROWS = ("data", "fsdp")
# [L, D, K, H], wanted as [L, K, D, H] by XLA for TPU, which would copy them on every call.
_HEAD_MAJOR = ("text/layers/attn/k", "text/layers/attn/v")
# Triton's products need a layer's weights in a place of their own, and copy them out of the stack;
# cuBLAS reads them where they lie: 7.7 instead of 13.9 ms a step at 7B on an H200.
_OPTIONS = {("decode", "gpu"): {"xla_gpu_enable_triton_gemm": False}}
_SHARED, _OWN = P(None, _ROWS, "tensor"), P(None, _ROWS, None, "tensor")  # kv heads over tensor


class Slots(NamedTuple):
    """State of the completions of a batch bucket, each [B, R]."""

    token: jax.Array  # int32, drawn last and not yet run
    position: jax.Array  # int32, M-RoPE position of the completion's first token
    key: jax.Array  # uint32 [B, R, 2]
    limit: jax.Array  # int32, its maximum length
    length: jax.Array  # int32, tokens drawn
    end: jax.Array  # int32, LIVE or how it ended


class Report(NamedTuple):
    """What every process needs to know after a program; replicated."""

    steps: jax.Array
    length: jax.Array
    end: jax.Array


class Programs:
    """Compiled for one model, one way of sampling and one mesh; arguments as in `RolloutEngine`."""

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
        self.dtype, self.attention = jnp.dtype(dtype), attention
        self.int8_weights, self.int8_cache = int8_weights, int8_cache
        self.shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.compiles = collections.Counter()
        self._made: dict[Any, Any] = {}
        self._rows, self._all = NamedSharding(mesh, P(_ROWS)), NamedSharding(mesh, P())
        shared, own = NamedSharding(mesh, _SHARED), NamedSharding(mesh, _OWN)
        self._cache = (shared, shared, self._rows), (own, own)
        places = self._rows.addressable_devices_indices_map((self.shards,)).values()
        self.local_shards = len(set(map(str, places)))

    # Parameters

    @functools.cached_property
    def prepare(self):
        """The program that makes of parameters what the engine wants: whole on every part of data
        and fsdp, split over tensor, in `dtype` (or int8). Free the result before training.

        Towers go a layer at a time: beside the result there is room for one that is being gathered,
        not for all of them.
        """
        return jax.jit(self._convert, out_shardings=self.param_formats)

    def _convert(self, params):
        made = {}
        for tower, tree in params.items():
            rest = {name: part for name, part in tree.items() if name != "layers"}
            made[tower] = self._quantised({tower: resolve(self._cast(rest))})[tower]
            one = functools.partial(self._convert_layer, tower)
            made[tower]["layers"] = jax.lax.map(one, tree["layers"])
        return made

    def _convert_layer(self, tower, layer):
        layer = jax.tree.map(lambda leaf: leaf[None], resolve(self._cast(layer)))
        layer = self._quantised({tower: {"layers": layer}})[tower]["layers"]
        places = jax.tree.map(
            lambda held: held.sharding if isinstance(held, Format) else held,
            self.param_formats[tower]["layers"],
        )
        layer = jax.lax.with_sharding_constraint(layer, places)
        return jax.tree.map(lambda leaf: leaf[0], layer)

    def _cast(self, params):
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)

    def _quantised(self, params):
        return quantise_weights(params) if self.int8_weights else params

    @functools.cached_property
    def param_formats(self):
        def whole(keys, held):
            held = NamedSharding(self.mesh, P(*(None if a == "fsdp" else a for a in held.spec)))
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            if self.mesh.devices.flat[0].platform == "tpu" and path in _HEAD_MAJOR:
                return Format(Layout((0, 2, 1, 3)), held)
            return held

        tree = vlm.abstract_params(self.config)
        shardings = sharding.state_shardings(tree, self.mesh, "rollout")
        formats = jax.tree_util.tree_map_with_path(whole, shardings)
        return quantised_formats(formats) if self.int8_weights else formats

    # Shapes in, executables out; or what an executable is made of, where `only_lower` says so

    def prefill(self, batch_shapes, bucket: Bucket, *, only_lower: bool = False):
        """batch_shapes: tree of shapes (Batch, uids [B], limits [B, R], visual tokens or None)."""
        length = batch_shapes[0].tokens.shape[1]
        key = (length, bucket, batch_shapes[0].patches.shape[1:3], batch_shapes[3] is not None)
        args = (self.param_shapes, batch_shapes, *[jax.ShapeDtypeStruct((), jnp.uint32)] * 2)
        into = (self.param_formats, self._rows, self._all, self._all)
        out = (*self._cache, self._rows, self._rows, self._all)
        lowered = self._lower(self._run_prompts, args, into, out)
        return lowered() if only_lower else self._compile("prefill", key, lowered)

    def decode(self, length: int, bucket: Bucket, *, only_lower: bool = False):
        """For prompts of `length` tokens; see `_run_completions`."""
        prefix, suffix, slots = self._state_shapes(length, bucket)
        scalars = [jax.ShapeDtypeStruct((), jnp.int32)] * 2
        args = (self.param_shapes, prefix, suffix, slots, *scalars)
        into = (self.param_formats, *self._cache, self._rows, self._all, self._all)
        out = (self._cache[1], self._rows, self._rows, self._all)
        lowered = self._lower(self._run_completions, args, into, out, (2, 3))
        return lowered() if only_lower else self._compile("decode", (length, bucket), lowered)

    def compact(self, length: int, bucket: Bucket, smaller: Bucket, *, only_lower: bool = False):
        """From one batch bucket into another; see `_move`."""
        sizes = (smaller.rows, jnp.int32), (smaller.size, jnp.int32), (smaller.size, bool)
        index = [jax.ShapeDtypeStruct((self.shards, size), kind) for size, kind in sizes]
        args = (*self._state_shapes(length, bucket), *index)
        into = (*self._cache, self._rows, *[self._rows] * 3)
        out = (*self._cache, self._rows)
        lowered = self._lower(functools.partial(self._move, smaller), args, into, out)
        key = (length, bucket, smaller)
        return lowered() if only_lower else self._compile("compact", key, lowered)

    def _lower(self, function, args, into, out, donated=()):
        def lower():
            jitted = jax.jit(function, in_shardings=into, out_shardings=out, donate_argnums=donated)
            with jax.set_mesh(self.mesh):
                return jitted.lower(*args)

        return lower

    def _compile(self, kind, key, lower):
        if (kind, key) not in self._made:
            started = time.perf_counter()
            platform = self.mesh.devices.flat[0].platform
            with jax.set_mesh(self.mesh):
                lowered = lower()
                self._made[kind, key] = lowered.compile(_OPTIONS.get((kind, platform)))
            self.compiles[kind] += 1
            log.info(
                "rollout: compiled %s %s in %.1f s, program number %d",
                kind, key, time.perf_counter() - started, self.compiles.total(),
            )  # fmt: skip
        return self._made[kind, key]

    @functools.cached_property
    def param_shapes(self):
        return jax.eval_shape(self._convert, vlm.abstract_params(self.config))

    def _state_shapes(self, length, bucket):
        text, rows, slots = self.config.text, self.shards * bucket.rows, bucket.slots

        def cached(*shape):
            if not self.int8_cache:
                return jax.ShapeDtypeStruct(shape, self.dtype)
            scale = jax.ShapeDtypeStruct(shape[:-1], self.dtype)
            return Int8(jax.ShapeDtypeStruct(shape, jnp.int8), scale)

        outer, inner = (text.num_layers, rows), text.num_kv_heads
        prefix = cached(*outer, inner, length, text.head_dim)
        suffix = cached(*outer, slots, inner, self.sampling.max_new_tokens, text.head_dim)
        valid = jax.ShapeDtypeStruct((rows, length), bool)
        per_slot = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
        state = Slots(*[per_slot] * len(Slots._fields))
        state = state._replace(key=jax.ShapeDtypeStruct((rows, slots, 2), jnp.uint32))
        return (prefix, prefix, valid), (suffix, suffix), state

    # What is compiled

    def _run_prompts(self, params, inputs, seed, step):
        """Clips, prompts and first tokens: prefix, suffix, slots, drawn, report."""
        batch, uids, limits, visual = inputs
        model = vlm.bind(self.config, params)
        if visual is None and batch.patches.size:
            visual = model.encode_vision(batch, attention=self.attention)
        x = model.embed(batch.tokens, visual, batch.visual_index)
        mask = Causal(batch.segment_ids)
        hidden, *prefix = model.text.prefill(
            x, batch.positions, mask, attention_path=self.attention
        )
        valid = batch.segment_ids > 0
        last = valid.sum(1) - 1
        logits = model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))

        rollouts = jnp.arange(self.sampling.num_rollouts)
        keys = jax.vmap(completion_key, (None, None, None, 0))
        following = jnp.where(valid[:, None], batch.positions, 0).max((1, 2)) + 1
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
        bucket = Bucket(len(limits) // self.shards, limits.shape[1])
        suffix = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            self._state_shapes(batch.tokens.shape[1], bucket)[1],
        )
        drawn = jax.tree.map(lambda leaf: leaf[..., None], drawn)
        return (*prefix, valid), suffix, slots, drawn, Report(1, slots.length, slots.end)

    def _advance(self, slots, logits, place):
        """Draws the token at `place` of each live completion from logits [B, R, V]."""
        drawn = draw(logits, slots.key, place, self.sampling)
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
        """Tokens `start`, `start` + 1, ... of each completion, until the buffer is full or no shard
        has more than `wake` live ones: suffix, slots, drawn [B, R, chunk], report."""
        model = vlm.bind(self.config, params)

        def busy(state):
            done, _, slots, _ = state
            live = (slots.end == LIVE).reshape(self.shards, -1).sum(1).max()
            return (done < self.chunk) & (live > wake)

        def turn(state):
            done, suffix, slots, drawn = state
            before = start + done - 1  # place of the token that is run now
            cache = KVCache(*prefix, *suffix)
            x = model.embed(slots.token, None, None)
            hidden, cache = model.text.decode(x, slots.position + before, cache, before)
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
        """Gathers rows and slots, per shard; places that `held` says are empty stay so."""

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
