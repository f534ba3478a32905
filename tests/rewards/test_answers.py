"""Tags, letters, numbers and words out of hostile text."""

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import tokenize

from videorft_jax.rewards import answers

# The patterns of the original, the oracle on short texts: they are cubic, so short texts only.
ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)

PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<answer",
    "A",
    "B",
    " ",
    "\n",
    "\x1c",
    "",
]
TAGGED = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
STRICTLY_FORMED = "<think>a</think>\n<answer>A</answer>"


@settings(deadline=None, derandomize=True, max_examples=600)
@given(TAGGED | ANY_TEXT)
@example("<answer><answer>A</answer></answer>")
@example("<think></think><answer></answer>")
def test_tags_match_the_patterns_of_the_original(text):
    match = ANSWER.search(text)
    assert answers.first_block(text, "answer") == (match[1].strip() if match else None)
    assert answers.is_think_then_answer(text) == bool(FORMAT.fullmatch(text))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> A\n</answer>", "A"),
        ("<think><answer>B</answer></think><answer>A</answer>", "A"),
        ("<think><answer>B</answer></think>", None),
        ("<answer>A</answer>", "A"),
        ("<answer><answer>A</answer></answer>", "A"),
        ("<answer>A</answer> so <answer>A</answer>", "A"),
        ("<answer>A</answer><answer>B</answer>", None),
        ("<answer>A", None),
        ("<ANSWER>A</ANSWER>", None),
        ("A", None),
        ("<answer></answer>", ""),
        ("</answer><answer>A</answer>", "A"),
    ],
)
def test_the_answer_stands_after_the_reasoning(text, answer):
    assert answers.extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "is_form", "is_strict_form"),
    [
        (STRICTLY_FORMED, True, True),
        (STRICTLY_FORMED + "\n", False, True),
        (" " + STRICTLY_FORMED, False, True),
        ("<think></think><answer></answer>", True, False),
        ("<think>a</think><answer>A</answer><answer>B</answer>", True, False),
        ("<think><think>a</think></think><answer>A</answer>", True, False),
        ("<think>a</think> so <answer>A</answer>", False, False),
        ("<answer>A</answer><think>a</think>", False, False),
        ("<think>a</think>", False, False),
        ("<answer>A</answer>", False, False),
        ("<think><answer>a</think>A</answer>", False, False),
        ("<Think>a</Think><answer>A</answer>", False, False),
    ],
)
def test_form(text, is_form, is_strict_form):
    assert answers.is_think_then_answer(text) == is_form
    assert answers.is_one_think_one_answer(text) == is_strict_form


class CountedText(str):
    """A string that adds up the characters which searches and slices touch."""

    def __init__(self, text):
        self.touched = 0

    def find(self, part, start=0, end=None):
        end = len(self) if end is None else end
        place = super().find(part, start, end)
        self.touched += (place if place >= 0 else end) - start + len(part)
        return place

    def rfind(self, part, start=0, end=None):
        end = len(self) if end is None else end
        place = super().rfind(part, start, end)
        self.touched += end - (place if place >= 0 else start)
        return place

    def strip(self, *args):
        return self

    def __getitem__(self, key):
        part = super().__getitem__(key)
        self.touched += len(part)
        return part


@pytest.mark.parametrize(
    "unit",
    [
        "\n",
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "<think>",
        "</think>",
        "</think>\n<answer>",
    ]
    + ["<answer>\n</answer>", "</think> x<answer>", "<answer> </think>"],
)
@pytest.mark.parametrize("size", [1000, 32_000])
def test_work_on_tags_is_linear(unit, size):
    text = "<think>" + "<answer>" + unit * (size // len(unit)) + "</answer>"
    functions = (
        answers.extract_answer,
        lambda text: answers.first_block(text, "answer"),
        answers.is_think_then_answer,
        answers.is_one_think_one_answer,
    )
    for function in functions:
        counted = CountedText(text)
        function(counted)
        assert counted.touched <= 5 * len(text)


@pytest.mark.parametrize(
    "unit", ["\n", "<answer>", "</answer>", "1", "(", "$", "A.", "\0", "\ud800"]
)
def test_ten_megabytes_are_read(unit):
    text = unit * (10_000_000 // len(unit))
    assert answers.extract_answer(text) is None
    assert answers.first_block(text, "answer") is None
    assert not answers.is_think_then_answer(text)
    assert not answers.is_one_think_one_answer(text)
    assert answers.parse_letter(text) is None
    assert answers.parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5", 5, ""),
        (" -5 ", -5, ""),
        ("+5", 5, ""),
        ("−5", -5, ""),
        ("3.14", 3.14, ""),
        (".5", 0.5, ""),
        ("5.", 5, ""),
        ("1e3", 1000, ""),
        ("2.5E-2", 0.025, ""),
        ("1,000", 1000, ""),
        ("-1,234,567.5", -1234567.5, ""),
        ("1{,}000", 1000, ""),
        ("12%", 12, "%"),
        (r"12\%", 12, "%"),
        ("12 percent", 12, "%"),
        ("$5", 5, "$"),
        ("-$1,000.50", -1000.5, "$"),
        ("$-5", -5, "$"),
        ("$5$", 5, ""),
        (r"\$5", 5, "$"),
        (r"\boxed{42}", 42, ""),
        ("3/4", 0.75, ""),
        ("-3 / 4", -0.75, ""),
        ("1 1/2", 1.5, ""),
        (r"\frac{3}{4}", 0.75, ""),
        (r"-\dfrac{3}{4}", -0.75, ""),
        (r"5\text{ cm}", 5, "cm"),
        (r"$90^\circ$", 90, "°"),
        ("5 cm.", 5, "cm"),
        ("5 apples", 5, "apple"),
        ("12 m/s", 12, "m/s"),
        ("5 m^2", 5, "m^2"),
        ("３．５", 3.5, ""),
    ],
)
def test_numbers(text, value, unit):
    assert answers.parse_number(text) == (pytest.approx(value, rel=1e-15), unit)


