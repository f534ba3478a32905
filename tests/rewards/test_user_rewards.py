"""User rewards in all the forms that TRL takes, what they get in training, and refusals."""

import math
import types

import numpy as np
import pytest
import tokenizers
import transformers

from videorft_jax.rewards import accuracy, answers, combine, user


def spec(function):
    return f"{__name__}:{function.__name__}"


def run(rewards, completions):
    records = [types.SimpleNamespace(problem_type="OCR", solution="a") for _ in completions]
    config = combine.RewardConfig(rewards, gated=())
    return combine.Rewards(config)(completions, records)


def reward_lower(prompts, completions, **kwargs):
    """Says nothing of "bad", and a negative number of the others."""
    return [None if text == "bad" else -len(text) for text in completions]


async def reward_later(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions]


def reward_one_by_one(prompts, completions, **kwargs):
    yield from (float(len(text)) for text in completions)


def reward_endless(prompts, completions, **kwargs):
    while True:
        yield 1.0


def reward_of_tokens(prompts, completions, completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]


def test_a_completion_that_no_reward_judges_is_masked():
    """It would have the largest advantage of its group at 0; beside another reward it counts."""
    name, texts = spec(reward_lower), [["a", "bb", "bad"]]
    batch = run(((name, 1.0),), texts)
    np.testing.assert_array_equal(batch.total, [[-1, -2, math.nan]])
    np.testing.assert_array_equal(batch.valid, [[True, True, False]])
    assert batch.counts == {f"{name}/not_applicable": 1}
    beside = run(((name, 1.0), (spec(reward_later), 1.0)), texts)
    np.testing.assert_array_equal(beside.total, [[0, 0, 3]])
    assert beside.valid.all()
    logged = run(((name, 0.0), (spec(reward_later), 1.0)), texts)
    np.testing.assert_array_equal(logged.total, [[1, 2, 3]])
    alone = run(((name, 1.0), (spec(reward_later), 0.0)), texts)
    np.testing.assert_array_equal(alone.valid, [[True, True, False]])


def test_rewards_may_be_coroutines_and_generators():
    for function in (reward_later, reward_one_by_one):
        batch = run(((spec(function), 1.0),), [["a", "bb"]])
        np.testing.assert_array_equal(batch.total, [[1, 2]])
    name = spec(reward_endless)
    assert run(((name, 1.0),), [["a", "bb"]]).counts == {f"{name}/wrong_length": 2}


def reward_set(prompts, completions, **kwargs):
    return {float(len(text)) for text in completions}


def test_numbers_without_an_order_are_no_rewards():
    name = spec(reward_set)
    batch = run(((name, 1.0),), [["bb", "a"]])
    assert batch.counts == {f"{name}/wrong_type": 2}
    assert not batch.valid.any()


def reward_of_chats(prompts, completions, **kwargs):
    assert prompts[0][0]["role"] == "user"
    return [len(chat[-1]["content"]) for chat in completions]


def reward_that_logs(prompts, completions, trainer_state, log_metric, **kwargs):
    log_metric("step", trainer_state.global_step)
    return [1.0] * len(completions)


def reward_of_field(prompts, completions, answer, **kwargs):
    return [1.0] * len(completions)


async def reward_async_generator(prompts, completions, **kwargs):
    yield 1.0


def test_rewards_get_what_training_knows():
    """Token ids, the step, and a function that logs, as TRL gives them; chats where they fail on
    texts."""
    names = tuple(map(spec, (reward_of_tokens, reward_that_logs, reward_of_chats)))
    config = combine.RewardConfig(tuple((name, 1.0) for name in names), gated=())
    ids = [[[1, 2, 3], [4]], [[], [5, 6]]]
    training = user.Training(ids, user.TrainerState(7, 9, 0))
    rewards = combine.Rewards(config, in_training=True)
    records = [types.SimpleNamespace(problem_type="OCR", solution="a")] * 2
    for _ in range(2):  # the form is known at the second call
        batch = rewards([["a", "bb"], ["ccc", ""]], records, training=training)
        np.testing.assert_array_equal(batch.scores[names[0]], [[3, 1], [0, 2]])
        np.testing.assert_array_equal(batch.scores[names[2]], [[1, 2], [3, 0]])
        assert batch.logged == {f"{names[1]}/step": 7.0}
        assert not batch.counts


def test_a_reward_that_cannot_be_called_is_refused_at_start():
    with pytest.raises(ValueError, match="needs completion_ids, which is not given here"):
        user.load_function(spec(reward_of_tokens))
    with pytest.raises(ValueError, match="is an async generator"):
        user.load_function(spec(reward_async_generator))
    reward = user.UserReward(spec(reward_of_field), in_training=True)
    with pytest.raises(ValueError, match="needs answer, which is no field of the records"):
        reward.check_record(types.SimpleNamespace(extra={"colour": 1}))
    reward.check_record(types.SimpleNamespace(extra={"answer": 1}))
    user.UserReward(spec(reward_that_logs), in_training=True).check_record(None)


def test_tags_that_are_special_tokens_are_refused():
    """Texts are decoded without special tokens, so that no reward would ever see the tags."""
    vocab = {"<think>": 0, "</think>": 1, "<answer>": 2, "</answer>": 3, "a": 4}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a"))
    for tag in list(vocab)[:4]:
        model.add_tokens([tokenizers.AddedToken(tag, normalized=False)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model)
    answers.check_tags(fast)
    model.add_special_tokens([tokenizers.AddedToken("</answer>", special=True)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model)
    with pytest.raises(ValueError, match="</answer> is a special token and is lost"):
        answers.check_tags(fast)


@pytest.mark.parametrize(
    ("mode", "kind", "solution", "is_readable"),
    [
        ("strict", "numerical", "<answer>5 m</answer>", True),
        ("strict", "numerical", "many", False),
        ("strict", "regression", "", False),
        ("strict", "multiple choice", "B", True),
        ("strict", "multiple choice", "none of them", False),
        ("strict", "OCR", "EXIT", True),
        ("strict", "free-form", "<answer></answer>", False),
        ("strict", "essay", "a", False),
        ("repo", "numerical", "5 m", False),
        ("paper", "regression", "nan", False),
        ("paper", "regression", "0.5", True),
    ],
)
def test_truths_that_a_mode_cannot_read_are_found(mode, kind, solution, is_readable):
    """Such a record masks its whole group, or is worth 0, in every step that draws it."""
    record = types.SimpleNamespace(problem_type=kind, solution=solution, options=("A. a", "B. b"))
    found = accuracy.find_unreadable(record, mode)
    assert (found is None) == is_readable, found
