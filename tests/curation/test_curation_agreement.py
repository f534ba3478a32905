"""Open answers against a permutation null, on groups that were planted."""

import random

import pytest

from videorft_jax.curation.agreement import fit_nulls, measure_similarity
from videorft_jax.curation.open_answers import hold_against_null
from videorft_jax.curation.pipeline import Outcome
from videorft_jax.curation.pool import Entry
from videorft_jax.data.records.records import Record

NUM = 400


def make_words(rng):
    letters = "abcdefghijklmnoprstuvw"
    return ["".join(rng.choices(letters, k=rng.randint(4, 8))) for _ in range(300)]


@pytest.fixture(scope="module")
def planted():
    """(group, answer, reference): answers that say their reference in other words, and answers
    that have nothing to do with theirs."""
    rng = random.Random(0)
    words, pairs = make_words(rng), []
    for _ in range(NUM):
        reference = rng.choices(words, k=7)
        answer = [*reference[:2], *reference[3:], rng.choice(words)]
        rng.shuffle(answer)
        pairs.append(("told", " ".join(answer), " ".join(reference)))
    for _ in range(NUM):
        one, other = (" ".join(rng.choices(words[:9], k=5)) for _ in range(2))
        pairs.append(("alike", one, other))
    pairs.append(("few", "a cat", "a dog"))
    return pairs


@pytest.fixture(scope="module")
def nulls(planted):
    return fit_nulls(planted)


def test_14_a_null_accepts_the_matched_and_refuses_the_mismatched(planted, nulls):
    null = nulls["told"]
    assert null.is_informative
    assert null.auc > 0.95
    told = [(answer, reference) for group, answer, reference in planted if group == "told"]
    matched = [measure_similarity(*pair) > null.threshold for pair in told]
    rng = random.Random(1)
    mismatched = [
        measure_similarity(told[i][0], told[j][1]) > null.threshold
        for i, j in (rng.sample(range(NUM), 2) for _ in range(4000))
    ]
    assert sum(matched) / len(matched) >= 0.95
    assert sum(mismatched) / len(mismatched) <= 0.015
    assert not nulls["alike"].is_informative
    assert nulls["alike"].auc == pytest.approx(0.5, abs=0.06)
    assert not nulls["few"].is_informative


@pytest.mark.parametrize(("group", "ended"), [("told", "similarity"), ("alike", "accepted")])
def test_14_an_accepted_answer_is_refused_by_an_informative_group_alone(nulls, group, ended):
    null = nulls[group]
    record = Record(1, "What?", "video", "free-form", (), "", "one two three", "a.mp4", "s")
    out = Outcome("accepted", think=[{"attempt": 0, "answer": "zzz"}], revise={"attempt": 0})
    hold_against_null(out, Entry(0, "n", "m", record), {"s, free-form, short": null})
    assert out.ended == ended
    assert out.checks["similarity"]["value"] == 0.0
