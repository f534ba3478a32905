"""Weights, gates, masks, user rewards and statistics of a batch."""

import math
import threading
import time
import types

import numpy as np
import pytest
import torch

from videorft_jax.rewards import accuracy, combine, user
from videorft_jax.rewards import metrics as statistics
from videorft_jax.rewards.accuracy import score_accuracy, to_float

MC, NUM, OCR, FREE, REG = "multiple choice", "numerical", "OCR", "free-form", "regression"


def complete(answer, think="I see."):
    return f"<think>{think}</think><answer>{answer}</answer>"


def make_record(problem_type=MC, solution="A", **fields):
    defaults = {"problem_id": 1, "problem": "What?", "data_type": "video", "options": ()}
    defaults |= {"process": "", "path": "./a.mp4", "data_source": "", "extra": {}}
    fields = defaults | {"problem_type": problem_type, "solution": solution} | fields
    return types.SimpleNamespace(**fields)


def reward_length(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions]


def reward_fields(prompts, completions, solution, level, **kwargs):
    assert set(prompts) == {"What?"}
    return [1.0 if s in c else lv for c, s, lv in zip(completions, solution, level, strict=True)]


def reward_mixed(completions, **kwargs):
    table = {"none": None, "nan": math.nan, "inf": -math.inf, "text": "1", "true": True}
    table |= {"tensor": torch.tensor(0.5), "array": np.float32(0.25), "huge": 10**400}
    return [table.get(text, 2.0) for text in completions]


def reward_broken(completions, **kwargs):
    if "raise" in completions:
        raise KeyError("no\nsuch key")
    if "exit" in completions:
        raise SystemExit(3)
    if "short" in completions:
        return [1.0]
    if "scalar" in completions:
        return 1.0
    return np.ones(len(completions))


def reward_without_kwargs(prompts, completions):
    return [1.0] * len(completions)


REACHED, RELEASE, CALLS = threading.Event(), threading.Event(), []


def reward_hanging(completions, **kwargs):
    CALLS.append(completions)
    if "hang" in completions:
        REACHED.set()
        assert RELEASE.wait(60)
    return [1.0] * len(completions)


def spec(function):
    return f"{__name__}:{function.__name__}"


def run(rewards, completions, records=None, mode="strict", **kwargs):
    records = records or [make_record() for _ in completions]
    given_names = {k: kwargs.pop(k) for k in ("prompts", "given", "num_tokens") if k in kwargs}
    config = combine.RewardConfig(rewards, mode, **kwargs)
    return combine.Rewards(config)(completions, records, **given_names)


def test_weights_gate_and_mask():
    completions = [[complete("A"), complete("B"), complete("A")], [complete("A x")] * 3]
    records = [make_record(MC, "A"), make_record(FREE, "A b c d e f g")]
    semantic = np.array([[0.4, 0.6, math.nan], [0.5, math.nan, 0.9]])
    rewards = (("accuracy", 1.0), ("format", 0.5), ("semantic", 2.0))
    batch = run(rewards, completions, records, given={"semantic": semantic})
    free = to_float(score_accuracy(complete("A x"), "A b c d e f g", FREE))
    assert 0 < free < 0.3  # one shared word does not open the strict gate
    np.testing.assert_array_equal(batch.is_open, [[True, False, True], [False] * 3])
    np.testing.assert_array_equal(batch.valid, [[True, True, False], [True, False, True]])
    low = free + 0.5  # a failed score masks its sample behind a closed gate as well
    np.testing.assert_allclose(batch.total, [[2.3, 0.5, math.nan], [low, math.nan, low]])
    np.testing.assert_array_equal(batch.scores["semantic"], semantic)
    assert batch.counts == {"semantic/failed": 2}
    repo = run(rewards, completions, records, "repo", given={"semantic": semantic})
    np.testing.assert_allclose(repo.total[1], free + 0.5 + 2 * semantic[1])
    gate = ((FREE, free - 0.01),)
    opened = run(rewards, completions, records, given={"semantic": semantic}, gate=gate)
    np.testing.assert_allclose(opened.total[1], free + 0.5 + 2 * semantic[1])
    ungated = run(rewards, completions, records, given={"semantic": semantic}, gated=())
    assert ungated.is_open is None
    np.testing.assert_allclose(ungated.total[0, 1], 0.5 + 2 * 0.6)


