"""Intervals against known values, loops and simulated coverage; summaries against a hand count."""

import json
import math

import numpy as np
import pytest

from videorft_jax.evaluation.intervals import Z95, bootstrap_mean, mean_interval, wilson
from videorft_jax.evaluation.summary import format_table, paired_difference, summarise

# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
KNOWN = (
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
)


@pytest.mark.parametrize(("right", "total", "low", "high"), KNOWN)
def test_wilson_known_values(right, total, low, high):
    found = wilson(right, total)
    assert found.mean == right / total
    np.testing.assert_allclose(found[1:], (low, high), atol=5e-5)


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (3, 7), (999, 1000), (1000, 1000)])
def test_wilson_solves_its_equation(right, total):
    """Its ends are the shares whose own standard error puts the share found Z95 away."""
    found = wilson(right, total)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for end in found[1:]:
        if 0 < end < 1:
            away = abs(found.mean - end) / math.sqrt(end * (1 - end) / total)
            assert away == pytest.approx(Z95)
        else:
            assert end == found.mean


def test_bootstrap_equals_a_loop():
    rng = np.random.default_rng(1)
    values, clips = rng.random(17), [f"clip{i}" for i in rng.integers(0, 6, 17)]
    found = bootstrap_mean(values, clips, seed=3, num_draws=400)
    names, picks = sorted(set(clips)), np.random.default_rng(3)
    means = []
    for pick in picks.integers(len(names), size=(400, len(names))):
        drawn = []
        for number in pick:
            drawn += [v for v, clip in zip(values, clips, strict=True) if clip == names[number]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    expected = [np.interp(q * 399, range(400), means) for q in (0.025, 0.975)]
    np.testing.assert_allclose(found, (values.mean(), *expected), rtol=1e-12)
    assert found == bootstrap_mean(values, clips, seed=3, num_draws=400)


def test_bootstrap_of_many_clips_is_the_normal_interval():
    values = np.random.default_rng(0).random(5000)  # several blocks of draws
    clips = [str(i) for i in range(5000)]
    found = bootstrap_mean(values, clips)
    half = Z95 * values.std() / math.sqrt(5000)
    expected = (values.mean() - half, values.mean() + half)
    np.testing.assert_allclose(found[1:], expected, atol=0.05 * half)


def test_questions_about_one_clip_are_not_independent():
    """Coverage of the true mean when all three questions of a clip are right or wrong together."""
    rng, covered, alone = np.random.default_rng(0), 0, 0
    clips = np.repeat(np.arange(80), 3).astype(str)
    for number in range(300):
        values = np.repeat(rng.random(80) < 0.6, 3).astype(float)
        found = bootstrap_mean(values, clips, seed=number, num_draws=1000)
        covered += found.low <= 0.6 <= found.high
        naive = wilson(round(values.sum()), 240)
        alone += naive.low <= 0.6 <= naive.high
    assert 0.91 < covered / 300 < 0.98
    assert alone / 300 < 0.85  # what it would be if clips did not matter


def test_interval_is_chosen_by_the_scores():
    clips = ["a", "b", "c"]
    assert mean_interval([1.0, 0.0, 1.0], clips) == (wilson(2, 3), "Wilson")
    assert mean_interval([1.0, 0.5, 1.0], clips)[1] == "bootstrap over clips"
    assert mean_interval([1.0, 0.0, 1.0], ["a", "b", "b"])[1] == "bootstrap over clips"
    assert all(math.isnan(value) for value in mean_interval([], [])[0])


def make_row(index, score, kind="numerical", outcome="scored", rollout=0, **changes):
    row = {
        "index": index,
        "rollout": rollout,
        "problem_id": f"id{index}",
        "problem_type": kind,
        "path": f"{index}.mp4",
        "score": score,
        "outcome": outcome,
        "reason": "",
        "completion_tokens": 10,
        "stopped": True,
        "finite": True,
    }
    return row | changes


QUARANTINED = {"problem_id": None, "problem_type": None, "completion_tokens": None,
               "stopped": None, "finite": None, "reason": "corrupt"}  # fmt: skip
ROWS = [
    make_row(0, 1.0),
    make_row(0, 0.0, "numerical", "unparseable", 1, completion_tokens=40, stopped=False),
    make_row(1, 1.0),
    make_row(1, 1.0, rollout=1),
    make_row(2, None, "OCR", "failed"),
    make_row(2, None, "OCR", "failed", 1, stopped=False, finite=False),
    make_row(3, 0.25, "OCR"),
    make_row(3, 0.25, "OCR", rollout=1),
    make_row(4, None, outcome="quarantined", **QUARANTINED),
]


def test_summary_by_hand():
    found = json.loads(json.dumps(summarise(ROWS), allow_nan=False))
    assert found["accuracy"] == pytest.approx((0.5 + 1.0 + 0.25) / 3)
    assert found["low"] <= found["accuracy"] <= found["high"]
    expected = {
        "num_records": 5, "num_scored": 3, "num_completions": 8, "unparseable": 1, "failed": 2,
        "quarantined": 1, "not_finite": 1, "truncated": 1, "mean_length": 110 / 8,
        "reasons": {"corrupt": 1}, "interval": "bootstrap over clips",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert set(found["counted"]) <= set(found)
    ocr, numerical = found["by_type"]["OCR"], found["by_type"]["numerical"]
    assert (ocr["accuracy"], ocr["num_records"], ocr["num_scored"]) == (0.25, 2, 1)
    assert (numerical["accuracy"], numerical["num_scored"]) == (0.75, 2)
    lines = format_table(found).splitlines()
    assert lines[3].split()[:4] == ["all", "5", "3", "0.5833"]
    assert lines[-1] == "left out: 2 records (1 quarantined, corrupt 1)"


def test_summary_of_nothing():
    found = summarise([row for row in ROWS if row["index"] in (2, 4)])
    assert found["accuracy"] is found["low"] is found["high"] is None
    assert found["num_scored"] == 0
    assert "2 records" in format_table(found)


def test_paired_difference():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2, (40, 2)).astype(float)
    first, second = ([make_row(i, s) for i, s in enumerate(own)] for own in scores.T)
    found = paired_difference(first, second[::-1])  # the order of rows is none of records
    change = scores[:, 1] - scores[:, 0]
    assert found.mean == pytest.approx(change.mean())
    half = Z95 * change.std() / math.sqrt(40)
    expected = (change.mean() - half, change.mean() + half)
    np.testing.assert_allclose(found[1:], expected, atol=0.15 * half)
    assert paired_difference(first, first) == (0.0, 0.0, 0.0)
    back = paired_difference(second, first)
    assert back.mean == -found.mean
    # Pairing: the same scores against a constant shift have no spread left.
    shifted = [make_row(i, s - 0.125) for i, s in enumerate(scores[:, 0])]
    assert paired_difference(first, shifted) == (-0.125, -0.125, -0.125)


def test_paired_difference_leaves_out_what_has_no_score():
    first = [make_row(0, 1.0), make_row(1, None, outcome="failed"), make_row(2, 0.0)]
    second = [make_row(0, 0.0), make_row(1, 1.0), make_row(2, 0.0)]
    assert paired_difference(first, second).mean == -0.5
    with pytest.raises(ValueError, match="1 records are in one evaluation only"):
        paired_difference(first, second[:2])
    with pytest.raises(ValueError, match="row 2 with problem_id"):
        paired_difference(first, [*second[:2], make_row(2, 0.0, problem_id="other")])
