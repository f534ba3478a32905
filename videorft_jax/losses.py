"""The mathematics of training: log-probabilities and losses of token arrays.

No model, no config, no I/O. The head is applied here, to the positions that need it and a chunk at
a time: logits of a whole row of 8,000 tokens and 152,000 words would take 4.9 GB.
"""

import dataclasses
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
    """Log-probability of each target and the entropy of its distribution, float32 [B, T].

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
    """Of one device's rows; `most` wanted positions in a row of any device."""

    def score(hidden, targets):
        return _score(hidden, head, targets, temperature)

    return at_masked(score, mask, most, chunk, hidden, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _score(hidden, head, targets, temperature):
    """Of one chunk, whose logits are its only large array; see `token_logprobs`."""
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
    # A comparison, not a scatter: it stays in the vocabulary's shards and in one pass.
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


def shift(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Targets and mask [B, T] aligned with the position that predicts them: token t at t - 1."""
    return jnp.roll(tokens, -1, axis=1), jnp.roll(mask, -1, axis=1).at[:, -1].set(False)


def legacy_labels(tokens: jax.Array, segment_ids: jax.Array, image_id: int) -> jax.Array:
    """The targets of the original, bool [B, T]: every token but padding and image pads.

    System prompt, question and the clip's own pad tokens are learnt too, more than half of the
    targets of a video sample. For comparison with its results; nobody wants it otherwise.
    """
    same = segment_ids == jnp.roll(segment_ids, 1, axis=1)
    same = same.at[:, 0].set(False)  # nothing predicts the first token
    return same & (segment_ids > 0) & (tokens != image_id)


def sft_loss(hidden, head, tokens, loss_mask, num_targets, *, chunk: int = CHUNK):
    """Cross-entropy of the targets, divided by `num_targets`, a scalar.

    hidden [B, T, D], head [V, D], tokens int32 [B, T], loss_mask bool [B, T]. `num_targets` counts
    those of the whole step, of which these rows may be a part, so that neither accumulation nor
    packing changes the loss. Returns the loss and its
    metrics: the mean entropy of the predicting distributions, in nats.
    """
    targets, mask = shift(tokens, loss_mask)
    logprobs, entropy = token_logprobs(hidden, head, targets, mask, chunk=chunk)
    return -logprobs.sum() / num_targets, {"entropy": entropy.sum() / num_targets}


VARIANTS = ("grpo", "dapo", "dr_grpo", "gspo", "cispo")
KL_ESTIMATORS = ("k1", "k2", "k3")
ADVANTAGE_EPS = 1e-4  # of the original and of TRL
MAX_LOG_RATIO = 10.0  # the original clips log(p_ref / p) to it before it is raised


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """variant: see `grpo_loss`. beta weighs the divergence from the reference policy, 0: none;
    kl: its estimator. clip_low, clip_high: the ratio stays in [1 - low, 1 + high]. max_length: C
    of dr_grpo's constant denominator. sampler_cap: largest weight of truncated importance sampling
    between trainer and sampler; 0: none."""

    variant: str
    beta: float
    kl: str
    clip_low: float
    clip_high: float
    max_length: int
    sampler_cap: float

    def __post_init__(self):
        for name, value, known in (
            ("variant", self.variant, VARIANTS),
            ("kl", self.kl, KL_ESTIMATORS),
        ):
            if value not in known:
                raise ValueError(f"grpo: {name} is {value!r}; choose one of {known}")
        if self.beta < 0 or self.clip_low < 0 or self.clip_high < 0 or self.sampler_cap < 0:
            raise ValueError("grpo: beta, clip_low, clip_high and sampler_cap are not negative")
        if self.max_length < 1:
            raise ValueError(f"grpo: max_length is {self.max_length}; give the longest completion")


def group_advantages(
    rewards: jax.Array, valid: jax.Array, *, divide_by_std: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Group-normalised advantages [B, R] and whether a group says anything, bool [B].

    rewards float32 [B, R], valid bool [B, R]. A = (r - mean) / (std + 1e-4) over the valid
    completions of a group, std unbiased (DeepSeekMath, eq. 3, as implemented); with
    `divide_by_std=False` the difference alone (Dr. GRPO). Masked completions, and groups with fewer
    than two that count or with one reward throughout, get 0.
    """
    count = valid.sum(1, keepdims=True)
    rewards = jnp.where(valid, rewards, 0.0)
    mean = rewards.sum(1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(valid, rewards - mean, 0.0)
    std = jnp.sqrt((centred**2).sum(1, keepdims=True) / jnp.maximum(count - 1, 1))
    low = jnp.where(valid, rewards, jnp.inf).min(1)
    high = jnp.where(valid, rewards, -jnp.inf).max(1)
    informative = (count[:, 0] > 1) & (high > low)
    advantages = centred / (std + ADVANTAGE_EPS) if divide_by_std else centred
    return jnp.where(informative[:, None], advantages, 0.0), informative


def grpo_totals(mask: jax.Array) -> dict[str, jax.Array]:
    """Denominators of a whole step: completions that count, and their tokens; mask [B, R, C]."""
    return {
        "sequences": jnp.maximum(mask.any(-1).sum(), 1).astype(jnp.float32),
        "tokens": jnp.maximum(mask.sum(), 1).astype(jnp.float32),
    }


def grpo_loss(
    logprobs, advantages, mask, totals, config, *, old=None, reference=None, sampler=None
):
    """The policy-gradient loss of some groups, float32 scalar, and metrics that add up over groups.

    logprobs float32 [B, R, C] of the policy; advantages [B, R]; mask bool [B, R, C], True on tokens
    that count; totals of `grpo_totals` over the whole step. old: those of the policy that the first
    update started from (None: this is it, the ratio is 1 and its gradient flows). reference: for
    the divergence, needed when beta > 0. sampler: what the rollout recorded, for importance
    weights.

        ratio     exp(logprobs - old); gspo: of the mean over a completion, one for all its tokens
        token     -min(ratio A, clip(ratio, 1 - low, 1 + high) A)
                  cispo: -stop(min(ratio, 1 + high)) A logprobs
        grpo      mean over completions of the mean over tokens (the paper's); so gspo
        dapo      sum over tokens / tokens of the step; so cispo
        dr_grpo   sum over tokens / (completions * max_length)

    DAPO's clip-higher is clip_high > clip_low. KL estimators are Schulman's k1, k2, k3 of D =
    reference - logprobs clipped to +-10 as in the original; all pass gradients.
    """
    mask = mask.astype(jnp.float32)
    length = jnp.maximum(mask.sum(-1, keepdims=True), 1.0)
    old = jax.lax.stop_gradient(logprobs if old is None else old)
    log_ratio = jnp.where(mask > 0, logprobs - old, 0.0)
    if config.variant == "gspo":
        log_ratio = jnp.broadcast_to(log_ratio.sum(-1, keepdims=True) / length, mask.shape)
    ratio, advantage = jnp.exp(log_ratio), advantages[..., None]
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    if config.variant == "cispo":
        weight = jax.lax.stop_gradient(jnp.minimum(ratio, high))
        token = -weight * advantage * logprobs
        clipped = (ratio > high) & (advantage > 0)
    else:
        bounded = jnp.clip(ratio, low, high)
        token = -jnp.minimum(ratio * advantage, bounded * advantage)
        clipped = ((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0))
    metrics = {"clip_fraction": (clipped * mask).sum() / totals["tokens"]}
    if sampler is not None:
        gap = jnp.where(mask > 0, old - sampler, 0.0)
        metrics["sampler_gap"] = jnp.abs(gap).sum() / totals["tokens"]
        if config.sampler_cap:
            token = token * jnp.minimum(jnp.exp(gap), config.sampler_cap)
    if reference is not None:
        divergence = _divergence(logprobs, reference, mask, config.kl)
        metrics["kl"] = divergence.sum() / totals["tokens"]
        token = token + config.beta * divergence
    elif config.beta:
        raise ValueError("grpo: beta is above 0; give the reference policy's log-probabilities")
    token = jnp.where(mask > 0, token, 0.0)
    match config.variant:
        case "grpo" | "gspo":
            loss = (token.sum(-1, keepdims=True) / length).sum() / totals["sequences"]
        case "dapo" | "cispo":
            loss = token.sum() / totals["tokens"]
        case "dr_grpo":
            loss = token.sum() / (totals["sequences"] * config.max_length)
    return loss, metrics


def _divergence(logprobs, reference, mask, kl):
    """KL(policy || reference) per token by one sample each; 0 where masked."""
    d = jnp.where(mask > 0, reference - logprobs, 0.0)
    d = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return {"k1": -d, "k2": d**2 / 2, "k3": jnp.exp(d) - d - 1.0}[kl]
