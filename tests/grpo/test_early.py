"""Rewards that are computed while completions of the same batch are still drawn."""

import concurrent.futures
import types

import numpy as np

from videorft_jax.grpo.early import Early
from videorft_jax.rewards import combine
from videorft_jax.rewards.once import score_once

RECORD = types.SimpleNamespace(solution="B", problem_type="multiple choice", options=["A. x"])
TEXTS = {1: "<answer>B</answer>", 2: "<answer>A</answer>", 3: "nothing"}


class Now(concurrent.futures.Executor):
    """Does at once what it is given."""

    def submit(self, work, /, *args, **kwargs):
        work(*args, **kwargs)


def test_each_completion_is_scored_when_it_ends_and_not_again():
    score_once.cache_clear()
    read = []

    def read_tokens(tokens):
        read.append(tokens.tolist())
        return TEXTS[int(tokens[-1])]

    early = Early([RECORD, None], (2, 3), Now(), read_tokens, "strict", None)
    tokens = np.array([[[5, 1], [2, 0], [9, 9]]] * 2)
    lengths = np.array([[2, 1, 2]] * 2)
    early.take(tokens, lengths, np.array([[False, True, False]] * 2))
    assert read == [[2]]  # The second row has no record.
    early.take(tokens, lengths, np.array([[True, True, False]] * 2))
    assert read == [[2], [5, 1]]
    tokens[0, 2, 1] = 3
    early.take(tokens, lengths, np.ones((2, 3), bool))
    assert read == [[2], [5, 1], [9, 3]]
    assert score_once.cache_info().misses == 3
    config = combine.RewardConfig((("accuracy", 1.0),), mode="strict")
    found = combine.Rewards(config)([[TEXTS[1], TEXTS[2], TEXTS[3]]], [RECORD])
    assert found.scores["accuracy"].tolist() == [[1.0, 0.0, 0.0]]
    assert found.counts == {"accuracy/unparseable": 1}
    assert score_once.cache_info()[:2] == (3, 3)  # Hits and misses: all were known.
    other = Early([RECORD, None], (2, 3), Now(), read_tokens, None, None)
    other.take(tokens, lengths, lengths > 0)
    assert len(read) == 3  # The accuracy is no reward of that run.
