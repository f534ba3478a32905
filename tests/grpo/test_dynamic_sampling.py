"""Which groups dynamic sampling trains on, and that padding them to one shape changes nothing."""

import contextlib
import types

import hf_twin as hf
import jax
import numpy as np
import pytest

from videorft_jax.data.batch import layout
from videorft_jax.data.batch.batch import Batch
from videorft_jax.grpo import leftover
from videorft_jax.grpo import trainer as grpo
from videorft_jax.grpo.dynamic_sampling import (
    LEFT,
    choose_rows,
    find_differing,
    find_shape,
    join_batches,
)
from videorft_jax.grpo.experience import Collector, Experience
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.grpo.update import GroupRows
from videorft_jax.rewards.combine import RewardConfig, combine
from videorft_jax.training.optimizer import OptimOptions, make_optimizer
from videorft_jax.training.run import Run
from videorft_jax.training.step import init_state

ROWS, R, C = 8, 2, 4
SHARES = np.array([0.45, 0.25, 0.15, 0.1, 0.05])  # share of each shape among the batches


def test_joined_batches_are_those_that_the_loader_would_pack(tmp_path):
    """Rows of two shapes, joined, equal the rows packed at once into the larger shape."""
    rng = np.random.default_rng(0)
    config = hf.make_twin(tmp_path).config
    clips = [hf.random_clip(rng, 4, 3, 12, 2.0), hf.random_clip(rng, 6, 2, 2, 1.3)]
    samples = [hf.make_sample(rng, config, [3 + b, clip, 2]) for b, clip in enumerate(clips)]
    shapes = [(len(sample.tokens), *window_shape(sample)) for sample in samples]
    assert shapes[0][1] < shapes[1][1]
    assert shapes[0][2] > shapes[1][2]  # neither shape holds the other
    own = [layout.pack([[s]], *shape) for s, shape in zip(samples, shapes, strict=True)]
    wanted = layout.pack([[s] for s in samples], *np.max(shapes, axis=0))
    found = join_batches(own, find_shape(own))
    for name, leaf in found._asdict().items():
        held = getattr(wanted, name)
        assert leaf.dtype == held.dtype, name
        np.testing.assert_array_equal(leaf, held, err_msg=name)


def window_shape(sample):
    """(frame pairs, windows) that the clips of a sample need."""
    wide = layout.pack([[sample]], len(sample.tokens), 16, 16).patch_valid[0].any(-1)
    return int(wide.any(1).sum()), int(wide.any(0).sum())


