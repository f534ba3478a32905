"""The loss with every later option off is, to the instruction, the program that it was before, but
for one figure that it gives besides: the largest gap of sampler and trainer."""

import functools

import jax
import jax.numpy as jnp
import pytest
from locked import text_of_locked_jax
from planned import SHORT, leave_out_largest_gap, narrow_job, narrow_model

from videorft_jax import losses
from videorft_jax.planning.fingerprint import fingerprint
from videorft_jax.planning.jobs import find_programs

PLAIN = {
    "variant": "grpo", "beta": 0.04, "kl": "k3", "clip_low": 0.2, "clip_high": 0.28,
    "max_length": 16, "sampler_cap": 0.0,
}  # fmt: skip
# Digests of value and gradient, lowered at the commit before these options came (1c83303).
KNOWN = {
    "first": ({}, False, "ce33bbeeb2a1c17a"),
    "later": ({}, True, "0549b7a732b182c5"),
    "dapo": ({"variant": "dapo", "beta": 0.0, "sampler_cap": 2.0}, True, "e9172c841458731f"),
    "gspo": ({"variant": "gspo", "kl": "k3_weighted", "dual_clip": 3.0}, True, "ee77ff463ab42d30"),
    "entropy": ({"variant": "sapo", "entropy_bonus": 0.01}, True, "3a78a373b5f32b67"),
}
# Digests of the whole step with dense attention, lowered at 1a99540, whose step with the CPU's path
# was to the instruction that of the commit before completions could call tools, groups could hold
# given completions and the reference policy could follow (476380a).
ON_CPU = SHORT | {"mesh.tensor": 1, "model.dtype": "float32", "model.attention": "reference"}
ONE_UPDATE = ["3c56b29a7d99c395"]
# The first program scores the completions, the second is that of each update.
TWO_UPDATES = ["66dd1d515d0a227d", "269d129a7c2e87ed"]


def lower_loss(fields, has_old):
    options = losses.LossOptions(**(PLAIN | fields))
    wide = jax.ShapeDtypeStruct((4, 3, 16), jnp.float32)
    narrow = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((4, 3, 16), bool)

    def loss(logprobs, advantages, mask, old, reference, sampler, entropy):
        return losses.grpo_loss(
            logprobs, advantages, mask, losses.grpo_totals(mask), options,
            old=old if has_old else None, reference=reference if options.beta else None,
            sampler=sampler, entropy=entropy,
        )  # fmt: skip

    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return program.lower(wide, narrow, mask, wide, wide, wide, wide).as_text()


@text_of_locked_jax
@pytest.mark.parametrize("name", KNOWN)
def test_loss_is_the_program_that_it_was(name, monkeypatch):
    leave_out_largest_gap(monkeypatch)
    fields, has_old, digest = KNOWN[name]
    assert fingerprint(lower_loss(fields, has_old)) == digest


@pytest.mark.parametrize("name", ["top_entropy", "off_policy_limit"])
def test_an_option_that_is_on_is_another_program(name):
    text = lower_loss({name: 0.5}, True)
    assert fingerprint(text) != fingerprint(lower_loss({}, True))


def lower_step(names, num_updates, **changes):
    deep = functools.partial(narrow_model, 56)  # as when the digests were taken
    changes |= ON_CPU | {"grpo.num_updates": num_updates}
    job = narrow_job("cpu:2", "grpo", make_model=deep, **changes)
    found = {program.name: program for program in find_programs(job)}
    with jax.default_matmul_precision("default"):  # as in a run
        return [fingerprint(found[name].lower().as_text()) for name in names]


@text_of_locked_jax
def test_a_step_is_the_program_that_it_was(monkeypatch):
    leave_out_largest_gap(monkeypatch)
    assert lower_step(["update"], 1) == ONE_UPDATE


@text_of_locked_jax
@pytest.mark.slow
def test_several_updates_are_the_programs_that_they_were(monkeypatch):
    leave_out_largest_gap(monkeypatch)
    assert lower_step(["score", "update"], 2) == TWO_UPDATES
    assert lower_step(["update"], 1, **{"grpo.num_given": 1}) != ONE_UPDATE
