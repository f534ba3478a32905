"""Advantages and every loss variant against loops in PyTorch, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from naive_grpo import loss as naive

from videorft_jax import losses

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
        {"kl": "k2", "variant": "dapo"},
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
        totals = losses.grpo_totals(jnp.asarray(mask))
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
    logprobs, old, reference, _, mask, advantages = draw(1)
    totals = losses.grpo_totals(jnp.asarray(mask))
    for variant in losses.VARIANTS:
        c = config(variant=variant)

        def part(rows, c=c):
            return losses.grpo_loss(
                logprobs[rows], advantages[rows], jnp.asarray(mask[rows]), totals, c,
                old=old[rows], reference=reference[rows],
            )  # fmt: skip

        whole, whole_metrics = part(slice(None))
        pieces = [part(slice(b, b + 1)) for b in range(B)]
        np.testing.assert_allclose(sum(loss for loss, _ in pieces), whole, rtol=1e-5)
        for name, value in whole_metrics.items():
            added = sum(metrics[name] for _, metrics in pieces)
            np.testing.assert_allclose(added, value, rtol=1e-5)


def test_masked_values_reach_nothing():
    """NaN under the mask, as padding or a failed completion may hold, changes no number."""
    logprobs, old, reference, sampler, mask, advantages = draw(2)
    totals = losses.grpo_totals(jnp.asarray(mask))

    def run(logprobs, old, reference, sampler):
        return jax.value_and_grad(
            lambda lp: losses.grpo_loss(
                lp, advantages, jnp.asarray(mask), totals, config(sampler_cap=2.0),
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
