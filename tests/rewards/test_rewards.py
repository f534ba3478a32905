"""Accuracy and format against the original's cases, other implementations and abuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenize

from videorft_jax.rewards import accuracy, answers
from videorft_jax.rewards.accuracy import Outcome, score_accuracy, score_answer, to_float

UNPARSEABLE, FAILED = Outcome.UNPARSEABLE, Outcome.FAILED
TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
MC, NUM, OCR, FREE, REG = TYPES

# What the published code gives, executed: (type, output, ground truth, reward).
GOLDEN = [
    (MC, "A", "A", 1), (MC, " A ", "A", 1), (MC, "a", "A", 0), (MC, "A.", "A", 0),
    (MC, "(A)", "A", 0), (MC, "A. cat", "A", 0),
    (NUM, "4", "4", 1), (NUM, "4.0", "4", 0), (NUM, "4.00", "4.0", 1), (NUM, "3.14", "3.141", 1),
    (NUM, "3.145", "3.15", 1), (NUM, "1,000", "1000", 0), (NUM, "1,000", "1,000", 1),
    (NUM, "1000.0", "1,000", 1), (NUM, "12%", "12%", 0), (NUM, "$5", "5", 0),
    (NUM, "1e3", "1000", 1),
    (OCR, "hello world", "hello world", 1), (OCR, "Hello world", "hello world", 0.5),
    (OCR, "hello", "hello world", 0.5), (OCR, "", "", 1), (OCR, "hello", "", 0),
    (FREE, "a man rides a horse", "A man is riding a horse.", 0.828283),
    (FREE, "a", "A man is riding a horse.", 0.190476), (FREE, "骑马的人", "骑马的人", 0),
    (REG, "5", "5", 1), (REG, "4", "5", 0.8), (REG, "11", "5", 0), (REG, "-5", "5", 0),
    (REG, "1,200", "1000", 0.8), (REG, "0", "0", 0), (REG, "0.1", "0", 0), (REG, "inf", "5", 0),
    (REG, "nan", "5", 1), (REG, "abc", "5", 0), ("other", "A", "A", 0),
]  # fmt: skip

# What strict gives where it differs from that, or from 1 for the right answer.
STRICT = [
    (MC, "A", "A", 1), (MC, "B", "A", 0), (MC, "a", "A", 1), (MC, "A.", "A", 1),
    (MC, "(A)", "A", 1), (MC, "A. cat", "A", 1), (MC, "A or B", "A", UNPARSEABLE),
    (MC, "A", "cat", FAILED),
    (NUM, "4.0", "4", 1), (NUM, "1,000", "1000", 1), (NUM, "12%", "12%", 1), (NUM, "$5", "5", 1),
    (NUM, "12%", "0.12", 1), (NUM, "0.12", "12%", 1), (NUM, "12%", "12", 1), (NUM, "1/2", "0.5", 1),
    (NUM, r"\frac{1}{3}", "0.33", 1), (NUM, "5 cm", "5", 1), (NUM, "5 cm", "5 m", 0),
    (NUM, "3.14", "3.141", 1), (NUM, "3.13", "3.141", 0), (NUM, "0.001", "0.004", 0),
    (NUM, "0", "0", 1), (NUM, "0.001", "0", 0), (NUM, "nan", "5", UNPARSEABLE),
    (NUM, "1_000", "1000", UNPARSEABLE), (NUM, "5", "about 5", 1), (NUM, "5", "a few", FAILED),
    (OCR, "hello", "", FAILED), (OCR, "", "hello world", 0),
    (OCR, "Hello world", "hello world", 0.5),
    (FREE, "a man rides a horse", "A man is riding a horse.", 0.828283),
    (FREE, "骑马的人", "骑马的人", 1), (FREE, "骑马", "骑马的人", (2 / 3 + 1 / 2 + 2 / 3) / 3),
    (FREE, "?", "?", 1), (FREE, "", "a horse", 0),
    (REG, "4", "5", 0.8), (REG, "0", "0", 1), (REG, "0.1", "0", 0), (REG, "nan", "5", UNPARSEABLE),
    (REG, "inf", "5", UNPARSEABLE), (REG, "1,200", "1000", 0.8), (REG, "5", "nan", FAILED),
    (REG, "4 m", "5 m", 0.8), (REG, "-4", "-5", 0.8), ("other", "A", "A", FAILED),
]  # fmt: skip

PAPER = [
    (MC, "A.", "A", 0), (NUM, "4.0", "4", 1), (NUM, "3.14", "3.141", 0), (NUM, "1,000", "1000", 1),
    (NUM, "nan", "5", UNPARSEABLE), (REG, "nan", "5", UNPARSEABLE), (REG, "0", "0", 1),
    (REG, "4", "5", 0.8), (OCR, "hello", "hello world", 0.5), (MC, "A", "", FAILED),
]  # fmt: skip


def complete(answer, think="I see."):
    return f"<think>{think}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("mode", "case"),
    [("repo", c) for c in GOLDEN] + [("strict", c) for c in STRICT] + [("paper", c) for c in PAPER],
)
def test_cases(mode, case):
    problem_type, answer, solution, expected = case
    for form in (solution, f"<answer>{solution}</answer>"):
        got = score_accuracy(complete(answer), form, problem_type, (), mode)
        if isinstance(expected, Outcome):
            assert got is expected
        else:
            assert to_float(got) == pytest.approx(expected, abs=1e-6)


def test_extraction_of_the_original():
    inside = "<think><answer>B</answer></think><answer>A</answer>"
    assert score_accuracy(inside, "B", MC, (), "repo") == 1
    assert score_accuracy(inside, "B", MC, (), "strict") == 0
    assert score_accuracy(inside, "A", MC, (), "repo") == 0
    assert score_accuracy(inside, "A", MC, (), "strict") == 1
    for text in ("<answer>A", "<ANSWER>A</ANSWER>", "A"):
        assert score_accuracy(text, "A", MC, (), "repo") == 0
        assert score_accuracy(text, "A", MC, (), "strict") is UNPARSEABLE
        assert score_accuracy(text, "A", MC, (), "paper") is UNPARSEABLE


def test_missing_tags_on_both_sides_earn_in_the_original_only():
    answer, reference = (answers.first_block("A", "answer") or "" for _ in range(2))
    assert score_answer(answer, reference, MC, (), "repo") == 1
    assert score_answer(answer, reference, MC, (), "strict") is FAILED


@pytest.mark.parametrize(
    ("text", "repo", "strict"),
    [
        (complete("A"), 1, 1),
        (complete("A") + "\n", 0, 1),
        ("\n" + complete("A"), 0, 1),
        (complete("A") + "<answer>B</answer>", 1, 0),
        ("<think></think><answer></answer>", 1, 0),
        ("<think>x</think> so <answer>A</answer>", 0, 0),
        ("<answer>A</answer>", 0, 0),
    ],
)
def test_format(text, repo, strict):
    scores = [accuracy.score_format(text, mode) for mode in accuracy.MODES]
    assert scores == [repo, repo, strict]


def test_options_tell_right_text_from_wrong_text():
    options = ("A. cat", "B. dog")
    assert score_accuracy(complete("B. dog"), "B", MC, options) == 1
    assert score_accuracy(complete("B. cat"), "B", MC, options) is UNPARSEABLE


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="choose one of repo, paper, strict"):
        score_accuracy("", "A", MC, (), "lenient")


def edit_distance(a, b):
    """The textbook table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            steps = (table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j]))
            table[i + 1, j + 1] = min(steps)
    return table[-1, -1]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "dogs", "running"]), max_size=9)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(WORDS, WORDS)
