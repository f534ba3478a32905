"""The options of a GRPO run: what a recipe says, in the form that the programs read."""

import dataclasses

from videorft_jax.grpo.alarms import AlarmOptions
from videorft_jax.losses import SPREADS, LossOptions
from videorft_jax.rewards.combine import BUILT_IN, RewardConfig
from videorft_jax.rewards.semantic import SemanticOptions
from videorft_jax.rollout.options import RolloutOptions
from videorft_jax.training.options import TrainOptions

KNOWN_REWARDS = (*BUILT_IN, "semantic", "order")


@dataclasses.dataclass(frozen=True)
class GrpoOptions:
    """Holds everything that decides a GRPO step but weights and data.

    Attributes:
      train: what GRPO has in common with SFT; its rows are the prompts of a step.
      loss: the policy-gradient loss.
      rollout: how completions are drawn.
      rewards: which rewards count, and how much.
      semantic: the options of the semantic reward; None where it is not computed.
      num_updates: times that the completions of one rollout are learnt from.
      minibatches: optimizer steps that each of these times is split into, by groups.
      max_draws: batches drawn at most to replace groups of equal rewards; 1 replaces none.
      filter: the reward that must differ within a group for dynamic sampling to keep it.
      length_buckets: completion lengths that the update is compiled for.
      spread: whose spread of rewards divides the advantages: group, batch or none.
      normalise_each: normalises each reward before the sum (GDPO); the spread is then the batch's.
      kl_in_reward: takes beta times log(policy / reference), summed over a completion, off its
        reward instead of adding a divergence to the loss (Ouyang et al. 2022).
      mask_truncated: leaves completions without an end out of the loss.
      reference: folder of the reference policy; empty for the model that training starts from.
      reference_on_host: keeps the reference policy in the host's memory between steps.
      sync_every: steps after which the reference policy moves towards the policy; 0: never.
      reference_mixup: share of the policy in the reference policy that has moved.
      alarms: how the run watches itself.

    Raises ValueError for a number that cannot work.
    """

    train: TrainOptions
    loss: LossOptions
    rollout: RolloutOptions
    rewards: RewardConfig
    semantic: SemanticOptions | None
    num_updates: int
    minibatches: int
    max_draws: int
    filter: str
    length_buckets: int
    spread: str
    normalise_each: bool
    kl_in_reward: bool
    mask_truncated: bool
    reference: str
    reference_on_host: bool
    sync_every: int
    reference_mixup: float
    alarms: AlarmOptions

    @property
    def steps_per_rollout(self) -> int:
        """Counts the optimizer steps on the completions of one rollout."""
        return self.num_updates * self.minibatches

    def check_parts(self, parts: int) -> None:
        """Raises ValueError where mini-batches do not divide by the parts of the mesh that hold
        different rows."""
        rows, slices = self.train.data.rows, parts * self.minibatches * self.train.accumulate
        if rows % slices:
            raise ValueError(
                f"{self.train.name}: data.rows is {rows}; with data * fsdp = {parts}, "
                f"grpo.minibatches = {self.minibatches} and train.accumulate = "
                f"{self.train.accumulate} it must be a multiple of {slices}"
            )

    @property
    def needs_score(self) -> bool:
        """Tells whether log-probabilities are computed before a rollout's first update."""
        return self.steps_per_rollout > 1 or self.kl_in_reward

    def __post_init__(self):
        for field in ("num_updates", "minibatches", "max_draws", "length_buckets"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{self.train.name}: grpo.{field} is {getattr(self, field)}; give at least 1"
                )
        name, rollout = self.train.name, self.rollout
        names = [reward for reward, _ in self.rewards.rewards]
        for reward in names:
            if ":" not in reward and reward not in KNOWN_REWARDS:
                raise ValueError(
                    f"{name}: rewards has {reward!r}; name one of {', '.join(KNOWN_REWARDS)}, or "
                    "a function of yours as module:function"
                )
        if self.filter not in (*names, "accuracy"):
            raise ValueError(
                f"{name}: grpo.filter is {self.filter!r}; name one of the rewards, {names}"
            )
        self._check_combinations(name)
        if self.spread not in SPREADS:
            raise ValueError(
                f"{name}: grpo.scale_rewards is {self.spread!r}; choose one of {SPREADS}"
            )
        if rollout.num_rollouts < 2:
            raise ValueError(
                f"{name}: rollout.num_rollouts is {rollout.num_rollouts}; a group needs at least 2 "
                "completions to compare"
            )
        if not rollout.temperature > 0:
            raise ValueError(
                f"{name}: rollout.temperature is {rollout.temperature}; completions of a group "
                "would all be the same, give a positive number"
            )

    def _check_tools(self, name):
        if self.max_draws > 1:
            raise ValueError(
                f"{name}: tools.names and grpo.max_draws above 1 exclude each other; groups that "
                "wait for another step cannot keep the frames of their calls"
            )
        if "order" in dict(self.rewards.rewards):
            raise ValueError(
                f"{name}: tools.names and the reward 'order' exclude each other; a call would show "
                "the frames in order"
            )

    def _check_combinations(self, name):
        if self.loss.num_given:
            self._check_given(name)
        if self.sync_every:
            self._check_sync(name)
        if self.train.tools is not None:
            self._check_tools(name)
        if self.kl_in_reward and not self.loss.beta:
            raise ValueError(
                f"{name}: grpo.kl_in_reward without a divergence; set grpo.beta above 0"
            )
        if self.kl_in_reward and self.normalise_each:
            raise ValueError(
                f"{name}: grpo.kl_in_reward and grpo.normalise_each exclude each other; the "
                "divergence is no reward that could be normalised by itself"
            )
        if self.normalise_each and self.spread != "group":
            raise ValueError(
                f"{name}: grpo.normalise_each divides by its own spreads; set "
                "grpo.scale_rewards=group and grpo.divide_by_std=True"
            )
        if self.alarms.kl_above and not self.loss.beta:
            raise ValueError(
                f"{name}: alarms.kl_above is {self.alarms.kl_above} and grpo.beta is 0, so no "
                "divergence is measured; set grpo.beta above 0, or alarms.kl_above=0"
            )
        if self.train.legacy_labels:
            raise ValueError(f"{name}: train.legacy_labels is of SFT; leave it out")

    def _check_sync(self, name):
        for is_set, what, why in (
            (not self.loss.beta, "grpo.beta=0", "there is no reference policy to move"),
            (self.train.lora, "lora.rank", "the reference policy is the base under the adapters, "
             "which stays what it is"),
            (self.reference, "grpo.reference", "a teacher that follows its pupil is none"),
            (self.reference_on_host, "grpo.reference_on_host", "a reference policy that moves is "
             "part of the training state"),
        ):  # fmt: skip
            if is_set:
                raise ValueError(f"{name}: grpo.sync_every and {what} exclude each other; {why}")

    def _check_given(self, name):
        given, rollouts = self.loss.num_given, self.rollout.num_rollouts
        if given >= rollouts:
            raise ValueError(
                f"{name}: grpo.num_given is {given} of rollout.num_rollouts = {rollouts}; leave at "
                "least one completion of a group to be drawn"
            )
        for is_set, what, why in (
            (self.kl_in_reward, "grpo.kl_in_reward", "log(policy / reference) of a given "
             "completion is no sample of the divergence"),
            ("order" in dict(self.rewards.rewards), "the reward 'order'", "a given completion "
             "does not depend on the order of the frames"),
            (self.train.tools is not None, "tools.names", "a given completion calls no tool"),
        ):  # fmt: skip
            if is_set:
                raise ValueError(f"{name}: grpo.num_given and {what} exclude each other; {why}")


_AT_RATIO_ONE = {"gspo": "grpo", "sapo": "grpo", "cispo": "dapo"}


def without_ratio(options: GrpoOptions) -> GrpoOptions:
    """Returns the simplest options that train the same.

    With one update a rollout every ratio of policies is 1. Then clips do nothing, gspo and sapo
    have the gradient of grpo, and cispo that of dapo.
    """
    if options.steps_per_rollout > 1:
        return options
    variant = _AT_RATIO_ONE.get(options.loss.variant, options.loss.variant)
    plain = dataclasses.replace(
        options.loss, variant=variant, clip_low=0.0, clip_high=0.0, dual_clip=0.0
    )
    return dataclasses.replace(options, loss=plain)
