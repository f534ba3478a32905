"""The figures of launch/plans.json are of the programs that the code makes now."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from locked import text_of_locked_jax
from planned import ROOT, leave_out_largest_gap
from tiny_run import load_recipe

from videorft_jax.commands.plan import read_options
from videorft_jax.grpo import logprobs
from videorft_jax.planning import machines, plan
from videorft_jax.planning.compile import lower
from videorft_jax.planning.jobs import find_programs
from videorft_jax.rollout import programs

# The key of the commit before the later options of GRPO came (1c83303), whose completions went on
# behind the greatest position of a prompt.
FORMER = {"update": "2af5a06bb36a148d"}


def find_keys(names=None):
    """program -> key, of the recipe grpo_7b with 16 frames and 64 prompts a step on v6e-16."""
    config, machine = load_recipe("grpo_7b"), machines.find("v6e-16")
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.data.row_tokens = 64, 4096
    config.train.accumulate, config.rollout.mesh = 64 // machine.num_devices, ""
    job = plan.make_job(read_options(config), machine)
    found = [one for one in find_programs(job) if names is None or one.name in names]
    with jax.default_matmul_precision(None):  # Other tests compute in full float32.
        return {one.name: lower(job, one)[1] for one in found}


@text_of_locked_jax
def test_every_program_of_the_recipe_is_in_the_table():
    pytest.importorskip("libtpu")
    known = json.loads(pathlib.Path(ROOT, "launch/plans.json").read_text())
    assert {name for name, key in find_keys().items() if key not in known} == set()


@text_of_locked_jax
def test_a_step_with_every_later_option_off_is_the_program_that_it_was(monkeypatch):
    """The whole update, with the two changes that were meant taken back."""
    pytest.importorskip("libtpu")

    def after_greatest(batch):
        valid = batch.segment_ids > 0
        return jnp.where(valid[:, None], batch.positions, 0).max((1, 2)) + 1

    assert find_keys(FORMER) != FORMER
    leave_out_largest_gap(monkeypatch)
    for module in (programs, logprobs):
        monkeypatch.setattr(module, "next_position", after_greatest)
    assert find_keys(FORMER) == FORMER
