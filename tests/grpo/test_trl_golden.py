"""Loss, gradients and advantages against TRL 1.16's own code, recorded on 288 cases.

The file was written by running TRL's `GRPOTrainer._compute_loss` and its advantages on random
inputs. Four differences are meant; each is undone here, so that every case is compared:

far_reference  ours clips log(p_ref / p) to +-10 before it is raised, as the original does.
masked         ours divides by the completions that take part, TRL by all of the batch.
gspo clip      ours counts the share of clipped tokens, TRL that of clipped completions.
bnpo           is dapo on one process.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax import losses

FILE = pathlib.Path(__file__).parents[1] / "golden" / "trl_grpo.npz"
SETS = ("plain", "masked", "far_reference", "far_old")
SIZE = 7  # C of the recorded inputs


@functools.cache
def recorded():
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


def cases(name):
    """(variant, options, whether it is the first update, key) of every case of an input set."""
    found = sorted(
        key for key in recorded() if key.startswith(f"out|{name}|") and key[-4:] == "loss"
    )
    for key in found:
        _, _, variant, beta, high, on_policy, cap, _ = key.split("|")
        beta, high, cap = (float(part.split("=")[1]) for part in (beta, high, cap))
        ours = "dapo" if variant == "bnpo" else variant
        options = losses.LossOptions(ours, beta, "k3", 0.2, high, SIZE, cap)
        yield variant, options, on_policy == "on", key.removesuffix("loss")


@pytest.mark.parametrize("name", SETS)
def test_losses_and_gradients(name, monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOG_RATIO", np.inf)
    names = ("logprobs", "old", "reference", "sampler", "mask", "advantages")
    given = {field: jnp.asarray(recorded()[f"{name}|in|{field}"]) for field in names}
    mask, totals = given["mask"], losses.grpo_totals(given["mask"])
    taking = float(mask.any(-1).mean())
    count = 0
    for variant, options, first, key in cases(name):

        def loss(logprobs, options=options, first=first):
            return losses.grpo_loss(
                logprobs, given["advantages"], mask, totals, options,
                old=None if first else given["old"], sampler=given["sampler"],
                reference=given["reference"] if options.beta else None,
            )  # fmt: skip

        (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(given["logprobs"])
        wanted = {part: recorded()[key + part] for part in ("loss", "grad", "kl", "clip")}
        share = taking if variant in ("grpo", "gspo", "dr_grpo") else 1.0
        np.testing.assert_allclose(value * share, wanted["loss"], rtol=1e-5, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(grad * share, wanted["grad"], rtol=1e-5, atol=1e-5, err_msg=key)
        if options.beta:
            np.testing.assert_allclose(metrics["kl"], wanted["kl"], rtol=1e-5, err_msg=key)
        clip = metrics["clip_fraction"]
        if variant == "gspo" and not first:
            clip = clipped_completions(given, options)
        np.testing.assert_allclose(clip, wanted["clip"], atol=1e-6, err_msg=key)
        count += 1
    assert count == 72


def clipped_completions(given, options):
    """The share of completions whose sequence ratio is clipped, all of the batch counted."""
    mask = np.asarray(given["mask"])
    gap = np.where(mask, np.asarray(given["logprobs"] - given["old"]), 0.0).sum(-1)
    ratio, good = np.exp(gap / np.maximum(mask.sum(-1), 1)), np.asarray(given["advantages"]) > 0
    bad = np.asarray(given["advantages"]) < 0
    low, high = 1 - options.clip_low, 1 + options.clip_high
    return (((ratio < low) & bad) | ((ratio > high) & good)).mean()


def test_the_clip_of_the_log_ratio_is_the_only_difference_far_from_the_reference():
    """Without a far reference the clip changes nothing, with one it changes the loss."""
    changed = {}
    for name in ("plain", "far_reference"):
        given = {
            field: recorded()[f"{name}|in|{field}"]
            for field in ("logprobs", "reference", "mask", "advantages")
        }
        options = losses.LossOptions("grpo", 0.04, "k3", 0.2, 0.2, SIZE, 0.0)
        mask = jnp.asarray(given["mask"])
        value, _ = losses.grpo_loss(
            given["logprobs"], given["advantages"], mask, losses.grpo_totals(mask), options,
            reference=given["reference"],
        )  # fmt: skip
        wanted = recorded()[f"out|{name}|grpo|beta=0.04|high=0.2|on|cap=0.0|loss"]
        changed[name] = abs(float(value) - float(wanted)) > 1e-5
    assert changed == {"plain": False, "far_reference": True}


@pytest.mark.parametrize("spread", losses.SPREADS)
@pytest.mark.parametrize("which", ["full", "partial"])
def test_advantages(which, spread):
    """TRL gives every group advantages; ours gives 0 where all rewards are one number. In TRL a
    reward that does not apply adds nothing to the sum."""
    rewards = recorded()["adv|r" if which == "full" else "adv|partial"]
    total = np.nansum(rewards * recorded()["adv|w"], -1).astype(np.float32)
    valid = np.isfinite(rewards).any(-1)
    np.testing.assert_allclose(total[valid], recorded()[f"adv|{which}|total"][valid], rtol=1e-6)
    got, _ = losses.group_advantages(jnp.asarray(total), jnp.asarray(valid), spread=spread)
    wanted = recorded()[f"adv|{which}|{spread}"]
    np.testing.assert_allclose(got, np.where(valid, wanted, 0.0), rtol=1e-4, atol=1e-5)
