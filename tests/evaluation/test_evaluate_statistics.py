"""Intervals against known values, loops and simulated coverage; summaries against a hand count."""

import json
import math

import numpy as np
import pytest

from videorft_jax.evaluation.intervals import METHOD, difference_interval, mean_interval
from videorft_jax.evaluation.summary import format_table, paired_difference, summarise

Z95 = 1.959963984540054


def draw(rng, sizes, share, correlation):
    """Right and wrong answers of clips with `sizes` questions, alike within a clip."""
    if correlation == 1:
        shares = (rng.random(len(sizes)) < share).astype(float)
    else:
        scale = (1 - correlation) / correlation
        shares = rng.beta(share * scale, (1 - share) * scale, len(sizes))
    shares = np.repeat(shares, sizes)
    return (rng.random(len(shares)) < shares).astype(float)


# Clips and questions a clip: two small runs, and the six benchmarks of the paper.
SIZES = {
    "8 of 5": [5] * 8,
    "20 of 5": [5] * 20,
    "vsibench": [18] * 285,
    "videommmu": [3] * 300,
    "mmvu": [1] * 200 + [2] * 130 + [3] * 55,
    "mvbench": [1] * 3742 + [2] * 129,
    "videomme": [3] * 900,
    "tempcompass": [18] * 410,
}


@pytest.mark.parametrize("correlation", [0.02, 0.3, 1])
@pytest.mark.parametrize(
    ("name", "share"),
    [("8 of 5", 0.99), ("20 of 5", 0.95), ("20 of 5", 0.99)]
    + [(name, 0.6) for name in list(SIZES)[2:]],
)
def test_intervals_cover_the_truth(name, share, correlation):
    """Intervals hold for means, and for paired differences of two runs that are equally good."""
    rng, covered, paired, num_draws = np.random.default_rng(0), 0, 0, 150
    sizes = np.array(SIZES[name])
    clips = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(num_draws):
        first, second = (draw(rng, sizes, share, correlation) for _ in range(2))
        found, change = mean_interval(first, clips), difference_interval(second - first, clips)
        covered += found.low <= share <= found.high
        paired += change.low <= 0 <= change.high
        assert found.high - found.low > 0
        assert change.high - change.low > 0
    assert covered >= 0.92 * num_draws
    assert paired >= 0.92 * num_draws


def test_many_independent_questions_have_the_normal_interval():
    values = (np.random.default_rng(0).random(5000) < 0.6).astype(float)
    found = mean_interval(values, np.arange(5000))
    half = Z95 * values.std() / math.sqrt(5000)
    expected = (values.mean() - half, values.mean() + half)
    np.testing.assert_allclose(found[1:], expected, atol=0.05 * half)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(0, 20, 0, 0.1684), (20, 20, 0.8316, 1)]
)
def test_equal_answers_have_the_interval_of_clopper_and_pearson(right, total, low, high):
    """Known values: 1 - .025^(1/20) is .1684."""
    found = mean_interval([right / total] * total, np.arange(total))
    np.testing.assert_allclose(found[1:], (low, high), atol=5e-5)


def test_questions_about_one_clip_are_not_independent():
    rng, alone = np.random.default_rng(0), 0
    for _ in range(300):
        values = np.repeat(rng.random(80) < 0.6, 3).astype(float)
        naive = mean_interval(values, np.arange(240))
        alone += naive.low <= 0.6 <= naive.high
    assert alone / 300 < 0.85  # what it would be if clips did not matter


def test_no_interval_is_without_width():
    for clips in (["a"] * 3, ["a", "b", "c"]):
        for value in (0.0, 0.5, 1.0):
            found = mean_interval([value] * 3, clips)
            assert found.low < found.high
            assert found.low <= found.mean <= found.high
            change = difference_interval([value] * 3, clips)
            assert change.low < change.high
    assert all(math.isnan(value) for value in mean_interval([], []))
    with pytest.raises(ValueError, match="scores from 0.0 to 2.0"):
        mean_interval([0.0, 2.0], ["a", "b"])


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
    assert found["all_rows"] == pytest.approx((0.5 + 1.0 + 0.25) / 5)
    assert found["low"] <= found["accuracy"] <= found["high"]
    expected = {
        "num_records": 5, "num_scored": 3, "num_completions": 8, "unparseable": 1, "failed": 2,
        "quarantined": 1, "shortened": 0, "not_finite": 1, "truncated": 1,
        "mean_length": 110 / 8,
        "reasons": {"corrupt": 1}, "interval": METHOD,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert set(found["counted"]) <= set(found)
    ocr, numerical = found["by_type"]["OCR"], found["by_type"]["numerical"]
    assert (ocr["accuracy"], ocr["num_records"], ocr["num_scored"]) == (0.25, 2, 1)
    assert (numerical["accuracy"], numerical["num_scored"]) == (0.75, 2)
    lines = format_table(found).splitlines()
    assert lines[3].split()[:4] == ["all", "5", "3", "0.5833"]
    assert lines[-1] == (
        "left out: 2 records (1 quarantined, corrupt 1); accuracy with them as wrong: 0.3500"
    )


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
    same = paired_difference(first, first)
    assert same.mean == 0.0
    assert same.low < 0 < same.high
    back = paired_difference(second, first)
    assert back.mean == -found.mean
    np.testing.assert_allclose(back[1:], (-found.high, -found.low), atol=1e-12)


def test_paired_difference_leaves_out_what_has_no_score():
    first = [make_row(0, 1.0), make_row(1, None, outcome="failed"), make_row(2, 0.0)]
    second = [make_row(0, 0.0), make_row(1, 1.0), make_row(2, 0.0)]
    assert paired_difference(first, second).mean == -0.5
    assert paired_difference(first, second[:2]).mean == -1.0  # the one record that both have
