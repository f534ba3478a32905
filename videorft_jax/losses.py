"""The mathematics of training: the losses of SFT and GRPO, as functions of token arrays.

This file knows no model, no config and no file. SFT is the cross-entropy of the tokens that the
assistant says. GRPO is `group_advantages`, which says how much better each completion of a group
is than the others, and `grpo_loss`, which makes better ones likelier. The log-probabilities that
both read are made by `ops.head.token_logprobs`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videorft_jax.ops.head import token_logprobs
from videorft_jax.ops.masked import CHUNK


def shift(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Targets and mask [B, T] aligned with the position that predicts them: token t at t - 1."""
    return jnp.roll(tokens, -1, axis=1), jnp.roll(mask, -1, axis=1).at[:, -1].set(False)


def legacy_labels(tokens: jax.Array, segment_ids: jax.Array, image_id: int) -> jax.Array:
    """Returns the targets of the original, bool [B, T]: every token but padding and image pads.

    System prompt, question and the clip's own pad tokens are learnt too, more than half of the
    targets of a video sample. For comparison with its results; nobody wants it otherwise.
    """
    same = segment_ids == jnp.roll(segment_ids, 1, axis=1)
    same = same.at[:, 0].set(False)  # nothing predicts the first token
    return same & (segment_ids > 0) & (tokens != image_id)


def sft_loss(hidden, head, tokens, loss_mask, num_targets, *, chunk: int = CHUNK):
    """Computes the cross-entropy of the targets, divided by `num_targets`, a scalar.

    hidden [B, T, D], head [V, D], tokens int32 [B, T], loss_mask bool [B, T]. `num_targets` counts
    those of the whole step, of which these rows may be a part, so that neither accumulation nor
    packing changes the loss. Returns the loss and its
    metrics: the mean entropy of the predicting distributions, in nats.
    """
    targets, mask = shift(tokens, loss_mask)
    logprobs, entropy = token_logprobs(hidden, head, targets, mask, chunk=chunk)
    return -logprobs.sum() / num_targets, {"entropy": entropy.sum() / num_targets}


