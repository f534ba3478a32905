"""The robust scorer on what models write, output by output: what a person reads and no other."""

import pytest
import scoring_cases_revised as revised
from scoring_cases import CHOICES, NUMBERS, OPTIONS, TEN_CHOICES, TEN_OPTIONS, YES_NO
from scoring_cases_words import OPEN_ENDED, SPANS

import videorft_jax as vr


def score(kind, gold, output, **fields):
    row = {"question_type": kind, "gold": gold, "output": output} | fields
    return vr.score_outputs([row])[0]


@pytest.mark.parametrize(
    ("cases", "options"),
    [(CHOICES, OPTIONS), (TEN_CHOICES, TEN_OPTIONS), (revised.CHOICES, OPTIONS)]
    + [(cases, options) for options, cases in revised.OTHER_OPTIONS],
)
def test_choices(cases, options):
    """An output scores with the label that it chooses, and with none else."""
    letters = [option[0] for option in options]
    for output, label in cases:
        right = [x for x in letters if score("mcq", x, output, options=options) == 1.0]
        assert right == ([label] if label else []), output


def test_numbers():
    for output, number in NUMBERS + revised.NUMBERS:
        if number is None:
            wrong = [gold for gold in ("3", "4", "5") if score("regression", gold, output)]
            assert not [gold for gold in wrong if score("regression", gold, output) == 1], output
        else:
            assert score("regression", str(number), output) == 1.0, output


def test_yes_and_no():
    for output, said in YES_NO + revised.YES_NO:
        right = [gold for gold in ("yes", "no") if score("yes_no", gold, output) == 1.0]
        assert right == ([said] if said else []), output


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("open-ended", OPEN_ENDED + revised.OPEN_ENDED),
        ("temporal grounding", SPANS + revised.SPANS),
    ],
)
def test_texts_and_spans(kind, cases):
    found = [(gold, output, score(kind, gold, output)) for gold, output, _ in cases]
    assert found == list(cases)


def test_names_of_question_types_are_those_of_the_files():
    assert score("object_counting", "4", "four chairs") == 1.0
    assert score("Object Reasoning", "B", "b", options=["x", "y"]) == 1.0
