"""The three masks of attention: which tokens of a row a token may see.

A mask is a pytree: what depends on the data (segment ids, validity) is an array, and what a kernel
must know to skip blocks (the place of the prompt and of each completion) is static. `allowed()`
writes a mask out as booleans, which only the dense paths do.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


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