def test_failed_sample_is_masked_and_unparseable_is_zero():
    completions = [[complete("A"), "no tags"], [complete("A")] * 2]
    batch = run((("accuracy", 1.0),), completions, [make_record(), make_record(MC, "the cat")])
    np.testing.assert_array_equal(batch.total, [[1, 0], [math.nan, math.nan]])
    np.testing.assert_array_equal(batch.valid, [[True, True], [False, False]])
    assert batch.counts == {"accuracy/unparseable": 1, "accuracy/failed": 2}
    unweighted = run(
        (("format", 1.0), ("accuracy", 0.0)), completions[1:], [make_record(MC, "cat")]
    )
    np.testing.assert_array_equal(unweighted.total, [[1, 1]])
    assert np.isnan(unweighted.scores["accuracy"]).all()


def test_gate_needs_accuracy_to_be_known():
    rewards = (("accuracy", 0.0), ("semantic", 1.0))
    semantic = np.array([[0.5]])
    batch = run(rewards, [["x"]], [make_record(MC, "cat")], given={"semantic": semantic})
    assert not batch.valid.any()


def test_batch_equals_one_by_one():
    rng = np.random.default_rng(0)
    solutions = {MC: "A", NUM: "4", OCR: "a b c", FREE: "a man rides", REG: "5", "other": "x"}
    texts = ["A", "4", "a b", "a man", "4.5", "nan", "", "B"]
    kinds = [list(solutions)[i] for i in rng.integers(6, size=40)]
    records = [make_record(kind, solutions[kind], extra={"level": 0.5}) for kind in kinds]
    completions = [[complete(texts[i]) for i in rng.integers(8, size=3)] for _ in kinds]
    rewards = (("accuracy", 1.0), ("format", 1.0), ("semantic", 1.0), (spec(reward_fields), 1.0))
    semantic = rng.random((40, 3))
    for mode in accuracy.MODES:
        whole = run(rewards, completions, records, mode, given={"semantic": semantic})
        for i in range(40):
            part = slice(i, i + 1)
            one = run(
                rewards, completions[part], records[part], mode, given={"semantic": semantic[part]}
            )
            np.testing.assert_array_equal(whole.total[part], one.total)
            for name, scores in one.scores.items():
                np.testing.assert_array_equal(whole.scores[name][part], scores)


