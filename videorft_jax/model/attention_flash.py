"""Flash attention on GPU through `jax.nn.dot_product_attention`.

A shared-prefix row needs two calls merged by their log-sum-exp: completions against the prompt,
and each completion against itself. cuDNN's backward pass drops the cotangent of the log-sum-exp
and would train with silently wrong gradients, so the merge has a backward pass of its own, built
only from calls whose gradients are right.

The kernels take no segment ids. Padding must stand at the right, as the loader leaves it, and
then needs no mask: under a causal mask no real token sees what follows it.
"""

import functools

import jax
import jax.numpy as jnp

from videorft_jax.model.attention import Causal, Full, Mask, SharedPrefix


def attention(q, k, v, mask: Mask, *, backend: str = "cudnn") -> jax.Array:
    """q [B, T, N, H], k, v [B, S, K, H] -> [B, T, N, H]; see `attention.attention`.

    `backend` "xla" runs the same arithmetic on any platform, for tests.
    """
    call = functools.partial(jax.nn.dot_product_attention, implementation=backend)
    if isinstance(mask, SharedPrefix):
        return _group(q, k, v, mask, backend)
    if isinstance(mask, Full):
        allowed = jnp.broadcast_to(mask.allowed(), (*q.shape[:2], k.shape[1]))
        return call(q, k, v, mask=allowed[:, None])
    ids = mask.segment_ids
    packed = ids[:, None, :, None] == ids[:, None, None, :]
    return call(q, k, v, mask=packed, is_causal=True)


def _group(q, k, v, mask, backend):
    prompt, length, rollouts = mask.prompt_length, mask.completion_length, mask.num_rollouts
    first = attention(
        q[:, :prompt], k[:, :prompt], v[:, :prompt], Causal(mask.segment_ids[:, :prompt]),
        backend=backend,
    )  # fmt: skip
    prompt_lengths = mask.segment_ids[:, :prompt].sum(1, dtype=jnp.int32)
    own_q, own_k, own_v = (x[:, prompt:].reshape(-1, length, *x.shape[2:]) for x in (q, k, v))
    rest = _merged(backend, own_q, k[:, :prompt], v[:, :prompt], own_k, own_v, prompt_lengths)
    return jnp.concatenate([first, rest.reshape(q.shape[0], rollouts * length, *q.shape[2:])], 1)


def _to_prompt(backend, q, k, v, lengths):
    """Completions q [B * R, C, N, H] against prompts k, v [B, S, K, H] of int32 [B] tokens."""
    folded = q.reshape(k.shape[0], -1, *q.shape[2:])
    out, lse = jax.nn.dot_product_attention(
        folded, k, v, key_value_seq_lengths=lengths, implementation=backend, return_residual=True
    )
    return out.reshape(q.shape), lse.reshape(q.shape[:-1])


def _to_own(backend, q, k, v, lengths):
    del lengths
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, implementation=backend, return_residual=True
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _merged(backend, q, prompt_k, prompt_v, k, v, lengths):
    """One softmax over prompt and own keys, from two flash calls."""
    return _merged_forward(backend, q, prompt_k, prompt_v, k, v, lengths)[0]


def _merged_forward(backend, q, prompt_k, prompt_v, k, v, lengths):
    outs, lses = zip(
        _to_prompt(backend, q, prompt_k, prompt_v, lengths),
        _to_own(backend, q, k, v, lengths),
        strict=True,
    )
    total = jnp.logaddexp(*lses)
    weights = [jnp.exp(lse - total)[..., None] for lse in lses]
    out = sum(w * part.astype(jnp.float32) for w, part in zip(weights, outs, strict=True))
    out = out.astype(q.dtype)
    return out, (q, (prompt_k, prompt_v), (k, v), lengths, outs, weights, out)


def _merged_backward(backend, saved, cotangent):
    """Each branch's own backward pass, and the term that the log-sum-exp carries.

    With P the softmax of one branch and w its share of the whole, the derivative of a score is
    w P (dO V^T - dO . O) = P (w dO V^T - w dO . O_branch) + P c,  c = w dO . (O_branch - O).
    The first term is the branch's own backward pass for the cotangent w dO. The second needs
    P c k and its transpose: attention with the keys in place of the values gives both.
    """
    q, *branches, lengths, outs, weights, out = saved
    wide = cotangent.astype(jnp.float32)
    dq, grads = 0.0, []
    for attend, (k, v), branch_out, w in zip(
        (_to_prompt, _to_own), branches, outs, weights, strict=True
    ):

        def mixed(q, k, v, attend=attend):
            return attend(backend, q, k, v, lengths)[0]

        _, backward = jax.vjp(mixed, q, k, v)
        branch_dq, dk, dv = backward((w * wide).astype(q.dtype))
        difference = branch_out.astype(jnp.float32) - out.astype(jnp.float32)
        c = w * (wide * difference).sum(-1, keepdims=True) * q.shape[-1] ** -0.5
        mixed_keys, backward = jax.vjp(lambda values, k=k: mixed(q, k, values), k)
        (extra_dk,) = backward((c * q).astype(q.dtype))
        dq += branch_dq.astype(jnp.float32) + c * mixed_keys
        grads += [dk + extra_dk, dv]
    return dq.astype(q.dtype), *grads, None


_merged.defvjp(_merged_forward, _merged_backward)
