"""Advantages and every loss variant against loops in PyTorch, values and gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from naive_grpo import loss as naive
from naive_grpo import separate_advantages as naive_separate

from videorft_jax import losses
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.grpo.update import GroupRows, charge_divergence, split_rows

B, R, C = 3, 4, 6


def config(**fields):
    plain = {
        "variant": "grpo", "beta": 0.04, "kl": "k3", "clip_low": 0.2, "clip_high": 0.28,
        "max_length": C, "sampler_cap": 0.0,
    }  # fmt: skip
    return losses.LossOptions(**(plain | fields))


def draw(seed=0):
    rng = np.random.default_rng(seed)
    logprobs = rng.normal(-2, 0.5, (B, R, C)).astype(np.float32)
    old, reference, sampler = (
        (logprobs + rng.normal(0, 0.3, logprobs.shape)).astype(np.float32) for _ in range(3)
    )
    lengths = rng.integers(1, C + 1, (B, R))
    lengths[1, 2] = 0  # a masked completion
    mask = np.arange(C) < lengths[..., None]
    advantages = rng.normal(size=(B, R)).astype(np.float32)
    return logprobs, old, reference, sampler, mask, advantages


@pytest.mark.parametrize("on_policy", [True, False], ids=["first_update", "later_update"])
@pytest.mark.parametrize(
    "fields",
    [
        *({"variant": variant} for variant in losses.VARIANTS),
        {"kl": "k3_weighted"},
        {"kl": "k3_weighted", "variant": "gspo"},
        {"dual_clip": 1.1, "clip_high": 0.05},
        {"dual_clip": 1.3, "variant": "dapo"},
        {"entropy_bonus": 0.1},
        {"sampler_cap": 1.1, "sampler_floor": 0.9},
        {"sampler_cap": 1.1, "sampler_floor": 0.9, "sampler_rule": "mask"},
        {"sampler_cap": 2.0, "sampler_level": "sequence"},
        {
            "sampler_cap": 2.0,
            "sampler_floor": 0.5,
            "sampler_level": "sequence",
            "sampler_rule": "mask",
            "variant": "dapo",
        },
        {"top_entropy": 0.4},
        {"top_entropy": 0.2, "variant": "dapo"},
        {"off_policy_limit": 0.05},
        {"off_policy_limit": 0.1, "variant": "gspo", "top_entropy": 0.7},
        {"kl": "k2", "variant": "dapo"},
        {"num_given": 1},
        {"num_given": 2, "given_shaping": 0.5, "variant": "dapo", "sampler_cap": 1.1},
        {"num_given": 1, "variant": "gspo", "off_policy_limit": 0.05, "top_entropy": 0.7},
        {"num_given": 1, "variant": "cispo", "entropy_bonus": 0.1, "clip_high": 0.05},
        {"beta": 0.0, "sampler_cap": 1.1},
        {"variant": "cispo", "sampler_cap": 2.0, "clip_high": 0.05},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_loss_equals_naive(fields, on_policy):
    c = config(**fields)
    logprobs, old, reference, sampler, mask, advantages = draw()
    given = {
        "old": None if on_policy else old,
        "reference": reference if c.beta else None,
        "sampler": sampler,
    }
    scale = np.random.default_rng(5).uniform(0.5, 2, logprobs.shape).astype(np.float32)

    def ours(logprobs):
        totals = losses.grpo_totals(jnp.asarray(mask), c.num_given)
        return losses.grpo_loss(
            logprobs, advantages, jnp.asarray(mask), totals, c, **given, entropy=scale * logprobs**2
        )[0]

    loss, grad = jax.jit(jax.value_and_grad(ours))(logprobs)
    leaf = torch.tensor(logprobs, requires_grad=True)
    expected = naive(
        leaf, None if on_policy else torch.tensor(old), torch.tensor(reference),
        torch.tensor(sampler), mask, torch.tensor(advantages), c, torch.tensor(scale) * leaf**2,
    )  # fmt: skip
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_parts_of_a_step_add_up():
    """Groups scored one at a time with the step's denominators give the step's loss."""
    logprobs, old, reference, sampler, mask, advantages = draw(1)
    totals = losses.grpo_totals(jnp.asarray(mask))
    for variant in losses.VARIANTS:
        c = config(variant=variant)

        def part(rows, c=c):
            return losses.grpo_loss(
                logprobs[rows], advantages[rows], jnp.asarray(mask[rows]), totals, c,
                old=old[rows], reference=reference[rows], sampler=sampler[rows],
            )  # fmt: skip

        whole, whole_metrics = part(slice(None))
        pieces = [part(slice(b, b + 1)) for b in range(B)]
        np.testing.assert_allclose(sum(loss for loss, _ in pieces), whole, rtol=1e-5)
        for name, value in whole_metrics.items():
            join = max if name == "sampler_gap_max" else sum
            found = join(metrics[name] for _, metrics in pieces)
            np.testing.assert_allclose(found, value, rtol=1e-5)


def test_figures_are_of_drawn_completions_alone():
    """A group with a given completion has the metrics that it has without that completion."""
    logprobs, old, reference, sampler, mask, advantages = draw(3)

    def measure(count, num_given):
        own = [x[:, :count] for x in (logprobs, old, reference, sampler, mask, advantages)]
        mine, before, ref, drawn, kept, worth = own
        c = config(num_given=num_given, clip_low=0.05, clip_high=0.05, sampler_cap=2.0)
        totals = losses.grpo_totals(jnp.asarray(kept), num_given)
        return losses.grpo_loss(
            mine, worth, jnp.asarray(kept), totals, c, old=before, reference=ref, sampler=drawn
        )[1]

    found, wanted = measure(R, 1), measure(R - 1, 0)
    names = {"clip_fraction", "sampler_gap", "sampler_gap_max", "kl"}
    assert found.keys() == wanted.keys() == names
    gaps = np.abs(old - sampler)[:, : R - 1][mask[:, : R - 1]]
    np.testing.assert_allclose(wanted["sampler_gap"], gaps.mean(), rtol=1e-5)
    np.testing.assert_allclose(wanted["sampler_gap_max"], gaps.max(), rtol=1e-6)
    for name, value in wanted.items():
        assert value > 0
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_masked_values_reach_nothing():
    """NaN under the mask, as padding or a failed completion may hold, changes no number."""
    logprobs, old, reference, sampler, mask, advantages = draw(2)
    totals = losses.grpo_totals(jnp.asarray(mask), 1)

    def run(logprobs, old, reference, sampler):
        return jax.value_and_grad(
            lambda lp: losses.grpo_loss(
                lp, advantages, jnp.asarray(mask), totals, config(sampler_cap=2.0, num_given=1),
                old=old, reference=reference, sampler=sampler,
            )[0]
        )(logprobs)  # fmt: skip

    clean = run(logprobs, old, reference, sampler)
    poisoned = run(*(np.where(mask, x, np.nan) for x in (logprobs, old, reference, sampler)))
    for got, wanted in zip(poisoned, clean, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("spread", losses.SPREADS)
def test_advantages_equal_naive(spread):
    rng = np.random.default_rng(3)
    rewards = rng.integers(0, 4, (6, 5)).astype(np.float32)
    rewards[1] = 2.0  # all alike
    valid = rng.random((6, 5)) < 0.8
    valid[2] = False
    valid[3] = [True, False, False, False, False]
    rewards[~valid] = np.nan
    got, informative = losses.group_advantages(rewards, jnp.asarray(valid), spread=spread)
    every = torch.tensor(rewards[valid])
    for b in range(6):
        kept = torch.tensor(rewards[b][valid[b]])
        wanted = np.zeros(5, np.float32)
        says = len(kept) > 1 and bool((kept != kept[0]).any())
        if says:
            centred = kept - kept.mean()
            std = {"group": kept.std(), "batch": every.std()}.get(spread, 1 - 1e-4)
            wanted[valid[b]] = centred / (std + 1e-4)
        assert bool(informative[b]) == says
        np.testing.assert_allclose(got[b], wanted, rtol=1e-5, atol=1e-6)


def test_separate_advantages_equal_naive():
    """Three rewards of unlike spread, one of which says nothing of some completions."""
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(3, 5, 4)) * np.array([1.0, 0.01, 30.0])[:, None, None]
    rewards[0, 2] = 1.0  # all alike
    rewards[:, 3] = 2.0
    rewards[1, 0, 1] = rewards[2, 4, 3] = np.nan
    valid = rng.random((5, 4)) < 0.85
    weights = (1.0, 0.5, 2.0)
    found, informative = jax.jit(losses.separate_advantages)(
        rewards.astype(np.float32), weights, valid
    )
    known = [[[None if np.isnan(x) else x for x in row] for row in own] for own in rewards.tolist()]
    wanted = naive_separate(known, weights, valid.tolist())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert informative.tolist() == [True, True, True, False, True]


def test_the_divergence_is_charged_to_the_reward():
    """Advantages of reward - beta * sum of log(policy / reference), completion by completion."""
    logprobs, old, reference, sampler, mask, advantages = draw(6)
    rewards = np.random.default_rng(7).normal(size=(B, R)).astype(np.float32)
    rewards[0, 1] = np.nan
    lengths = mask.sum(-1).astype(np.int32)
    groups = Groups(None, np.zeros((B, R, C), np.int32), lengths)
    rows = GroupRows(groups, advantages, sampler, old=old, reference=reference, rewards=rewards)
    options = types.SimpleNamespace(loss=config(beta=0.3), spread="group", steps_per_rollout=2)
    charged, mean = charge_divergence(rows, options)
    for b in range(B):
        taken = [r for r in range(R) if np.isfinite(rewards[b, r])]
        own = [rewards[b, r] - 0.3 * sum((old - reference)[b, r, : lengths[b, r]]) for r in taken]
        own = torch.tensor(np.array(own))
        wanted = np.zeros(R, np.float32)
        wanted[taken] = (own - own.mean()) / (own.std() + 1e-4)
        np.testing.assert_allclose(charged.advantages[b], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, (old - reference)[mask].mean(), rtol=1e-4)
    assert charged.reference is None
    assert charged.old is old
    options.steps_per_rollout = 1
    assert charge_divergence(rows, options)[0].old is None


def test_minibatches_hold_each_group_once():
    rows = GroupRows(
        Groups(None, np.arange(24).reshape(6, 2, 2), np.arange(12).reshape(6, 2)),
        np.arange(12.0).reshape(6, 2), np.arange(24.0).reshape(6, 2, 2),
    )  # fmt: skip
    parts = split_rows(rows, 3)
    assert [part.advantages[:, 0].tolist() for part in parts] == [[0, 6], [2, 8], [4, 10]]
    for part in parts:
        assert part.groups.lengths.tolist() == part.advantages.tolist()


def test_bad_settings():
    with pytest.raises(ValueError, match="variant is 'ppo'; choose one of"):
        config(variant="ppo")
    with pytest.raises(ValueError, match="kl is 'k4'; choose one of"):
        config(kl="k4")
    with pytest.raises(ValueError, match="kl is 'k1', whose gradient is 0 in expectation"):
        config(kl="k1")
    for fields, message in (
        ({"dual_clip": 0.9}, "dual_clip is 0.9; give a number above 1"),
        ({"dual_clip": 2.0, "variant": "cispo"}, "dual_clip does nothing in cispo"),
        ({"sampler_floor": 0.5}, "give a sampler_cap above it"),
        ({"top_entropy": 0.0}, "top_entropy is a share above 0"),
        ({"off_policy_limit": -1.0}, "off_policy_limit is not negative"),
        ({"num_given": -1}, "num_given is -1 and given_shaping 0.1; give a count"),
        ({"given_shaping": 0.0}, "given_shaping 0.0; give a count, and a number above 0"),
        ({"sampler_level": "word"}, "sampler_level is 'word'; choose one of"),
        ({"sampler_rule": "drop"}, "sampler_rule is 'drop'; choose one of"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**fields)
    with pytest.raises(ValueError, match="max_length is 0"):
        config(max_length=0)
    logprobs, *_, mask, advantages = draw()
    totals = losses.grpo_totals(jnp.asarray(mask))
    with pytest.raises(ValueError, match="give the reference policy"):
        losses.grpo_loss(logprobs, advantages, jnp.asarray(mask), totals, config())
