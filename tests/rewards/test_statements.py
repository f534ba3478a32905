"""What strict mode reads around an answer, and what it never pays for."""

import json
import math
import pathlib

import pytest

from videorft_jax.rewards.accuracy import score_accuracy, score_answer, to_float
from videorft_jax.rewards.units import convert

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "strict_answers.json"
RIGHT = (
    ("five thousand", "5000"), ("twenty one", "21"), ("5 million dollars", "5000000"),
    ("5 million people", "5000000"), ("it is 3", "3"), ("Answer: 3", "3"), ("2 dozens", "24"),
    ("3百", "300"), ("3000 g", "3 kg"), ("90 degrees", "90"), ("zero", "0"), ("5 kg", "5"),
    ("-2.5 m", "-250 cm"), ("approx. 7", "7"), ("3 fps", "3"), ("30 km/h", "30 kph"),
    ("5 €", "€5"), ("5€", "5"), ("5 euros", "5 €"), ("$5 million", "5000000"),
    ("-$1.2 billion", "-$1,200,000,000"), ("5 cm²", "5 cm^2"), ("5 cm^{2}", "5 cm²"),
    ("5 m³", "5000 L"), ("90^{\\circ}", "90°"), (r"5~\text{cm}", "5 cm"), (r"\frac{-1}{2}", "-0.5"),
    (r"5 \mathrm{~cm}", "5 cm"), (r"1\frac{1}{2}", "1.5"), ("\u20113", "-3"), ("5\u200b", "5"),
    ("20℃", "20 °C"), ("5公里", "5 km"), ("50厘米", "0.5 m"), ("02:30", "2:30"), ("0：05", "00:05"),
)  # fmt: skip
WRONG = (
    ("5 lakh", "5"), ("5bn", "5"), ("3π", "3"), ("3 pi", "3"), ("3√2", "3"), ("3x", "3"),
    ("3!", "3"), ("3²", "3"), ("one two", "1"), ("one or two", "1"), ("5M", "5"), ("3 or 4", "3"),
    ("3+4", "3"), ("3, not 4", "3"), ("not 3", "3"), ("answer 3 or 4", "3"), ("3 half", "3"),
    ("3 hundred", "3"), ("3千克", "3"), ("3 each", "3"), ("3 squared", "3"), ("3 times 2", "3"),
    ("3 fold", "3"), ("3rd", "3"), ("more than 3", "3"), ("3 more", "3"), ("at least 3", "3"),
    ("5 tens", "5"), ("5 hundredths", "5"), ("5 couples", "5"), ("3 grams", "3 kg"),
    ("2 minutes", "2 hours"), ("5", "5 thousand"), ("$5 million people", "5000000"),
    ("5 €", "$5"), ("3²", "9"), (r"3\frac{1}{2}\frac{1}{2}", "3.5"), ("$5", "5000000"),
    ("20:30", "2:30"), ("2:03", "2:30"), ("5 m²", "5 m³"), ("3€ or 4€", "3"),
)  # fmt: skip


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["answer"])
def test_agreed_answers(case):
    text = f"<think>It shows.</think><answer>{case['answer']}</answer>"
    got = to_float(
        score_accuracy(text, case["solution"], case["problem_type"], case["options"] or ())
    )
    if case["right"] is None:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(case["right"], abs=0.02)


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_numbers_that_are_right(answer, truth):
    assert to_float(score_answer(answer, truth, "numerical")) == 1.0


@pytest.mark.parametrize(("answer", "truth"), WRONG)
def test_no_number_is_paid_for_what_it_is_not(answer, truth):
    assert to_float(score_answer(answer, truth, "numerical")) == 0.0


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("0.5", "50%", 1.0), ("50%", "0.5", 1.0), ("60%", "50", 0.8), ("0.4", "50%", 0.8),
     ("50% m", "50", 0.0), ("50%", "50 m", 0.0)],
)  # fmt: skip
def test_a_share_is_estimated_as_it_is_counted(answer, truth, right):
    assert to_float(score_answer(answer, truth, "regression")) == pytest.approx(right)


@pytest.mark.parametrize(
    ("value", "unit", "wanted", "expected"),
    [(1, "m", "cm", 100), (2, "hour", "minute", 120), (1, "apple", "apple", 1), (1, "", "m", 1),
     (1, "m", "s", None), (1, "apple", "m", None), (36, "km/h", "m/s", 10)],
)  # fmt: skip
def test_units_convert_within_what_they_measure(value, unit, wanted, expected):
    got = convert(value, unit, wanted)
    assert got is None if expected is None else got == pytest.approx(expected)


@pytest.mark.parametrize("options", [
    ("C. green", "A. red", "B. blue"), ("Option A: red", "Option B: blue", "Option C: green"),
    ("（C）green", "（A）red", "（B）blue"), ("red", "blue", "green"),
])  # fmt: skip
def test_a_letter_beside_words_is_the_one_that_the_prompt_shows(options):
    """The words behind a letter are those of the option that has the letter in the prompt."""
    for answer, right in (("A. red", 1.0), ("A red", 1.0), ("(A) red", 1.0), ("A. green", 0.0),
                          ("C. green", 0.0), ("A", 1.0), ("A. red or blue", 0.0)):  # fmt: skip
        assert to_float(score_answer(answer, "A", "multiple choice", options)) == right, answer
    assert to_float(score_answer(options[0], "A", "multiple choice", options)) == float(
        "red" in options[0] and options[0] != "red"
    )