NOT_NUMBERS = (
    ["", " ", "-", ".", "$", "nan", "inf", "-Infinity", "1e999", "-1e999", "1_000", "0x10", "1,00"]
    + ["3,14", "1,0000", ",5", "1.2.3", "--5", "+-5", "5 or 6", "5 6", "5-6", "3:4", "1/0", "1/"]
    + ["/2", r"\frac{1}{0}", r"\frac{1}{", r"\frac12", "٣", "5²", "five", "5; rm", "9**9", "5 + 5"]
    + ["5 to seven", "1 2/3/4", "5 " + "x" * 40, "1" * 300, "__import__('os')", "\ud800", "5\0"]
)  # fmt: skip


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_not_numbers(text):
    assert answers.parse_number(text) is None


@settings(deadline=None, derandomize=True)
@given(st.floats(-1e12, 1e12).map(lambda x: round(x, 3)), st.sampled_from([",.3f", ".3f", ".17e"]))
def test_formatted_floats_are_read_back(value, form):
    assert answers.parse_number(format(value, form)).value == pytest.approx(value, abs=1e-15)


OPTIONS = ("A. cat", "B. a dog", "C. 4. of May")


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("A", (), "A"),
        (" b\n", (), "B"),
        ("A.", (), "A"),
        ("(A)", (), "A"),
        ("(A).", (), "A"),
        ("A)", (), "A"),
        ("**A**", (), "A"),
        ("Ａ", (), "A"),
        ("A. cat", (), "A"),
        ("A. Cat.", OPTIONS, "A"),
        ("(B) a dog", OPTIONS, "B"),
        ("B: B. a dog", OPTIONS, "B"),
        ("C. 4. of may", OPTIONS, "C"),
        ("b. a dog", ("cat", "a dog"), "B"),
        ("E", OPTIONS, "E"),
        ("A. a dog", OPTIONS, None),
        ("E. cat", OPTIONS, None),
        ("a cat", (), None),
        ("A cat", (), None),
        ("A or B", (), None),
        ("A. or B", (), None),
        ("A, B", (), None),
        ("(A) (B)", (), None),
        ("A) B) C)", (), None),
        ("(A", (), None),
        ("AB", (), None),
        ("1", (), None),
        ("Ä", (), None),
        ("", (), None),
        ("(", (), None),
        ("I think it is C", (), None),
    ],
)
def test_letters(text, options, letter):
    assert answers.parse_letter(text, options) == letter


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(codec="ascii"), max_size=80))
def test_ascii_words_are_those_of_rouge_score(text):
    assert answers.split_words(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ein Bär läuft.", ["ein", "bär", "läuft"]),
        ("мужчина едет", ["мужчина", "едет"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("骑马的人。", ["骑", "马", "的", "人"]),
        ("GPU で学習", ["gpu", "で", "学", "習"]),
        ("ＡＢ１", ["ab1"]),
        ("?!", []),
        ("\ud800", []),
    ],
)
def test_words_of_other_scripts(text, words):
    assert answers.split_words(text) == words


@settings(deadline=None, derandomize=True, max_examples=300)
@given(ANY_TEXT | TAGGED | st.text("0123456789,./-+$%eE \\frac{}", max_size=30), st.lists(ANY_TEXT))
def test_any_text_is_read_or_refused(text, options):
    number = answers.parse_number(text)
    assert number is None or math.isfinite(number.value)
    assert answers.parse_letter(text, options) in {None, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    assert all(answers.split_words(text))
