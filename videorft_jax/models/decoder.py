"""The text decoder that every family has.

Blocks are pre-norm with grouped-query attention and a SwiGLU MLP. A family says how q, k and v are
made (`attention`, a module class) and which axis of the M-RoPE positions each rotary frequency
reads (`axes`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from videorft_jax.models import layers
from videorft_jax.models.attention import chunked
from videorft_jax.models.attention.decode import decode_attention
from videorft_jax.models.attention.dispatch import attention
from videorft_jax.models.attention.masks import Causal, Mask, SharedPrefix
from videorft_jax.models.attention.pieces import attend_in_pieces, keep_own_places
from videorft_jax.models.compute_plan import ComputePlan
from videorft_jax.models.kv_cache import KVCache, write
from videorft_jax.models.rotary import frequencies
from videorft_jax.ops.masked import at_masked


class Injection(NamedTuple):
    """What is added to hidden states after the first J layers (DeepStack)."""

    visual: jax.Array  # [B, Z, (1 + J) D], visual tokens with the features of each layer behind
    index: jax.Array  # int32 [B, P], which visual token stands at each of the first P positions

    def num_layers(self, dim: int) -> int:
        """J, of hidden states with `dim` values."""
        return self.visual.shape[-1] // dim - 1

    def add(self, x, layer):
        """x [B, T, D] after `layer`, int32, with what that layer is given, if any."""
        dim, length = x.shape[-1], x.shape[1]
        count = self.num_layers(dim)

        def added(x):
            rows = jax.lax.dynamic_slice_in_dim(self.visual, (layer + 1) * dim, dim, axis=2)
            rows = jnp.take_along_axis(rows, jnp.maximum(self.index, 0)[..., None], axis=1)
            rows = jnp.where(self.index[..., None] >= 0, rows, 0).astype(x.dtype)
            return x + jnp.pad(rows, ((0, 0), (0, length - rows.shape[1]), (0, 0)))

        return jax.lax.cond(layer < count, added, lambda x: x, x)


class TextBlocks(nnx.Module):
    """The weights of L blocks, each with a leading L; a call runs one block on one slice of them.

    `attn` is a family's attention: `attn.project(x, cos, sin)` gives rotated q [..., T, N, H],
    rotated k and plain v [..., T, K, H], and `attn.o` [N, H, D] takes the mixed values back.
    """

    def __init__(self, config, attention, rngs: nnx.Rngs):
        self.attn_norm = layers.ones(config.num_layers, config.dim)
        self.mlp_norm = layers.ones(config.num_layers, config.dim)
        self.attn = attention(config, rngs)
        self.mlp = layers.SwigluMlp(
            config.num_layers, config.dim, config.mlp_dim, biased=False, rngs=rngs
        )
        self.eps = config.norm_eps

    def __call__(self, x, cos, sin, attend):
        """One block: x [..., T, D] -> [..., T, D].

        `attend(q, k, v)` returns the mixed values [..., T, N, H] and whatever else the caller wants
        out of the layer (keys for a cache, or None), which is returned beside x.
        """
        with jax.named_scope("attention"):
            normed = layers.rms_norm(x, self.attn_norm[...], self.eps)
            projected = self.attn.project(normed, cos, sin)
            out, extra = attend(*(checkpoint_name(part, "projection") for part in projected))
            out = layers.linear(out, self.attn.o[...], inner=2)
            x = x + checkpoint_name(out, "projection")
        with jax.named_scope("mlp"):
            normed = layers.rms_norm(x, self.mlp_norm[...], self.eps)
            x = x + self.mlp(normed, lambda gate: checkpoint_name(gate, "gate"))
        return layers.shard_rows(x), extra


class Text(nnx.Module):
    """Embedding [V, D], L blocks, final norm and head [V, D].

    It has four ways to run: a call over whole rows (training and scoring), `prefill` (the same,
    which also returns keys and values), `extend` (`prefill` of the tokens behind a beginning whose
    keys and values are known) and `decode` (one token of each completion against a cache). All
    give the same hidden states for the same token. `axes` int [H / 2] names the axis of the
    positions (0 time, 1 height, 2 width) that each rotary frequency reads.
    """

    def __init__(self, config, attention, axes: np.ndarray, rngs: nnx.Rngs):
        self.config = config
        self.axes = tuple(int(axis) for axis in axes)
        self.embed = layers.weight(rngs, config.vocab_size, config.dim)
        self.layers = TextBlocks(config, attention, rngs)
        self.final_norm = layers.ones(config.dim)
        if not config.tied:
            self.head = layers.weight(rngs, config.vocab_size, config.dim)

    @property
    def output_weight(self) -> jax.Array:
        """The head [V, D], which is the embedding itself where the two are tied."""
        return (self.embed if self.config.tied else self.head)[...]

    def __call__(
        self,
        x,
        positions,
        mask: Mask,
        *,
        injection: Injection | None = None,
        needed=None,
        plan: ComputePlan,
        remat: str = "none",
    ) -> jax.Array:
        """Embeddings x [B, T, D], positions int32 [B, 3, T] -> final hidden states [B, T, D].

        injection: what is added after the first layers, in a family that does so.
        needed: bool [B, T], the positions whose hidden states are read; None: all. Where the plan
        says so, the last layer leaves out the others, and their hidden states are 0.
        """
        cos, sin = self._rotary(positions, x.dtype, plan.unroll)
        # In a short row there is little to leave out.
        partly = needed is not None and x.shape[1] > 2 * plan.head_chunk and plan.skip_last_layer

        def attend(q, k, v):
            return _mix(q, k, v, mask, plan), None

        stop = self.config.num_layers - 1 if partly else None
        x, _ = self._scan(x, cos, sin, attend, injection, plan, remat, stop)
        if partly:
            x = self._last_layer(x, cos, sin, mask, needed, plan.head_chunk)
            if injection is not None:
                x = injection.add(x, self.config.num_layers - 1)
        return layers.rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def before_completions(
        self,
        x,
        positions,
        mask: SharedPrefix,
        valid,
        *,
        injection: Injection | None = None,
        plan: ComputePlan,
        remat: str = "none",
    ) -> jax.Array:
        """Computes the final hidden states that predict the tokens of completions: x [B, T, D] of
        rows `[prompt | R completions]`, positions int32 [B, 3, T] -> [B, R * C, D].

        valid: bool [B, P], the tokens of the prompts, the last of which stands before the first
        token of every completion. Where the plan says so, the last layer leaves the rest of the
        prompt out.
        """
        cos, sin = self._rotary(positions, x.dtype, plan.unroll)
        last = self.config.num_layers - 1
        added = 0 if injection is None else injection.num_layers(x.shape[-1])
        partly = plan.skip_last_layer and added <= last

        def attend(q, k, v):
            return _mix(q, k, v, mask, plan), None

        stop = last if partly else None
        x, _ = self._scan(x, cos, sin, attend, injection, plan, remat, stop)
        before = functools.partial(_stand_before, mask, valid)
        if not partly:
            return before(layers.rms_norm(x, self.final_norm[...], self.config.norm_eps))
        block = layers.take_layer(self.layers, last)

        def project(x, cos, sin):
            return block.attn.project(layers.rms_norm(x, block.attn_norm[...], block.eps), cos, sin)

        _, keys, values = project(x, cos, sin)
        x, cos, sin = before(x), before(cos), before(sin)
        mixed = chunked.attend_before(project(x, cos, sin)[0], keys, values, mask)
        x, _ = block(x, cos, sin, lambda *_: (mixed, None))
        return layers.rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def _scan(self, x, cos, sin, attend, injection, plan, remat="none", stop=None, is_whole=False):
        """The layers up to `stop`: hidden states, and what `attend` returned with a leading L."""

        def step(block, x, layer):
            block = layers.gathered(block) if is_whole else block
            with jax.named_scope("text_block"):
                x, extra = block(x, cos, sin, attend)
            return (x if injection is None else injection.add(x, layer)), extra

        number = None if injection is None else jnp.arange(self.config.num_layers)
        return layers.scan_layers(
            step, self.layers, layers.shard_rows(x), number, remat, unroll=plan.unroll, stop=stop
        )

    def _last_layer(self, x, cos, sin, mask, needed, chunk):
        """Keys and values of every position, and all else at the positions that are needed."""
        block = layers.take_layer(self.layers, self.config.num_layers - 1)
        normed = layers.rms_norm(x, block.attn_norm[...], block.eps)
        _, keys, values = block.attn.project(normed, cos, sin)

        def finish(x, cos, sin, places):
            def attend(q, *_):
                return chunked.attention(q, keys, values, mask, places), None

            return block(x, cos, sin, attend)[0]

        places = jnp.broadcast_to(jnp.arange(x.shape[1]), needed.shape)
        return at_masked(finish, needed, needed.sum(1).max(), chunk, x, cos, sin, places)

    def prefill(
        self,
        x,
        positions,
        mask: Mask,
        *,
        injection: Injection | None = None,
        plan: ComputePlan,
        is_whole: bool = False,
        copies: int = 1,
    ):
        """As a call, and keys and values of every layer, head-major [L, B, K, T, H].

        is_whole: whether devices that split the weights gather those of a layer for its turn;
        copies: how many devices share a head, each of which keeps a part of the places.
        """
        cos, sin = self._rotary(positions, x.dtype, plan.unroll)

        def attend(q, k, v):
            kept = [keep_own_places(jnp.moveaxis(part, 1, 2), copies) for part in (k, v)]
            return attention(q, k, v, mask, plan.attention), kept

        x, (keys, values) = self._scan(x, cos, sin, attend, injection, plan, is_whole=is_whole)
        return layers.rms_norm(x, self.final_norm[...], self.config.norm_eps), keys, values

    def extend(
        self, x, positions, start, keys, values, mask: Causal, *, injection: Injection | None = None
    ):
        """As `prefill`, of T tokens behind a beginning of which keys and values are known.

        x [B, T, D]; positions int32 [B, 3, T]; start int32 [B], where the tokens begin in their
        row, so that start + T <= S; keys and values [L, B, K, S, H], of which only the columns
        before `start` are read; mask: of the whole rows [B, S]. Returns final hidden states
        [B, T, D], and keys and values with those of the tokens in their columns.
        """
        cos, sin = self._rotary(positions, x.dtype)
        places = start[:, None] + jnp.arange(x.shape[1])

        def put(old, new):
            def put_row(old, new, start):
                return jax.lax.dynamic_update_slice_in_dim(old, new, start, 1)

            return jax.vmap(put_row)(old, jnp.moveaxis(new, 1, 2).astype(old.dtype), start)

        def step(block, x, slices):
            layer, *before = slices

            def attend(q, *new):
                written = [put(*pair) for pair in zip(before, new, strict=True)]
                whole = [jnp.moveaxis(part, 1, 2) for part in written]
                return chunked.attention(q, *whole, mask, places), written

            with jax.named_scope("text_block"):
                x, written = block(x, cos, sin, attend)
            return (x if injection is None else injection.add(x, layer)), written

        number = jnp.arange(self.config.num_layers)
        x, (keys, values) = layers.scan_layers(step, self.layers, x, (number, keys, values))
        return layers.rms_norm(x, self.final_norm[...], self.config.norm_eps), keys, values

    def take_apart(self, prefix, unroll: int):
        """Gives each layer's block and its part of `prefix` (keys and values [L, B, K, S, H]) to
        `decode`; None for more than `unroll` layers, which are looped over.

        A loop copies a layer's weights out of the stack in every turn, and a CPU copies them as
        fast as it multiplies with them."""
        count = self.config.num_layers
        if count > unroll:
            return None
        parts = [jax.tree.map(lambda x, i=i: x[i], prefix) for i in range(count)]
        return [(layers.take_layer(self.layers, i), part) for i, part in enumerate(parts)]

    def give_apart(self, weights):
        """As `take_apart`, of each layer's `weights`; the prefix is read where it lies."""
        graphdef, _ = nnx.split(self.layers)
        return [(nnx.merge(graphdef, own), None) for own in weights]

    def decode(self, x, positions, cache: KVCache, index, seen=None, apart=None, copies: int = 1):
        """One token of each completion.

        x [B, R, D]; positions int32 [B, R], the same on all three axes; `index` int32, the place
        of the token in the suffix; seen: bool [B, R, C], the places of the suffix that a completion
        reads, by default those up to `index`; apart: what `take_apart` or `give_apart` gave;
        copies: how many devices share a head, each of which keeps a part of the places. Returns
        final hidden states [B, R, D] and the cache with the token's keys and values written at
        `index`.
        """
        cos, sin = self._rotary(
            jnp.broadcast_to(positions[:, None], (len(x), 3, x.shape[1])), x.dtype
        )
        if seen is None:
            seen = jnp.arange(copies * jax.tree.leaves(cache.suffix_k)[0].shape[4]) <= index

        def step(block, carry, slices):
            x, suffix_k, suffix_v = carry
            layer, *prefix = slices

            def attend(q, k, v):
                written = tuple(
                    write(suffix, new, layer, index, copies)
                    for suffix, new in ((suffix_k, k), (suffix_v, v))
                )
                own = jax.tree.map(
                    lambda part: jax.lax.dynamic_index_in_dim(part, layer, 0, keepdims=False),
                    written,
                )
                if copies > 1:
                    valid = cache.prefix_valid
                    return attend_in_pieces(q, prefix, valid, own, seen, copies), written
                read = seen[None, None] if seen.ndim == 1 else seen
                return decode_attention(q, prefix, cache.prefix_valid, own, read), written

            with jax.named_scope("text_block"):
                x, (suffix_k, suffix_v) = block(x, cos, sin, attend)
            return (x, suffix_k, suffix_v), None

        carry, prefixes = (x, cache.suffix_k, cache.suffix_v), (cache.prefix_k, cache.prefix_v)
        if apart is None:
            number = jnp.arange(self.config.num_layers)
            carry, _ = layers.scan_layers(step, self.layers, carry, (number, *prefixes))
        else:
            for layer, (block, prefix) in enumerate(apart):
                if prefix is None:
                    prefix = jax.tree.map(lambda x, layer=layer: x[layer], prefixes)
                carry, _ = step(block, carry, (layer, *prefix))
        x, suffix_k, suffix_v = carry
        x = layers.rms_norm(x, self.final_norm[...], self.config.norm_eps)
        return x, cache._replace(suffix_k=suffix_k, suffix_v=suffix_v)

    def _rotary(self, positions, dtype, unroll=0):
        """cos, sin [B, T, H / 2]; angles in float32, then cast, as the reference does."""
        config = self.config
        scaling = config.rope_scaling
        frequency = frequencies(config.rope_theta, config.head_dim, scaling)
        angles = positions[:, np.array(self.axes)].astype(jnp.float32) * frequency[:, None]
        angles = jnp.moveaxis(angles, 1, 2)
        scale = 1.0 if scaling is None else scaling.attention_factor
        return layers.rotary_waves(angles, dtype, scale, unroll=unroll)


def _stand_before(mask: SharedPrefix, valid, x):
    """Gives what stands before each token of the completions: x [B, T, ...] -> [B, R * C, ...]."""
    rows, rest, size = len(x), x.shape[2:], mask.completion_length
    end = jnp.expand_dims(valid.sum(1) - 1, range(1, x.ndim))
    last = jnp.take_along_axis(x, end, axis=1)
    inside = x[:, mask.prompt_length :].reshape(rows, mask.num_rollouts, size, *rest)
    first = jnp.broadcast_to(last[:, None], (rows, mask.num_rollouts, 1, *rest))
    before = jnp.concatenate([first, inside[:, :, :-1]], axis=2)
    return before.reshape(rows, -1, *rest)


def _mix(q, k, v, mask, plan):
    """What attention returns, with the name by which a policy of remat may keep it."""
    out = attention(q, k, v, mask, plan.attention)
    # Splash names it itself, in the order of dims in which its backward pass reads it.
    return out if plan.attention == "splash" else checkpoint_name(out, "attention")