def test_favour_length_is_that_of_the_original():
    scores = np.array([[1, 0.2, 0.05, 1], [1, 0, 0, 0], [1, 1, math.nan, 1]])
    lengths = np.array([[320, 512, 400, 513], [400] * 4, [319, 400, 400, 400]])
    expected = [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    np.testing.assert_array_equal(combine.favour_length(scores, lengths), expected)
    completions = [[complete("A"), complete("A"), complete("B")]]
    rewards = (("accuracy", 1.0), ("length", 0.2))
    batch = run(rewards, completions, mode="repo", num_tokens=np.array([[400, 100, 400]]))
    np.testing.assert_allclose(batch.total, [[1.2, 1, 0]])


def test_overlong_completions_are_punished_softly():
    """DAPO, eq. 13, one completion at a time."""
    lengths = np.array([[1, 600, 640, 641], [704, 767, 768, 769]])
    found = combine.punish_overlong(lengths, 768, 128)
    for length, value in zip(lengths.ravel(), found.ravel(), strict=True):
        if length <= 768 - 128:
            wanted = 0.0
        else:
            wanted = (768 - 128 - length) / 128 if length <= 768 else -1.0
        assert value == wanted
    rewards = (("accuracy", 1.0), ("overlong", 0.5))
    texts = [[complete("A"), complete("A")]]
    batch = run(rewards, texts, num_tokens=np.array([[640, 704]]))
    np.testing.assert_allclose(batch.total, [[1.0, 0.75]])
    np.testing.assert_allclose(batch.terms, [[[1.0, 1.0]], [[0.0, -0.5]]])
    with pytest.raises(ValueError, match="overlong_tokens is 900; give at least 1 and at most"):
        combine.RewardConfig((("overlong", 1.0),), overlong=(768, 900))
    with pytest.raises(ValueError, match="num_tokens"):
        run(rewards, texts)


def test_reward_order():
    ordered = np.array([[1, 1, 0, math.nan], [1, 0, 0, 0], [1, 1, 1, 1], [math.nan] * 4])
    shuffled = np.array([[1, math.nan], [1, 0], [0, 0], [0, 0]])
    # means 2/3 against 1, 1/4 against 1/2, 1 against 0 (an image), unknown
    is_video = np.array([True, True, False, True])
    got = combine.reward_order(ordered, shuffled, is_video, ratio=0.6)
    np.testing.assert_array_equal(got, [[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4])
    assert not combine.reward_order(ordered, shuffled, is_video).any()


def test_user_rewards_see_fields_and_extras():
    record = make_record(MC, "A", extra={"level": 0.25, "prompts": "not these"})
    batch = run(((spec(reward_fields), 1.0),), [["A", "B"]], [record])
    np.testing.assert_array_equal(batch.total, [[1, 0.25]])
    name = spec(reward_length)
    batch = run(((name, 2.0), ("format", 1.0)), [["A", "xyz"]])
    np.testing.assert_array_equal(batch.scores[name], [[1, 3]])
    np.testing.assert_array_equal(batch.total, [[2, 6]])


def test_user_values_are_checked_one_by_one():
    name = spec(reward_mixed)
    texts = ["none", "nan", "inf", "text", "true", "tensor", "array", "huge", "x"]
    batch = run(((name, 1.0),), [texts])
    nan = math.nan
    np.testing.assert_array_equal(batch.total, [[nan, nan, nan, nan, 1, 0.5, 0.25, nan, 2]])
    reasons = {"not_applicable": 1, "not_finite": 3, "wrong_type": 1}
    assert batch.counts == {f"{name}/{reason}": n for reason, n in reasons.items()}


def test_a_broken_reward_costs_its_group_only():
    name = spec(reward_broken)
    completions = [["ok", "ok"], ["raise", "x"], ["short", "x"], ["scalar", "x"], ["exit", "x"]]
    batch = run(((name, 1.0), ("format", 1.0)), completions)
    np.testing.assert_array_equal(batch.valid.all(axis=1), [True, False, False, False, False])
    np.testing.assert_array_equal(batch.valid.any(axis=1), [True, False, False, False, False])
    np.testing.assert_array_equal(batch.scores["format"], np.zeros((5, 2)))
    reasons = {"raised": 4, "wrong_length": 2, "wrong_type": 2}
    assert batch.counts == {f"{name}/{reason}": n for reason, n in reasons.items()}


def test_a_hanging_reward_is_left_behind_and_not_called_twice():
    REACHED.clear()
    RELEASE.clear()
    CALLS.clear()
    reward = user.UserReward(spec(reward_hanging))
    completions = [["ok", "ok"], ["hang", "x"], ["ok", "ok"]]
    records = [make_record() for _ in completions]
    prompts = ["What?"] * 3
    collect = reward.start(prompts, completions, records)
    assert REACHED.wait(60)
    values, reasons = collect(time.monotonic())
    np.testing.assert_array_equal(np.isnan(values), [[False] * 2, [True] * 2, [True] * 2])
    assert reasons == {"timeout": 4}
    values, reasons = reward.start(prompts, completions, records)(time.monotonic() + 60)
    assert np.isnan(values).all()
    assert reasons == {"busy": 6}
    RELEASE.set()
    reward._thread.join(60)
    assert completions[:2] == CALLS  # the third was not begun after the deadline
    values, reasons = reward.start(prompts, completions, records)(time.monotonic() + 60)
    np.testing.assert_array_equal(values, np.ones((3, 2)))
    assert reasons == {}


def test_the_time_limit_of_the_config_is_kept():
    RELEASE.clear()
    name = spec(reward_hanging)
    batch = run(((name, 1.0), ("format", 1.0)), [["hang", "x"]], timeout_s=0.05)
    RELEASE.set()
    assert not batch.valid.any()
    assert batch.counts == {f"{name}/timeout": 2}


@pytest.mark.parametrize(
    "name",
    ["no_such_module:f", f"{__name__}:no_such", f"{__name__}:", ":", spec(reward_without_kwargs)],
)
def test_user_rewards_are_refused_at_the_start(name):
    with pytest.raises(ValueError, match="reward .*; (write module:function|take|name)"):
        combine.Rewards(combine.RewardConfig(((name, 1.0),)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((("accuracy", 1.0),), "lenient"), "choose one of"),
        (((("accuracy", 1.0), ("accuracy", 1.0)),), "each reward once"),
        (((),), "at least one"),
        (((("accuracy", math.nan),),), "finite"),
        (((("semantic", 1.0),),), "depends on accuracy"),
        (((("length", 1.0),),), "depends on accuracy"),
        (((("accuracy", 1.0),), "strict", ("accuracy",)), "gated by itself"),
        (((("accuracy", 1.0),), "strict", (), (("OCR", math.inf),)), "finite"),
    ],
)
def test_bad_configs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        combine.RewardConfig(*arguments)


def test_bad_batches_are_refused():
    rewards = (("accuracy", 1.0), ("semantic", 1.0))
    semantic = {"semantic": np.zeros((1, 2))}
    for completions, records in [
        ([["a", "b"]], [make_record()] * 2),
        ([["a"], ["a", "b"]], [make_record()] * 2),
        ([[]], [make_record()]),
        (["ab"], [make_record()]),
        ([], []),
    ]:
        with pytest.raises(ValueError, match="same number of completions"):
            run((("format", 1.0),), completions, records or None)
    with pytest.raises(ValueError, match="not a string"):
        run((("format", 1.0),), [[None]])
    with pytest.raises(ValueError, match="needed for"):
        run(rewards, [["a", "b"]])
    with pytest.raises(ValueError, match="needed for"):
        run((("accuracy", 1.0),), [["a", "b"]], given=semantic)
    with pytest.raises(ValueError, match="semantic has shape"):
        run(rewards, [["a"]], given=semantic)
    with pytest.raises(ValueError, match="num_tokens"):
        run((("accuracy", 1.0), ("length", 0.2)), [["a"]])


def test_score_is_the_public_door():
    record = make_record(REG, "5")
    texts = [complete("nan"), complete("4"), complete("4") + "\n"]
    nested = combine.score([texts], [record], "repo")
    np.testing.assert_allclose(nested["accuracy"], [[1, 0.8, 0.8]])
    np.testing.assert_array_equal(nested["format"], [[1, 1, 0]])
    flat = combine.score(texts, [record] * 3, "repo")
    np.testing.assert_allclose(flat["accuracy"], [1, 0.8, 0.8])
    strict = combine.score(texts, [record] * 3)  # strict rules, accuracy and format
    np.testing.assert_allclose(strict["accuracy"], [0, 0.8, 0.8])
    np.testing.assert_array_equal(strict["format"], [1, 1, 1])
    failed = combine.score([complete("A")], [make_record("other")], "strict")
    np.testing.assert_array_equal(failed["accuracy"], [math.nan])
    with pytest.raises(ValueError, match="semantic needs more than text"):
        combine.score(texts, [record] * 3, rewards=("semantic",))


def test_statistics():
    rewards = (("accuracy", 1.0), ("semantic", 1.0))
    config = combine.RewardConfig(rewards)
    scores = {
        "accuracy": np.array([[1, 0, 1, 0], [0, 0, 0, math.nan], [0.9, 0.8, 0.7, 0.75]]),
        "semantic": np.array([[0.5, 0.5, math.nan, 0], [0, 0, 0, 0], [0, 0.1, 0.2, 0.15]]),
    }
    kinds = [MC, MC, FREE]
    total, valid, is_open = combine.combine(scores, kinds, config)
    counts = {"accuracy/failed": 1}
    batch = combine.RewardBatch(scores, total, valid, is_open, counts)
    got = statistics.summarize(batch, kinds, config)
    assert got["rewards/accuracy/mean"] == pytest.approx((2 + 0.9 + 0.8 + 0.7 + 0.75) / 11)
    assert got[f"rewards/accuracy/mean/{MC}"] == pytest.approx(2 / 7)
    assert got[f"rewards/accuracy/std/{MC}"] == pytest.approx(math.sqrt(2 / 7 * 5 / 7))
    assert got[f"rewards/semantic/mean/{FREE}"] == pytest.approx(0.1125)
    assert got["gate/open"] == pytest.approx(6 / 11)
    assert got[f"gate/open/{MC}"] == pytest.approx(2 / 7)
    assert got[f"gate/open/{FREE}"] == 1
    assert got["groups/all_wrong"] == pytest.approx(1 / 3)
    assert got["groups/all_right"] == pytest.approx(1 / 3)  # 0.7 reaches 1 - 0.3
    assert got["groups/equal"] == pytest.approx(
        2 / 3
    )  # also 0.9, 0.8 + 0.1, 0.7 + 0.2, 0.75 + 0.15
    assert got["groups/dropped"] == 0
    assert got["samples/masked"] == pytest.approx(2 / 12)
    assert got["rewards/total/group_std"] == pytest.approx(
        np.std([1.5, 0, 0], ddof=1) / 3, abs=1e-6
    )
    assert got["counts/accuracy/failed"] == 1
    assert all(type(value) is float and math.isfinite(value) for value in got.values())


def test_statistics_without_a_valid_sample():
    config = combine.RewardConfig((("accuracy", 1.0),))
    batch = run(config.rewards, [["x", "y"]], [make_record(MC, "cat")])
    got = statistics.summarize(batch, [MC], config)
    assert got["groups/dropped"] == 1
    assert got["samples/masked"] == 1
    assert "rewards/accuracy/mean" not in got
    assert "groups/all_wrong" not in got
    assert all(math.isfinite(value) for value in got.values())
