"""Faults of a GRPO step that change no shape and raise nothing: each is seen by a number here."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax import losses
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.grpo import experience, judge
from videorft_jax.grpo.trainer import Trainer
from videorft_jax.rewards.combine import RewardBatch, RewardConfig


def loss_options(**fields):
    plain = {"variant": "grpo", "beta": 0.0, "kl": "k3", "clip_low": 0.2, "clip_high": 0.2}
    return losses.LossOptions(**(plain | {"max_length": 4, "sampler_cap": 0.0} | fields))


def run_loss(ratio, advantage, **fields):
    """(loss, metrics) of completions of one token each, ratio [R], advantage [R]."""
    old = jnp.zeros((1, len(ratio), 1))
    logprobs, mask = jnp.log(jnp.array(ratio))[None, :, None], jnp.ones(old.shape, bool)
    return losses.grpo_loss(
        logprobs, jnp.array([advantage]), mask, losses.grpo_totals(mask), loss_options(**fields),
        old=old, reference=fields.get("beta") and old,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "advantage", "fraction"),
    [(0.5, 1.0, 0.0), (0.5, -1.0, 1.0), (1.5, 1.0, 1.0), (1.5, -1.0, 0.0), (1.1, 1.0, 0.0)],
)
def test_clipping_is_counted_where_it_takes_the_gradient(ratio, advantage, fraction):
    assert float(run_loss([ratio], [advantage])[1]["clip_fraction"]) == fraction


@pytest.mark.parametrize("kl", losses.KL_ESTIMATORS)
def test_divergence_is_bounded_far_from_the_reference(kl):
    """log(reference / policy) = 30 counts as 10, as in the published code."""
    ratio = np.exp(-30.0)
    bounded = {"k2": 50.0, "k3": np.exp(10.0) - 11.0}
    bounded["k3_weighted"] = ratio * bounded["k3"]
    found = run_loss([ratio], [0.0], beta=1.0, kl=kl)[1]["kl"]
    np.testing.assert_allclose(found, bounded[kl], rtol=1e-4)


def test_two_valid_completions_can_teach():
    rewards = jnp.array([[1.0, 0.0, 5.0], [1.0, 1.0, 5.0], [1.0, 0.0, 5.0]])
    valid = jnp.array([[True, True, False], [True, True, False], [True, False, False]])
    advantages, informative = losses.group_advantages(rewards, valid)
    assert informative.tolist() == [True, False, False]
    expected = 0.5 / (np.sqrt(0.5) + 1e-4)
    np.testing.assert_allclose(advantages[0], [expected, -expected, 0.0], rtol=1e-5)


def test_every_update_reads_the_log_probabilities_before_the_first():
    """Both updates of both mini-batches, and the metrics are those of the last one."""
    trainer, taken = Trainer.__new__(Trainer), []
    trainer.options = types.SimpleNamespace(
        needs_score=True, kl_in_reward=False, minibatches=2, num_updates=2
    )
    trainer.reference = ("reference weights",)

    def step(state, rows, reference):
        taken.append((rows.old, rows.reference, reference))
        return state._replace(step=state.step + 1), {"loss": state.step}

    class State(dict):
        params, frozen, reference = "params", "frozen", None

        def __init__(self, step):
            self.step = step

        def _replace(self, step):
            return State(step)

    class Rows:
        groups, old, reference = "groups", None, None

        def _replace(self, **fields):
            rows = Rows()
            vars(rows).update(fields)
            return rows

    trainer.programs = types.SimpleNamespace(
        score=lambda params, frozen, groups, reference: ("before", "known"),
        split=lambda rows: [rows, rows],
        step=step,
    )
    state, metrics = trainer.update(State(0), Rows())
    assert taken == [("before", "known", "reference weights")] * 4
    assert (state.step, metrics) == (4, {"loss": 3})


def make_part(valid, stopped, lengths):
    rollout = types.SimpleNamespace(
        lengths=np.array(lengths), stopped=np.array(stopped), tokens=np.ones((1, 3, 4), int),
        logprobs=np.zeros((1, 3, 4)), turns=None,
    )  # fmt: skip
    verdict = types.SimpleNamespace(valid=np.array(valid))
    return types.SimpleNamespace(
        rollout=rollout, verdict=verdict, batch="batch", visual=None, advantages=np.ones((1, 3))
    )


@pytest.mark.parametrize(("mask_truncated", "wanted"), [(False, [4, 0, 3]), (True, [0, 0, 3])])
def test_completions_without_reward_or_end_have_no_token_in_the_loss(mask_truncated, wanted):
    trainer = Trainer.__new__(Trainer)
    trainer.options = types.SimpleNamespace(mask_truncated=mask_truncated, kl_in_reward=False)
    part = make_part([[True, False, True]], [[False, True, True]], [[4, 2, 3]])
    assert trainer._host_rows(part).groups.lengths.tolist() == [wanted]


def test_a_completion_that_was_not_finite_has_no_reward():
    total, valid = np.array([[1.0, 0.5]]), np.ones((1, 2), bool)
    batch = RewardBatch({}, total, valid, None, {})
    found = judge._without_failed(batch, np.array([[False, True]]))
    assert found.valid.tolist() == [[True, False]]
    np.testing.assert_array_equal(found.total, [[1.0, np.nan]])


def test_the_order_reward_is_for_ordered_frames():
    """All right in order and all wrong out of it is rewarded; the reverse is not. One clip among
    the images of a prompt is enough, and images alone have no order."""
    own = judge.Judge.__new__(judge.Judge)
    own._config = RewardConfig((("accuracy", 1.0),))

    def show(*kinds):
        media = tuple(MediaItem(kind, "a") for kind in kinds)
        choice = {"problem_type": "multiple choice", "solution": "A", "options": ()}
        return types.SimpleNamespace(media=media, data_type=kinds[0], **choice)

    record = show("video")
    right, wrong = "<think>a</think><answer>A</answer>", "<think>a</think><answer>B</answer>"
    found = own._score_order([[right] * 2, [right, wrong]], [[wrong], [right]], [record] * 2)
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    records = [show("image", "video"), show("image", "image")]
    found = own._score_order([[right] * 2] * 2, [[wrong]] * 2, records)
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_shuffled_frames_meet_noise_of_their_own():
    collector, drawn = experience.Collector.__new__(experience.Collector), []

    class Engine:
        def rollout(self, prepared, batch, uids, *, seed, step, limits, **more):
            drawn.append((seed, step, limits.shape))

    collector.options = types.SimpleNamespace(
        rollout=types.SimpleNamespace(num_rollouts=4, max_new_tokens=8),
        train=types.SimpleNamespace(seed=3),
        loss=types.SimpleNamespace(num_given=0),
    )
    collector.engine = collector.shuffled_engine = Engine()
    collector.turns = None
    valid = np.array([True, False])
    item = types.SimpleNamespace(indices=[[5], [6]], valid=valid, index=9, pairs=[[1], []])
    prompts = types.SimpleNamespace(rows=None, placed=None)
    early = types.SimpleNamespace(take=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experience, "shuffle_frames", lambda batch, keys, pairs: batch)
        collector._draw(None, item, prompts, None, early)
    (seed, step, shape), (other_seed, other_step, other_shape) = drawn
    assert (seed, step, shape) == (3, 9, (2, 4))
    assert (other_seed, other_shape) == (3, (2, 2))
    assert other_step not in range(1 << 30)  # no step of any run has this number
