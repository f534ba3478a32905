"""Options whose own texts look like labels, and golds in the forms of releases."""

import pytest

from videorft_jax.evaluation.scoring.choices import find_options, split_options
from videorft_jax.evaluation.scoring.score import score_outputs


def score(output, gold="B", scorer="robust", kind="multiple choice", benchmark="", **fields):
    row = {"question_type": kind, "gold": gold, "output": output, "benchmark": benchmark}
    return score_outputs([row | fields], scorer)[0]


@pytest.mark.parametrize(
    "options",
    [
        ("1:20", "2:45", "3:10"),
        ("1.5 m", "2.5 m", "3.5 m"),
        ("1. cat", "2. dog"),
        ("1) 5 m", "2) 6 m"),
    ],
)
@pytest.mark.parametrize("scorer", ["robust", "official", "lmms", "videorft"])
def test_texts_that_begin_with_numbers_are_chosen_by_letter(options, scorer):
    for output, worth in (("B", 1.0), ("A", 0.0)):
        assert score(output, scorer=scorer, benchmark="videomme", options=options) == worth
    if scorer == "robust":
        assert score(options[1], options=options) == 1.0
        assert score(options[0], options=options) == 0.0


def test_times_and_decimals_have_no_labels():
    assert split_options(["1.5", "2.5"]) == (["A", "B"], ["1.5", "2.5"])
    assert split_options(["1. 5", "2. 5"]) == (["1", "2"], ["5", "5"])
    assert find_options("When?\n1:20\n2:45") == ([], [])
    assert find_options("How many?\n1. five\n2. six") == (["1", "2"], ["five", "six"])


@pytest.mark.parametrize("options", [("t", "b", "a"), ("B and C", "A", "B"), ("B-->A", "A-->B")])
@pytest.mark.parametrize("output", ["{}", "({})", "<answer>{}.</answer>"])
def test_a_capital_alone_is_a_label_also_where_another_text_is_that_letter(options, output):
    for letter in "AB":
        assert score(output.format(letter), letter, options=options) == 1.0


def test_options_that_differ_in_their_sign_only():
    assert score("1", "B", options=("-1", "1")) == 1.0
    assert score("-1", "B", options=("-1", "1")) == 0.0


def test_the_script_of_videorft_knows_the_letter_of_a_gold_line():
    fields = {"options": ["running", "walking"], "benchmark": "tempcompass"}
    assert score("<answer>B</answer>", "B. walking", "videorft", **fields) == 1.0
    assert score("<answer>A</answer>", "B. walking", "videorft", **fields) == 0.0


def test_numbers_of_open_questions_under_other_tools():
    fields = {"kind": "regression", "benchmark": "vsibench"}
    assert score("1,200", "1200", "official", **fields) == 0.0  # Python reads no such number.
    assert score("1200.", "1200", "official", **fields) == 1.0
    fields = {"kind": "open-ended", "benchmark": "videommmu"}
    for scorer in ("official", "lmms"):
        assert score("The answer is 3.5", "3.5", scorer, **fields) == 1.0
        assert score("The answer is 4", "3.5", scorer, **fields) == 0.0