def test_word_error_rate(answer, reference):
    exact = edit_distance(answer, reference) / max(1, len(reference))
    got = accuracy.word_error_rate(answer, reference)
    assert max(0, 1 - got) == pytest.approx(max(0, 1 - exact), abs=1e-12)


SCORER = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(WORDS, WORDS)
def test_rouge_is_that_of_rouge_score(answer, reference):
    answer, reference = " ".join(answer), " ".join(reference)
    expected = np.mean([s.fmeasure for s in SCORER.score(reference, answer).values()])
    for mode in accuracy.MODES if reference else ("repo",):
        got = score_answer(answer, reference, FREE, (), mode)
        is_same = mode == "strict" and answer.split() == reference.split()
        assert got == pytest.approx(1.0 if is_same else expected, abs=1e-12)


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_strict_rouge_is_that_of_rouge_score_on_ascii(text):
    if tokenize.tokenize(text, None):
        expected = np.mean([s.fmeasure for s in SCORER.score("the y" + text, text).values()])
        assert score_answer(text, "the y" + text, FREE) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("number", "expected"), [(4.5, 0.9), (4, 0.6), (2.6, 0.1), (2.5, 0)])
def test_mean_relative_accuracy_of_the_original(number, expected):
    assert accuracy.mean_relative_accuracy(number, 5, "videorft") == pytest.approx(expected)


