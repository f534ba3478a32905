"""The second half of a GRPO step: the programs that act on a training state.

The update computes the log-probabilities of the drawn completions again, with gradients, under the
policy and under the reference policy, and takes an optimizer step on the loss (losses.py). The
programs are made of options, weights and shardings alone, so that the planner can compile them for
machines that are not here.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from videorft_jax import losses
from videorft_jax.grpo.logprobs import Groups, score_completions
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.grpo.reference import mix_reference
from videorft_jax.models import family
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.parallel import sharding
from videorft_jax.training.step import make_step
from videorft_jax.training.trees import cast, join
from videorft_jax.training.weights import Weights


class GroupRows(NamedTuple):
    """Holds what an update of GRPO reads; every leaf is [B, ...], one row per group.

    Without `old` the policy of the update is the one that drew the completions, so every ratio is 1
    and only its gradient counts. Without `reference` the update computes it.
    """

    groups: Groups
    advantages: jax.Array  # float32 [B, R]
    sampler: jax.Array  # float32 [B, R, C], log-probabilities that the rollout recorded
    old: jax.Array | None = None  # float32 [B, R, C], before the first update of the step
    reference: jax.Array | None = None  # float32 [B, R, C], of the reference policy
    rewards: jax.Array | None = None  # float32 [B, R], NaN where not valid; for `kl_in_reward`


def make_score(options: GrpoOptions, weights: Weights):
    """Makes (params, groups) -> log-probabilities and entropies [B, R, C]; see
    `score_completions`. `params` are the model's own."""

    def score(params, groups: Groups):
        return score_completions(
            family.bind(weights.model, params),
            groups,
            temperature=options.rollout.temperature,
            plan=choose_plan(options.train.model.attention),
            remat=options.train.model.remat,
        )

    return score


def reference_params(joined, reference):
    """Makes the parameters of the reference policy, the model as it was before GRPO.

    With LoRA it is the base under the adapters. Else the weights that train are replaced by
    `reference`, their values at the start; those that do not train are still what they were.
    """
    if "lora" in joined:
        return {name: part for name, part in joined.items() if name != "lora"}
    return join(reference, joined)


def make_loss(options: GrpoOptions, weights: Weights):
    """Makes (loss, totals) for `make_step`; the loss takes the reference weights too."""
    score, terms = make_score(options, weights), options.loss
    if options.kl_in_reward:
        terms = dataclasses.replace(terms, beta=0.0)

    def totals(rows: GroupRows):
        return losses.grpo_totals(rows.groups.mask, terms.num_given)

    def loss(joined, rows: GroupRows, counts, reference=None):
        logprobs, entropy = score(weights.merged(joined), rows.groups)
        known = rows.reference
        if terms.beta and known is None:
            known, _ = score(
                jax.lax.stop_gradient(reference_params(joined, reference)), rows.groups
            )
        value, metrics = losses.grpo_loss(
            logprobs, rows.advantages, rows.groups.mask, counts, terms,
            old=rows.old, reference=known, sampler=rows.sampler, entropy=entropy,
        )  # fmt: skip
        own, number = entropy, counts["tokens"]
        if terms.num_given:
            own, number = entropy[:, : -terms.num_given], counts["drawn"]
        return value, metrics | {"entropy": own.sum() / number}

    return loss, totals


def charge_divergence(rows: GroupRows, options: GrpoOptions) -> tuple[GroupRows, jax.Array]:
    """Takes the divergence off the rewards and makes the advantages again; returns the rows, and
    the mean of log(policy / reference) over tokens."""
    assert rows.old is not None
    assert rows.reference is not None
    assert rows.rewards is not None
    mask = rows.groups.mask
    ratio = jnp.where(mask, rows.old - rows.reference, 0.0)
    rewards, valid = rows.rewards - options.loss.beta * ratio.sum(-1), jnp.isfinite(rows.rewards)
    advantages, _ = losses.group_advantages(rewards, valid, spread=options.spread)
    charged = rows._replace(advantages=advantages, reference=None, rewards=None)
    if options.steps_per_rollout == 1:
        charged = charged._replace(old=None)
    return charged, ratio.sum() / jnp.maximum(mask.sum(), 1)


def split_rows(rows: GroupRows, count: int) -> list[GroupRows]:
    """Splits rows [B, ...] into `count` mini-batches of every count-th row, so that each device
    keeps its own."""
    return [jax.tree.map(lambda leaf, n=n: leaf[n::count], rows) for n in range(count)]


class GrpoPrograms:
    """Holds the compiled programs of an update, each compiled on first use.

    score: (params, frozen, groups, [reference]) -> log-probabilities of the policy and, with a
      beta, of the reference policy, before the first of several updates.
    charge: rows -> see `charge_divergence`. split: rows -> see `split_rows`.
    step: (state, rows, [reference]) -> (state, metrics), one optimizer step.
    mix: (reference, params) -> see `mix_reference`; the former reference is given up.
    """

    def __init__(self, options: GrpoOptions, weights: Weights, optimizer, shardings):
        self._options, self._weights, self._shardings = options, weights, shardings
        self._dtype = jnp.dtype(options.train.model.dtype)
        self.score = jax.jit(self._score_before)
        self.charge = jax.jit(functools.partial(charge_divergence, options=options))
        rows = sharding.batch_sharding(jax.tree.leaves(shardings)[0].mesh)
        self.split = jax.jit(
            functools.partial(split_rows, count=options.minibatches), out_shardings=rows
        )
        mix = functools.partial(mix_reference, mixup=options.reference_mixup)
        self.mix = jax.jit(mix, donate_argnums=0, out_shardings=shardings.params)
        loss, totals = make_loss(options, weights)
        self.step = make_step(
            self._with_fetched(loss),
            totals,
            optimizer,
            dtype=self._dtype,
            accumulate=options.train.accumulate,
            ema_decay=options.train.optim.ema_decay,
            shardings=shardings,
        )

    @property
    def num_compiled(self) -> int:
        """Counts the programs compiled so far, one for each shape."""
        programs: tuple[Any, ...] = (self.score, self.charge, self.split, self.step, self.mix)
        return sum(program._cache_size() for program in programs)

    @property
    def reference_shardings(self):
        """Tells where the reference weights lie between updates: on the devices, or with
        `reference_on_host` in the memory of their hosts."""
        if not self._options.reference_on_host:
            return self._shardings.params
        return jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), self._shardings.params)

    def policy(self, params, frozen):
        """Joins the weights of a state to the model's parameters, which `RolloutEngine.prepare`
        reads. The arrays are the state's own; nothing is computed or copied."""
        return self._weights.merged(join(params, frozen))

    def _join(self, params, frozen):
        parts = (cast(part, self._dtype) for part in (params, frozen))
        return join(*parts)

    def _score_before(self, params, frozen, groups, reference=None):
        score = make_score(self._options, self._weights)
        joined = self._join(params, frozen)
        old, _ = score(self._weights.merged(joined), groups)
        if not self._options.loss.beta:
            return old, None
        reference = self._fetch(reference)
        return old, score(reference_params(joined, reference), groups)[0]

    def _fetch(self, reference):
        """Copies reference weights from the hosts to the devices, inside a program."""
        if reference is None or not self._options.reference_on_host:
            return reference
        return jax.device_put(reference, self._shardings.params)

    def _with_fetched(self, loss):
        return lambda joined, rows, counts, *fixed: loss(
            joined, rows, counts, *map(self._fetch, fixed)
        )
