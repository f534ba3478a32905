"""The programs of GRPO that act on a training state, apart from any data.

They are made of a config, a mesh and shardings alone, so that they can be run by the mains and
compiled for machines that are not here by the planner.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videorft_jax import losses
from videorft_jax.grpo.logprobs import Groups, score_completions
from videorft_jax.models import family
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.training.step import make_step
from videorft_jax.training.trees import cast, join
from videorft_jax.training.weights import Weights


class GroupRows(NamedTuple):
    """What an update of GRPO reads, every leaf [B, ...]."""

    groups: Groups
    advantages: jax.Array  # float32 [B, R]
    sampler: jax.Array  # float32 [B, R, C], log-probs that the rollout recorded
    old: jax.Array | None = None  # float32 [B, R, C], of the policy before the first update
    reference: jax.Array | None = None  # float32 [B, R, C]; None: computed in the update


def make_grpo_config(config) -> losses.GrpoConfig:
    """The loss, and the checks of the options around it."""
    grpo = config.grpo
    for name in ("num_updates", "max_draws", "length_buckets"):
        if grpo[name] < 1:
            raise ValueError(f"{config.name}: grpo.{name} is {grpo[name]}; give at least 1")
    if config.rollout.num_rollouts < 2:
        raise ValueError(
            f"{config.name}: rollout.num_rollouts is {config.rollout.num_rollouts}; a group needs "
            "at least 2 completions to compare"
        )
    if not config.rollout.temperature > 0:
        raise ValueError(
            f"{config.name}: rollout.temperature is {config.rollout.temperature}; completions of "
            "a group would all be the same, give a positive number"
        )
    names = [field.name for field in dataclasses.fields(losses.GrpoConfig)]
    fields = {name: grpo[name] for name in names if name in grpo}
    return losses.GrpoConfig(**fields, max_length=config.rollout.max_new_tokens)


def make_score(config, weights: Weights):
    """params, groups -> log-probs and entropy [B, R, C]; params are the model's own."""

    def score(params, groups: Groups):
        return score_completions(
            family.bind(weights.model, params),
            groups,
            temperature=config.rollout.temperature,
            plan=choose_plan(config.model.attention),
            remat=config.model.remat,
        )

    return score


def reference_params(joined, reference):
    """The reference policy: the base under the adapters, or `reference`, the weights that train as
    they were, beside those that do not."""
    if "lora" in joined:
        return {name: part for name, part in joined.items() if name != "lora"}
    return join(reference, joined)


def make_loss(config, weights: Weights):
    """(loss, totals) for `make_step`; the loss takes the reference weights as well."""
    grpo, score = make_grpo_config(config), make_score(config, weights)

    def totals(rows: GroupRows):
        return losses.grpo_totals(rows.groups.mask)

    def loss(joined, rows: GroupRows, counts, reference=None):
        logprobs, entropy = score(weights.merged(joined), rows.groups)
        known = rows.reference
        if grpo.beta and known is None:
            known, _ = score(
                jax.lax.stop_gradient(reference_params(joined, reference)), rows.groups
            )
        value, metrics = losses.grpo_loss(
            logprobs, rows.advantages, rows.groups.mask, counts, grpo,
            old=rows.old, reference=known, sampler=rows.sampler,
        )  # fmt: skip
        return value, metrics | {"entropy": entropy.sum() / counts["tokens"]}

    return loss, totals


class GrpoPrograms:
    """Compiled on first use:

    score: (params, frozen, groups, [reference]) -> log-probs of the policy and, with a beta, of the
    reference, before the first update.
    step: (state, rows, [reference]) -> (state, metrics).
    """

    def __init__(self, config, weights: Weights, optimizer, shardings):
        self._config, self._weights, self._shardings = config, weights, shardings
        self._dtype = jnp.dtype(config.model.dtype)
        self.score = jax.jit(self._score_before)
        loss, totals = make_loss(config, weights)
        self.step = make_step(
            self._with_fetched(loss),
            totals,
            optimizer,
            dtype=self._dtype,
            accumulate=config.train.accumulate,
            ema_decay=config.optim.ema_decay,
            shardings=shardings,
        )

    @property
    def num_compiled(self) -> int:
        return sum(program._cache_size() for program in (self.score, self.step))

    @property
    def reference_shardings(self):
        """Where the reference weights lie between updates."""
        if not self._config.grpo.reference_on_host:
            return self._shardings.params
        return jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), self._shardings.params)

    def policy(self, params, frozen):
        """The model's parameters for `RolloutEngine.prepare`, in the dtypes they are kept in;
        nothing is computed."""
        return self._weights.merged(join(params, frozen))

    def _join(self, params, frozen):
        parts = (cast(part, self._dtype) for part in (params, frozen))
        return join(*parts)

    def _score_before(self, params, frozen, groups, reference=None):
        score = make_score(self._config, self._weights)
        joined = self._join(params, frozen)
        old, _ = score(self._weights.merged(joined), groups)
        if not self._config.grpo.beta:
            return old, None
        reference = self._fetch(reference)
        return old, score(reference_params(joined, reference), groups)[0]

    def _fetch(self, reference):
        if reference is None or not self._config.grpo.reference_on_host:
            return reference
        return jax.device_put(reference, self._shardings.params)

    def _with_fetched(self, loss):
        return lambda joined, rows, counts, *fixed: loss(
            joined, rows, counts, *map(self._fetch, fixed)
        )
