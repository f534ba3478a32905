"""The output head of a language model: log-probabilities of tokens without all logits at once.

The head is applied to the positions that need it and a chunk at a time: logits of a whole row of
8,000 tokens and 152,000 words would take 4.9 GB.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from videorft_jax.ops.masked import CHUNK, at_masked
from videorft_jax.ops.sums import sum_last


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Computes each target's log-probability and the entropy of its distribution, float32 [B, T].

    hidden [B, T, D] are the states that predict targets int32 [B, T]; head [V, D]. Only where
    mask, bool [B, T], is True is the head applied; elsewhere both results are 0. Within a row
    wanted positions are gathered to the front, so that whole chunks without one are skipped; each
    chunk's logits are made again in the backward pass. Log-sum-exp is in float32. Under a mesh the
    rows lie over data and fsdp, as `sharding.batch_sharding` has them.
    """
    most = mask.sum(1).max()
    settings = {"temperature": temperature, "chunk": chunk}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return _token_logprobs(hidden, head, targets, mask, most, **settings)

    def own(hidden, head, *rest):
        # The head is gathered once, and its gradient reduced once, not in every turn of the loop:
        # there it varies over all axes, as what it is multiplied with.
        head = jax.lax.pcast(head, ("data", "fsdp"), to="varying")
        return _token_logprobs(hidden, head, *rest, **settings)

    head = jax.lax.with_sharding_constraint(head, P("tensor", None))
    rows = P(("data", "fsdp"))
    spread = jax.shard_map(
        own,
        in_specs=(rows, P(), rows, rows, P()),
        out_specs=rows,
        axis_names={"data", "fsdp"},  # the vocabulary's shards are left to XLA
    )
    return spread(hidden, head, targets, mask, most)


def _token_logprobs(hidden, head, targets, mask, most, *, temperature, chunk):
    """Scores the rows that one device holds; `most` positions are wanted in a row of any device."""

    def score(hidden, targets):
        return _score(hidden, head, targets, temperature)

    return at_masked(score, mask, most, chunk, hidden, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _score(hidden, head, targets, temperature):
    """Scores one chunk of positions; its logits are the only large array. See `token_logprobs`."""
    return _score_forward(hidden, head, targets, temperature)[0]


def _score_forward(hidden, head, targets, temperature):
    logits = jnp.einsum("BTD,VD->BTV", hidden, head, preferred_element_type=jnp.float32)
    logits = logits / temperature
    peak = logits.max(-1)
    total = peak + jnp.log(sum_last(jnp.exp(logits - peak[..., None])))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    mean_logit = sum_last(jnp.exp(logits - total[..., None]) * logits)
    entropy = total - mean_logit
    return (picked - total, entropy), (hidden, head, targets, logits, total, entropy)


def _score_backward(temperature, saved, cotangents):
    hidden, head, targets, logits, total, entropy = saved
    # The one-hot target is made by a comparison and not by a scatter, which would leave the shards
    # of the vocabulary and take another pass.
    wanted = targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
    logprobs = logits - total[..., None]
    p, (picked, uncertain) = jnp.exp(logprobs), (x[..., None] for x in cotangents)
    dlogits = (wanted - p) * picked - p * (logprobs + entropy[..., None]) * uncertain
    dlogits = dlogits / temperature
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dhidden = product("BTV,VD->BTD", dlogits, head)
    rows = dlogits.reshape(-1, dlogits.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    dhead = product("NV,ND->VD", *rows)
    return dhidden.astype(hidden.dtype), dhead.astype(head.dtype), None


_score.defvjp(_score_forward, _score_backward)
