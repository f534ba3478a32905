"""A step that runs some programs several times is counted, searched and refused as it runs."""

import dataclasses

import jax
import pytest
from planned import load_recipe, narrow_job

from videorft_jax.commands.plan import read_options
from videorft_jax.planning import machines, plan, search
from videorft_jax.planning.compile import Store
from videorft_jax.planning.costs import program_costs
from videorft_jax.planning.estimate import estimate
from videorft_jax.planning.report import find_remedies, make_rows, summarise
from videorft_jax.planning.traffic import step_seconds

SEVERAL = {"grpo.max_draws": 3, "grpo.num_updates": 2, "grpo.minibatches": 2}


def test_what_is_compared_is_what_the_table_says():
    for changes in ({}, SEVERAL):
        job = narrow_job("H100:4", "grpo", **changes)
        step = summarise(job, make_rows(job))
        assert step_seconds(job) == pytest.approx(step["floor_s"])


def test_a_step_of_naive_rows_draws_and_updates_as_often():
    """Ours also copies weights and moves caches, which a naive step does not."""
    shares = []
    for changes in ({}, {"grpo.max_draws": 8}, {"grpo.num_updates": 4}):
        job = narrow_job("H100:4", "grpo", **changes)
        shares.append(summarise(job, make_rows(job))["floor_share_of_naive"])
    assert max(shares) < 1.2 * shares[0] < 1.2


def test_every_minibatch_reads_all_weights_and_takes_an_optimizer_step():
    """By hand: but for the embedding each weight is read three times in bfloat16, its gradient is
    written in float32, and 12 bytes of state are read and written; the rest, and all operations,
    grow with the rows of a minibatch."""
    found = []
    for minibatches in (1, 2):
        job = narrow_job("H100:4", "grpo", **{"grpo.minibatches": minibatches, "grpo.beta": 0.0})
        found.append(program_costs(job)["update"])
    assert 2 * found[1].model_flops == pytest.approx(found[0].model_flops, rel=1e-3)
    num_learnt = sum(leaf.size for leaf in jax.tree.leaves(job.state.params))
    num_learnt -= job.state.params["text"]["embed"].size
    assert 2 * found[1].bytes - found[0].bytes > (2 * 12 + 4 + 3 * 2) * num_learnt


def test_a_minibatch_needs_what_as_many_slices_need():
    sizes = [
        estimate(narrow_job("H100:4", "grpo", **{"data.rows": 8, name: 2}), "update").temporaries
        for name in ("grpo.minibatches", "train.accumulate")
    ]
    whole = estimate(narrow_job("H100:4", "grpo", **{"data.rows": 8}), "update").temporaries
    assert sizes[0] <= sizes[1] < whole


def test_rows_that_a_run_refuses_are_not_planned_or_proposed():
    config = load_recipe("grpo")
    config.data.rows, config.grpo.minibatches = 16, 4
    with pytest.raises(ValueError, match=r"minibatches = 4 .* must be a multiple of 32"):
        plan.make_job(read_options(config), machines.find("H100:8"))
    config.data.rows = 32
    job = plan.make_job(read_options(config), machines.find("H100:8"))
    found = search.candidates(job)
    assert found
    for _, _, other in found:
        other.grpo.check_parts(other.parts)
    assert not [each for each in find_remedies(job, "update") if "accumulate" in each]


def test_search_goes_on_to_what_fits_behind_much_that_is_faster_and_does_not():
    config = load_recipe("sft")
    config.data.rows, config.train.accumulate = 32, 1
    job = plan.make_job(read_options(config), machines.find("H100:8"))
    slimmest = min(
        estimate(other, "update").peak
        for _, changes, other in search.candidates(job)
        if changes.get("mesh.tensor", 1) == 1
    )
    topology = dataclasses.replace(job.topology, limit_gib=slimmest + 0.01)
    found = search.search(dataclasses.replace(job, topology=topology), Store())
    assert found is not None
    assert all(row.fits for row in found.rows)


def test_a_mesh_that_is_named_as_a_remedy_is_one():
    """The rollout's programs need less where the rollout's mesh changes, whatever the training's
    is; an update that takes all rows of a device at once needs more along a wider tensor axis."""
    config = load_recipe("grpo")
    config.data.rows, config.media.max_frames, config.data.row_tokens = 64, 64, 6144
    for place, sizes in (("H100:8", "1,8,1"), ("H100:8", ""), ("H200:8", "1,4,2")):
        config.rollout.mesh = sizes
        job = plan.make_job(read_options(config), machines.find(place))
        before = {row.name: row.peak_gib for row in make_rows(job)}
        for name in ("reshard", "prefill", "decode"):
            remedies = find_remedies(job, name)
            assert not [each for each in remedies if "mesh.tensor" in each]
            config.rollout.mesh = remedies[0].removeprefix("set rollout.mesh=")
            other = plan.make_job(read_options(config), machines.find(place))
            after = {row.name: row.peak_gib for row in make_rows(other)}
            assert after[name] < before[name]
        assert not [each for each in find_remedies(job, "update") if "mesh.tensor" in each]
        config.mesh.tensor = 2
        wide = plan.make_job(read_options(config), machines.find(place))
        config.mesh.tensor = 1
        assert estimate(wide, "update").peak > before["update"] - 1
