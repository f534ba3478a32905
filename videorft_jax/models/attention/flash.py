"""Flash attention on GPU through `jax.nn.dot_product_attention`.

The row of a group takes two calls: one for the prompt by itself, and one in which each completion
is a row of its own that sees the prompt and itself. The prompt's keys and values are repeated for
the second call, which costs little, as a token has few of them beside its queries. One call over
prompt and one over completions, merged by their log-sum-exps, would repeat nothing, but JAX
rounds cuDNN's log-sum-exp to the dtype of the values (in bfloat16 that costs twice the error of
everything else) and drops its cotangent without a word.

The kernels take no segment ids. Padding must stand at the right, as the loader leaves it.
"""

import functools

import jax
import jax.numpy as jnp

from videorft_jax.models.attention.masks import Full, Mask, SharedPrefix


def attention(q, k, v, mask: Mask, *, backend: str = "cudnn") -> jax.Array:
    """Computes attention: q [B, T, N, H], k, v [B, S, K, H] -> [B, T, N, H]; see `dispatch`.

    `backend` "xla" runs the same arithmetic on any platform, for tests.
    """
    call = functools.partial(jax.nn.dot_product_attention, implementation=backend)
    if isinstance(mask, SharedPrefix):
        return _group(call, q, k, v, mask)
    if isinstance(mask, Full):
        allowed = jnp.broadcast_to(mask.allowed(), (*q.shape[:2], k.shape[1]))
        return call(q, k, v, mask=allowed[:, None])
    return _packed(call, q, k, v, mask.segment_ids)


def _packed(call, q, k, v, ids):
    same = ids[:, None, :, None] == ids[:, None, None, :]
    return call(q, k, v, mask=same, is_causal=True)


def _group(call, q, k, v, mask):
    prompt, length, rollouts = mask.prompt_length, mask.completion_length, mask.num_rollouts
    rows, ids = q.shape[0] * rollouts, mask.segment_ids[:, :prompt]
    first = _packed(call, *(x[:, :prompt] for x in (q, k, v)), ids)

    def apart(x):
        return x[:, prompt:].reshape(rows, length, *x.shape[2:])

    def with_prompt(x):
        return jnp.concatenate([jnp.repeat(x[:, :prompt], rollouts, axis=0), apart(x)], axis=1)

    query, key = jnp.arange(length)[:, None] + prompt, jnp.arange(prompt + length)
    real = jnp.pad(ids > 0, ((0, 0), (0, length)), constant_values=True)
    seen = (key <= query) & jnp.repeat(real, rollouts, axis=0)[:, None, None]
    rest = call(apart(q), with_prompt(k), with_prompt(v), mask=seen)
    return jnp.concatenate([first, rest.reshape(q.shape[0], -1, *q.shape[2:])], axis=1)