def test_mean_relative_accuracy_against_other_code():
    thresholds = torch.arange(0.5, 0.975, 0.05, dtype=torch.float32)
    assert len(thresholds) == 10
    differ = 0
    for truth in (1, 2, 5, 7.5, -3):
        for number in np.arange(-2, 12, 0.25):
            p, g = torch.tensor(float(number)), torch.tensor(float(truth))
            script = float(((p - g).abs() / (g.abs() + 1e-8) < 1 - thresholds).float().mean())
            got = accuracy.mean_relative_accuracy(number, truth, "videorft")
            assert got == pytest.approx(script, abs=1e-6)
            limits = np.linspace(0.5, 0.95, int((0.95 - 0.5) / 0.05 + 2))
            official = np.mean([abs(number - truth) / abs(truth) <= 1 - limit for limit in limits])
            got_official = accuracy.mean_relative_accuracy(number, truth)
            assert got_official == pytest.approx(official)
            assert abs(got - got_official) <= 0.1 + 1e-6
            differ += abs(got - got_official) > 0.05
    assert differ > 0
    assert accuracy.mean_relative_accuracy(0.5, 1) == pytest.approx(0.1)
    assert accuracy.mean_relative_accuracy(0.5, 1, "videorft") == 0
    assert accuracy.mean_relative_accuracy(math.nan, 1) == 0
    assert accuracy.mean_relative_accuracy(0, 0) == 1
    with pytest.raises(ValueError, match="finite"):
        accuracy.mean_relative_accuracy(1, math.nan)


ANY_TEXT = st.text(st.characters(codec=None), max_size=40)
NUMBER_TEXT = st.text("0123456789.,%/e+- naif", max_size=12)
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "A", "nan", "1e999", "٣", "\ud800", "\0"]
MODEL_TEXT = (
    ANY_TEXT | ANY_TEXT.map(complete) | NUMBER_TEXT.map(complete)
    | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
)  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=500)
@given(MODEL_TEXT, ANY_TEXT | NUMBER_TEXT, st.sampled_from([*TYPES, "other"]))
def test_any_text_gives_a_bounded_reward(completion, solution, problem_type):
    for mode in accuracy.MODES:
        got = score_accuracy(completion, solution, problem_type, ("A. x", "y"), mode)
        assert got in (UNPARSEABLE, FAILED) or (type(got) is float and 0 <= got <= 1 + 1e-12)
        assert accuracy.score_format(completion, mode) in (0.0, 1.0)


@pytest.mark.parametrize("problem_type", TYPES)
@pytest.mark.parametrize("unit", ["\n", "a ", "y", "1", "<answer>", "\ud800 ", "骑", "1,"])
def test_ten_megabytes_are_worth_nothing(problem_type, unit):
    size = 10_000_000 // len(unit)
    for mode in accuracy.MODES:
        solution = "A" if problem_type == MC else "5"
        assert (
            to_float(score_accuracy(complete(unit * size), solution, problem_type, (), mode)) == 0
        )