VARIANTS = ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo")
KL_ESTIMATORS = ("k2", "k3", "k3_weighted")
SPREADS = ("group", "batch", "none")
SAMPLER_LEVELS = ("token", "sequence")
SAMPLER_RULES = ("truncate", "mask")
_NO_SAMPLER = (SAMPLER_LEVELS[0], SAMPLER_RULES[0])  # what stands where nothing is weighed
ADVANTAGE_EPS = 1e-4  # the value of the original and of TRL
MAX_LOG_RATIO = 10.0  # the original clips log(p_ref / p) to it before it is raised
SAPO_TEMPERATURES = (1.0, 1.05)  # SAPO's paper, for advantages above 0 and others


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Holds the options of the policy-gradient loss, of advantage A and tokens' log-probabilities.

        ratio     exp(logprobs - old); gspo: exp of the mean of that over a completion, one number
                  for all its tokens
        token     -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)
                  cispo: -stop_gradient(min(ratio, 1 + clip_high)) A logprobs
                  sapo: -A 4 sigmoid(t (ratio - 1)) / t, t by the sign of A (SAPO_TEMPERATURES)
                  given: -A p / (p + given_shaping), p = exp(logprobs), in every variant (LUFFY,
                  Yan et al. 2025, whose text and code take 1 for the probability that it had
                  where it was written); it has no ratio to clip, no importance weight and no
                  divergence, all of which belong to tokens that the policy drew
        grpo      mean over completions of the mean over tokens (the paper's); so gspo and sapo
        dapo      sum over tokens / tokens of the step; so cispo
        dr_grpo   sum over tokens / (completions * max_length)

    Clip-higher (DAPO) is clip_high > clip_low. `dual_clip` c bounds the token's term of a negative
    A from above by -c A (Ye et al. 2020). The divergence per token is estimated from
    d = reference - logprobs, clipped to +-10 as in the original:

        k2           d^2 / 2; its gradient is that of KL(policy || reference)
        k3           exp(d) - d - 1, the paper's; it estimates KL(policy || reference), but its
                     gradient is that of KL(reference || policy)
        k3_weighted  ratio * k3 (TRL's default); value and gradient are those of
                     KL(policy || reference), also in later updates

    Attributes:
      variant: grpo (the paper's), dapo, dr_grpo, gspo, cispo or sapo.
      beta: weight of the divergence from the reference policy; 0 does without a reference.
      kl: estimator of the divergence.
      clip_low, clip_high: the ratio stays in [1 - clip_low, 1 + clip_high].
      max_length: C, the constant denominator of dr_grpo.
      sampler_cap: largest importance weight between sampler and trainer; 0 weighs nothing.
      sampler_floor: smallest such weight.
      sampler_level: weight of each token, or of a whole sequence (the product over its tokens).
      sampler_rule: truncate moves a weight into [floor, cap], mask gives those outside weight 0.
      dual_clip: a negative advantage counts at most as `dual_clip` times itself, above 1; 0: off.
      entropy_bonus: weight of the entropy that is added to the objective; 0: off.
      top_entropy: share of a group's tokens, those of highest entropy, that the policy term counts
        (Wang et al. 2025); 1: off.
      off_policy_limit: a completion with a negative advantage does not count where the mean of
        sampler - logprobs is above it (DeepSeek-V3.2); 0: off.
      num_given: completions of each group, its last ones, that were given and not drawn; 0: none.
      given_shaping: of a given token, the probability at which its gradient is largest.

    Raises ValueError for an option that cannot work.
    """

    variant: str
    beta: float
    kl: str
    clip_low: float
    clip_high: float
    max_length: int
    sampler_cap: float
    sampler_floor: float = 0.0
    sampler_level: str = "token"
    sampler_rule: str = "truncate"
    dual_clip: float = 0.0
    entropy_bonus: float = 0.0
    top_entropy: float = 1.0
    off_policy_limit: float = 0.0
    num_given: int = 0
    given_shaping: float = 0.1

    def __post_init__(self):
        if self.kl == "k1":
            raise ValueError(
                "grpo: kl is 'k1', whose gradient is 0 in expectation: a loss with it does not "
                "hold the policy near its reference; choose k2, k3 or k3_weighted"
            )
        for name, known in (
            ("variant", VARIANTS),
            ("kl", KL_ESTIMATORS),
            ("sampler_level", SAMPLER_LEVELS),
            ("sampler_rule", SAMPLER_RULES),
        ):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise ValueError(f"grpo: {name} is {value!r}; choose one of {known}")
        if min(self.beta, self.clip_low, self.clip_high, self.sampler_cap, self.sampler_floor) < 0:
            raise ValueError(
                "grpo: beta, clip_low, clip_high, sampler_cap and sampler_floor are not negative"
            )
        if not 0 < self.top_entropy <= 1 or self.off_policy_limit < 0:
            raise ValueError(
                "grpo: top_entropy is a share above 0, at most 1; off_policy_limit is not negative"
            )
        if self.num_given < 0 or not self.given_shaping > 0:
            raise ValueError(
                f"grpo: num_given is {self.num_given} and given_shaping {self.given_shaping}; give "
                "a count, and a number above 0"
            )
        if self.max_length < 1:
            raise ValueError(f"grpo: max_length is {self.max_length}; give the longest completion")
        if self.dual_clip and not self.dual_clip > 1:
            raise ValueError(f"grpo: dual_clip is {self.dual_clip}; give a number above 1, or 0")
        if self.dual_clip and self.variant in ("cispo", "sapo"):
            raise ValueError(f"grpo: dual_clip does nothing in {self.variant}; set it to 0")
        if not self.sampler_cap and (self.sampler_level, self.sampler_rule) != _NO_SAMPLER:
            raise ValueError(
                "grpo: sampler_level and sampler_rule do nothing without a sampler_cap; give one"
            )
        if self.sampler_floor and not self.sampler_cap > self.sampler_floor:
            raise ValueError(
                f"grpo: sampler_floor is {self.sampler_floor}; give a sampler_cap above it"
            )


def group_advantages(
    rewards: jax.Array, valid: jax.Array, *, spread: str = "group"
) -> tuple[jax.Array, jax.Array]:
    """Makes advantages [B, R] of rewards, and tells which groups are informative, bool [B].

    rewards float32 [B, R], valid bool [B, R]. The advantage is (reward - mean) / (std + 1e-4) over
    the valid completions of a group, with the unbiased std (DeepSeekMath, eq. 3, as implemented).
    `spread` says whose std divides: that of the group, that of all valid rewards of the batch
    (REINFORCE++), or none (Dr. GRPO). Masked completions get 0, and so do groups in which fewer
    than two count or all rewards are one number.
    """
    count = valid.sum(1, keepdims=True)
    rewards = jnp.where(valid, rewards, 0.0)
    mean = rewards.sum(1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(valid, rewards - mean, 0.0)
    std = jnp.sqrt((centred**2).sum(1, keepdims=True) / jnp.maximum(count - 1, 1))
    low = jnp.where(valid, rewards, jnp.inf).min(1)
    high = jnp.where(valid, rewards, -jnp.inf).max(1)
    informative = (count[:, 0] > 1) & (high > low)
    if spread == "batch":
        total = valid.sum()
        around = jnp.where(valid, rewards - rewards.sum() / jnp.maximum(total, 1), 0.0)
        std = jnp.sqrt((around**2).sum() / jnp.maximum(total - 1, 1))
    advantages = centred if spread == "none" else centred / (std + ADVANTAGE_EPS)
    return jnp.where(informative[:, None], advantages, 0.0), informative


def separate_advantages(rewards: jax.Array, weights, valid: jax.Array):
    """Makes advantages [B, R] of K rewards, each normalised before the sum (GDPO, Liu et al. 2026),
    and tells which groups are informative, bool [B].

    rewards float32 [K, B, R], NaN where a reward says nothing; weights [K]; valid bool [B, R]. The
    weighted sum is divided by its spread over the valid completions of the batch.
    """
    known = jnp.isfinite(rewards) & valid
    each, informative = jax.vmap(group_advantages)(jnp.where(known, rewards, 0.0), known)
    total = jnp.tensordot(jnp.asarray(weights, jnp.float32), each, 1)  # each sums to 0
    std = jnp.sqrt((total**2).sum() / jnp.maximum(valid.sum() - 1, 1))
    return total / (std + ADVANTAGE_EPS), informative.any(0)


def grpo_totals(mask: jax.Array, num_given: int = 0) -> dict[str, jax.Array]:
    """Counts the completions and tokens that take part in a whole step; mask bool [B, R, C].

    With `num_given` the tokens that were drawn are counted too, for means over them alone.
    """
    totals = {
        "sequences": jnp.maximum(mask.any(-1).sum(), 1).astype(jnp.float32),
        "tokens": jnp.maximum(mask.sum(), 1).astype(jnp.float32),
    }
    if num_given:
        drawn = mask[:, :-num_given].sum()
        totals["drawn"] = jnp.maximum(drawn, 1).astype(jnp.float32)
    return totals


def grpo_loss(
    logprobs,
    advantages,
    mask,
    totals,
    config: LossOptions,
    *,
    old=None,
    reference=None,
    sampler=None,
    entropy=None,
):
    """Computes the policy-gradient loss of some groups: a float32 scalar, and metrics.

    Loss and metrics are shares of the whole step's, so they add up over groups; of
    `sampler_gap_max`, the largest gap of a token, the largest over groups is the step's.

    logprobs float32 [B, R, C]: of each token under the policy. advantages [B, R]. mask bool
    [B, R, C]: True on tokens that count. totals: `grpo_totals` of the whole step. old: logprobs
    before the first update of the step; None says that this is the first update, where each ratio
    is 1 and only its gradient counts. reference: logprobs under the reference policy, needed where
    beta is above 0. sampler: logprobs that the rollout recorded. entropy: of each token's
    distribution, needed for an entropy bonus.
    """
    if entropy is None and (config.entropy_bonus or config.top_entropy < 1):
        raise ValueError("grpo: entropy_bonus or top_entropy is set; give each token's entropy")
    mask = drawn = mask.astype(jnp.float32)
    num_drawn = totals["tokens"]
    if config.num_given:
        drawn, num_drawn = mask.at[:, -config.num_given :].set(0.0), totals["drawn"]
    length = jnp.maximum(mask.sum(-1, keepdims=True), 1.0)
    old = jax.lax.stop_gradient(logprobs if old is None else old)
    log_ratio = own = jnp.where(mask > 0, logprobs - old, 0.0)
    if config.variant == "gspo":
        log_ratio = jnp.broadcast_to(log_ratio.sum(-1, keepdims=True) / length, mask.shape)
    token, clipped = _policy_term(jnp.exp(log_ratio), advantages[..., None], logprobs, config)
    if config.top_entropy < 1 or config.off_policy_limit:
        token = token * _counted(logprobs, advantages, drawn, length, sampler, entropy, config)
    metrics = {"clip_fraction": (clipped * drawn).sum() / num_drawn}
    if sampler is not None:
        gap = jnp.where(drawn > 0, old - sampler, 0.0)
        metrics["sampler_gap"] = jnp.abs(gap).sum() / num_drawn
        metrics["sampler_gap_max"] = jnp.abs(gap).max()
        if config.sampler_cap:
            token = token * _sampler_weight(gap, config)
    if config.num_given:
        p = jnp.exp(jnp.where(mask > 0, logprobs, 0.0))
        taught = -advantages[..., None] * p / (p + config.given_shaping)
        token = jnp.where(mask > drawn, taught, token)
    if reference is not None:
        divergence = _divergence(logprobs, reference, drawn, config.kl)
        if config.kl == "k3_weighted":
            divergence = jnp.exp(own) * divergence
        metrics["kl"] = divergence.sum() / num_drawn
        token = token + config.beta * divergence
    elif config.beta:
        raise ValueError("grpo: beta is above 0; give the reference policy's log-probabilities")
    if config.entropy_bonus:
        token = token - config.entropy_bonus * entropy
    return _aggregate(jnp.where(mask > 0, token, 0.0), length, totals, config), metrics


def _counted(logprobs, advantages, mask, length, sampler, entropy, config):
    """Tells which tokens the policy term counts, [B, R, C]. Each group decides for itself, so that
    slices of a step add up."""
    counted = mask > 0
    if config.top_entropy < 1:
        known = jax.lax.stop_gradient(jnp.where(mask > 0, entropy, -jnp.inf))
        order = jnp.sort(known.reshape(len(known), -1), axis=-1, descending=True)
        number = jnp.ceil(config.top_entropy * mask.sum((1, 2))).astype(jnp.int32)
        least = jnp.take_along_axis(order, jnp.maximum(number - 1, 0)[:, None], axis=-1)
        counted = counted & (known >= least[..., None])
    if config.off_policy_limit:
        gap = jnp.where(mask > 0, sampler - jax.lax.stop_gradient(logprobs), 0.0)
        far = gap.sum(-1, keepdims=True) / length > config.off_policy_limit
        counted = counted & ~(far & (advantages[..., None] < 0))
    return counted


def _aggregate(token, length, totals, config):
    """Sums the tokens' terms [B, R, C] up to the share of these groups in the step's loss."""
    if config.variant in ("dapo", "cispo"):
        return token.sum() / totals["tokens"]
    if config.variant == "dr_grpo":
        return token.sum() / (totals["sequences"] * config.max_length)
    return (token.sum(-1, keepdims=True) / length).sum() / totals["sequences"]


def _policy_term(ratio, advantage, logprobs, config):
    """Returns the tokens' terms of the loss and whether a clip took their gradients, [B, R, C]."""
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    if config.variant == "cispo":
        weight = jax.lax.stop_gradient(jnp.minimum(ratio, high))
        return -weight * advantage * logprobs, (ratio > high) & (advantage > 0)
    if config.variant == "sapo":
        above, below = SAPO_TEMPERATURES
        slope = jnp.where(advantage > 0, above, below)
        gate = jax.nn.sigmoid(slope * (ratio - 1.0)) * 4.0 / slope
        return -gate * advantage, jnp.zeros(ratio.shape, bool)
    bounded = jnp.clip(ratio, low, high)
    token = -jnp.minimum(ratio * advantage, bounded * advantage)
    clipped = ((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0))
    if config.dual_clip:
        most = -config.dual_clip * advantage
        clipped = clipped | ((advantage < 0) & (token > most))
        token = jnp.where(advantage < 0, jnp.minimum(token, most), token)
    return token, clipped


def _sampler_weight(gap, config):
    """Returns the importance weight of each token, [B, R, C], from gap = old - sampler (0 where
    masked)."""
    if config.sampler_level == "sequence":
        gap = jnp.broadcast_to(gap.sum(-1, keepdims=True), gap.shape)
    weight, cap, floor = jnp.exp(gap), config.sampler_cap, config.sampler_floor
    if config.sampler_rule == "mask":
        return jnp.where((weight >= floor) & (weight <= cap), weight, 0.0)
    weight = jnp.minimum(weight, cap)
    return jnp.maximum(weight, floor) if floor else weight


def _divergence(logprobs, reference, mask, kl):
    """Estimates KL(policy || reference) per token from one sample each; 0 where masked."""
    d = jnp.where(mask > 0, reference - logprobs, 0.0)
    d = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d**2 / 2 if kl == "k2" else jnp.exp(d) - d - 1.0