def simulate(steps, chance, max_draws):
    """(drawn, trained) groups that differ, by shape, of the real collector and rows."""
    rng, mesh = np.random.default_rng(0), None
    collector = Collector.__new__(Collector)
    collector.options, collector.rows = types.SimpleNamespace(max_draws=max_draws), ROWS
    collector.engine = types.SimpleNamespace(prepare=lambda policy: None)
    trainer = grpo.Trainer.__new__(grpo.Trainer)
    trainer.mesh, trainer.left = mesh, leftover.Leftover()
    trainer.options = types.SimpleNamespace(
        length_buckets=1,
        mask_truncated=False,
        max_draws=max_draws,
        kl_in_reward=False,
        rollout=types.SimpleNamespace(max_new_tokens=C),
    )

    def collect_one(prepared, item, prompts, tracker, number):
        differing = rng.random(ROWS) < chance
        tokens = np.full((ROWS, 8 + item.shape), item.shape)
        pixels = np.zeros((ROWS, 1 + item.shape % 2, 1 + item.shape // 2, 64, 4), np.uint8)
        batch = Batch(
            tokens, tokens, tokens[:, None].repeat(3, 1), tokens > 0, tokens * 0 - 1,
            pixels, pixels[..., 0] > 0, pixels[..., :2],
        )  # fmt: skip
        drawn = types.SimpleNamespace(
            tokens=np.zeros((ROWS, R, C), int), lengths=np.full((ROWS, R), C),
            logprobs=np.zeros((ROWS, R, C)), turns=None,
        )  # fmt: skip
        verdict = types.SimpleNamespace(valid=np.ones((ROWS, R), bool))
        says = differing[:, None].repeat(R, 1).astype(float)
        return Experience(item, batch, drawn, verdict, says, differing, differing, None)

    collector._collect_one = collect_one
    items = iter(lambda: (types.SimpleNamespace(shape=rng.choice(len(SHARES), p=SHARES)), None), 0)
    tracker = types.SimpleNamespace(phase=lambda name: contextlib.nullcontext())
    drawn, trained = np.zeros((2, len(SHARES)))
    for _ in range(steps):
        waiting = len(trainer.left)
        parts = collector.collect(None, items, tracker, 1, waiting)
        for part in parts:
            drawn[part.item.shape] += part.differing.sum()
        rows, fates, _ = trainer.make_rows(parts)
        assert len(rows.advantages) == ROWS
        says, shapes = rows.advantages[:, 0] > 0, rows.groups.batch.tokens[:, 0]
        found = waiting + sum(part.differing.sum() for part in parts)
        assert says.sum() == min(ROWS, found)
        assert len(trainer.left) == found - says.sum()
        told = sum(
            (np.array(fate)[part.differing] == LEFT).sum()
            for fate, part in zip(fates, parts, strict=True)
        )
        assert told == len(trainer.left)  # those that waited before are trained first
        np.add.at(trained, shapes[says], 1)
    return drawn, trained


def test_shapes_are_trained_as_often_as_they_are_drawn(monkeypatch):
    """10,000 groups and more of five shapes; before, 5 % of the groups became 0.7 %."""
    monkeypatch.setattr(grpo.sharding, "place_batch", lambda rows, mesh: rows)
    drawn, trained = simulate(steps=2500, chance=0.5, max_draws=4)
    assert drawn.sum() > 10_000
    np.testing.assert_allclose(trained / trained.sum(), drawn / drawn.sum(), atol=0.01)
    assert drawn.sum() - trained.sum() < ROWS  # none is lost but those that wait at the end


def test_groups_that_differ_come_before_those_that_do_not():
    differing = np.array([False, True, False, True, True])
    for count, taken, left in ((2, [1, 3], [4]), (1, [1], [3]), (4, [0, 1, 3, 4], [])):
        found = choose_rows(differing, count)
        np.testing.assert_array_equal(found[0], taken)
        np.testing.assert_array_equal(found[1], left)


def test_groups_that_wait_survive_a_restart(tmp_path):
    """Rows of two shapes, written beside a checkpoint and read again, on one process and on two."""
    rng = np.random.default_rng(0)

    def rows(count, length):
        tokens = rng.integers(0, 9, (count, length))
        pixels = rng.integers(0, 255, (count, 2, 1, 64, 4)).astype(np.uint8)
        batch = Batch(
            tokens, tokens, tokens[:, None].repeat(3, 1), tokens > 0, tokens * 0 - 1,
            pixels, pixels[..., 0] > 0, pixels[..., :2],
        )  # fmt: skip
        completions = rng.integers(0, 9, (count, R, C))
        groups = Groups(batch, completions, np.full((count, R), C))
        return GroupRows(groups, rng.normal(size=(count, R)), rng.normal(size=(count, R, C)))

    assert len(leftover.load(tmp_path, 4)) == 0  # as in a run of an earlier release
    parts = [rows(2, 8), rows(1, 12)]
    leftover.save(tmp_path, 2, parts, lambda step: True)
    leftover.save(tmp_path, 4, [], lambda step: True)
    found = leftover.load(tmp_path, 2)
    assert len(found) == 3
    assert jax.tree.map(np.array_equal, found.parts, parts) == jax.tree.map(lambda _: True, parts)
    assert len(leftover.load(tmp_path, 4)) == len(leftover.load(tmp_path, 0)) == 0
    leftover.save(tmp_path, 6, [], lambda step: step == 4)  # the checkpoint of step 2 is gone
    for step in (2, 5):
        with pytest.raises(ValueError, match=f"left over by step {step} cannot be read"):
            leftover.load(tmp_path, step)
    path = tmp_path / "leftover" / "00000006-0.npz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="left over by step 6 cannot be read"):
        leftover.load(tmp_path, 6)


@pytest.mark.parametrize(("draws", "max_steps"), [(1, 0), (3, 0), (3, 20), (2, 10)])
def test_the_learning_rate_ends_where_training_ends(draws, max_steps):
    """The schedule of the real optimizer, when each step takes several batches of the data."""
    options = OptimOptions("adamw", 1.0, "linear", 0, 0.9, 0.999, 1e-8, 0.0, 0.0, "float32", 0.0)
    run = Run.__new__(Run)
    run.loader, run.updates, batches = range(90), 1, 90
    run.total = min(batches, max_steps or batches)
    optimizer = make_optimizer(options, run.total)
    params = {"w": jax.numpy.ones(2)}
    run.options = types.SimpleNamespace(optim=options)
    state = init_state(params, {}, optimizer)
    update = jax.jit(optimizer.update)
    number, batch, rates = 0, 0, []
    while number < run.total and batch < batches:
        number += 1
        if draws > 1:
            state = run.place_schedule(state, number, batch)
        updates, opt_state = update(params, state.opt_state, params)
        state, batch = state._replace(opt_state=opt_state), batch + draws
        rates.append(run.learning_rate(state))
    np.testing.assert_allclose(rates, 1 - np.arange(number) / number, atol=0.02)
    assert number == min(run.total, batches // draws)


@pytest.mark.parametrize("name", ["accuracy", "total"])
def test_a_shaped_total_does_not_make_a_group_differ(name):
    """All right with other SigLIP scores, all wrong with one bad format, and a real difference."""
    rng = np.random.default_rng(0)
    config = RewardConfig((("accuracy", 1.0), ("format", 1.0), ("semantic", 1.0)))
    scores = {
        "accuracy": np.array([[1.0] * 4, [0.0] * 4, [1.0, 0, 0, 0]]),
        "format": np.array([[1.0] * 4, [1.0, 1, 0, 1], [1.0] * 4]),
        "semantic": 0.4 + 0.004 * rng.normal(size=(3, 4)),
    }
    total, valid, _ = combine(scores, ["multiple choice"] * 3, config)
    found = find_differing(scores, total, valid, name)
    assert found.tolist() == ([False, False, True] if name == "accuracy" else [True] * 3)
    taking = valid & [False, True, True, True]  # the right one has no end
    assert not find_differing(scores, total, taking, "accuracy").any()
    two = np.array([[1.0, 0.0]])
    assert find_differing({"accuracy": two}, two, np.ones((1, 2), bool), "accuracy").all()
    assert not find_differing({"accuracy": two}, two, np.array([[True, False]]), "accuracy").any()


def test_a_step_without_completions_moves_no_weight():
    """Neither momentum nor weight decay; the number of the step still rises."""
    trainer = grpo.Trainer.__new__(grpo.Trainer)
    trainer.options = types.SimpleNamespace(steps_per_rollout=2, mask_truncated=True)
    state = types.SimpleNamespace(step=np.int32(4), skipped=3, params={"w": jax.numpy.ones(2)})
    state._replace = lambda step: types.SimpleNamespace(**vars(state) | {"step": step})
    passed, metrics = trainer.pass_over(state)
    assert (passed.step, passed.params) == (6, state.params)
    assert metrics == {"loss": 0.0, "skipped": 3, "skipped_in_row": 0}
    part = types.SimpleNamespace(
        verdict=types.SimpleNamespace(valid=np.array([[True, True, False]])),
        rollout=types.SimpleNamespace(stopped=np.array([[True, False, True]])),
    )
    assert trainer.taking_part(part).tolist() == [[True, False, False]]
