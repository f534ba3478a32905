"""Scorers: agreed verdicts, cases of our own, and what the reference says of other tools."""

import json
import math
import pathlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import videorft_jax as vr

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "answers.json"
OPTIONS = [
    "A. A red ball falls off the table",
    "B. The cup is filled with water",
    "C. A dog knocks the cup over",
    "D. Nothing changes",
]
CHOICES = """
The correct option is (B).
Answer: B. The cup is filled with water
Final answer: **B**
b
(b)
B)
[B]
"B"
The cup is filled with water.
I would go with B
Not A, so B.
<think>A</think><answer>B</answer>
答案是B
选B
Ｂ
$\\boxed{\\text{B}}$
The answer is B: The cup is filled with water
Answer - B
The answer would be B since the level rises
First I thought A, but the answer is B
A is wrong. B is right.
Die Antwort ist B
La respuesta es B
La réponse est B.
The cup is filled with water, not nothing changes
{"answer": "B"}
answer=B
The answer is B, not C.
The answer is B. The dog (C) never appears.
The answer is B. Looking at option C, it fails.
I choose B. It could be D.
Answer: B It could be C.
So B. Let me check C first.
Therefore, B. A: the ball stays.
Between B and C, I choose B.
Answer: B. Explanation: the dog (C) never appears.
It could be D. The answer is B. Hmm, C?
"""
NO_CHOICES = """
A or B
Both A and B
It's not B
A cup is on the table.
<answer>A</answer><answer>B</answer>
The answer is B: Nothing changes
(E)
None of the above
Option 2
ABCD
As an AI model I cannot see the video
Option B is incorrect
The answer is B. So C.
The answer is B. I choose C.
Final answer: B C
The answer is B. (C)
I choose B. C
It's a tie between B and C
the cup gets filled with water
"""
OTHERS = (
    ("regression", "4", "4.0 chairs", 1),
    ("regression", "4", "There are four.", 1),
    ("regression", "4", "4-5", 0),
    ("regression", "4", "4, maybe 5", 0),
    ("regression", "4", "The total is 4 (2+2)", 1),
    ("regression", "12", "a dozen", 1),
    ("regression", "4", "$4$", 1),
    ("regression", "4", "nan", 0),
    ("regression", "3.5", "3.5 meters", 1),
    ("regression", "4", "Frame 4", 0),
    ("regression", "6", "4 apples and 2 oranges, 6 fruits in total", 1),
    ("regression", "1", "1_000", 0),
    ("regression", "1", "1.234.567", 0),
    ("regression", "1000", "1,000.", 1),
    ("yes_no", "yes", "Correct.", 1),
    ("yes_no", "no", "Incorrect.", 1),
    ("yes_no", "no", "It isn't.", 1),
    ("yes_no", "yes", "It does.", 1),
    ("yes_no", "no", "not true", 1),
    ("yes_no", "yes", "Not yes", 0),
    ("yes_no", "no", "maybe", 0),
    ("yes_no", "no", "None", 0),
    ("yes_no", "yes", "The statement is true.", 1),
    ("yes_no", "no", "No problem, yes", 0),
    ("yes_no", "yes", "I know", 0),
    ("yes_no", "no", "Absolutely not.", 1),
    ("yes_no", "yes", "Absolutely not.", 0),
    ("yes_no", "no", "Of course not", 1),
    ("yes_no", "no", "It is certainly not moving", 1),
    ("yes_no", "yes", "Yes, it is definitely not empty", 1),
    ("yes_no", "yes", "Of course!", 1),
    ("yes_no", "yes", "Yes\nNo", 0),
    ("yes_no", "no", "No. Yes.", 0),
    ("yes_no", "yes", "No? Yes", 1),
    ("open-ended", "Dolly Zoom", "dolly-zoom", 1),
    ("open-ended", "left", "right", 0),
    ("open-ended", "salt", "pepper or salt", 0),
    ("open-ended", "circle", "circular", 1),
    ("open-ended", "color", "colour", 1),
    ("open-ended", "3", "three", 1),
    ("numerical", "7", "x = 7", 1),
    ("numerical", "0.5", "1/2", 1),
    ("numerical", "1500", "1.5e3", 1),
    ("numerical", "7", "6 and 7", 0),
    ("temporal grounding", "[0, 10]", "The event occurs from 0s to 10s", 1),
    ("temporal grounding", "[0, 10]", "10 - 0", 0),
    ("temporal grounding", "[60, 90]", "1:00-1:30", 1),
    ("temporal grounding", "[60, 90]", "1m to 1m30s", 1),
    ("numerical", "2:30", "02:30", 1),
    ("numerical", "2:30", "2:03", 0),
    ("open-ended", "H2O", "$H_2O$", 1),
    ("open-ended", "CO2", "CO_{2}", 1),
    ("open-ended", "H2O", "H2O2", 0),
)
TEN = [f"{letter}. choice {letter.lower()}" for letter in "ABCDEFGHIJ"]
KINDS = ("multiple choice", "regression", "yes_no", "caption_matching", "open-ended", "numerical")


def score(output, gold="B", scorer="robust", kind="multiple choice", benchmark="", **fields):
    options = {"options": OPTIONS} if kind == "multiple choice" else {}
    row = {"question_type": kind, "gold": gold, "output": output, "benchmark": benchmark}
    return vr.score_outputs([row | options | fields], scorer=scorer)[0]


def test_agrees_with_every_agreed_verdict():
    rows = json.loads(GOLDEN.read_text())
    scores = vr.score_outputs(rows)
    for row, value in zip(rows, scores, strict=True):
        assert value == pytest.approx(row["right"], abs=1e-3), row


@pytest.mark.parametrize("output", CHOICES.strip().splitlines())
def test_reads_a_choice(output):
    assert score(output) == 1.0
    assert [score(output, gold) for gold in "ACD"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("output", NO_CHOICES.strip().splitlines())
def test_reads_no_choice(output):
    assert [score(output, gold) for gold in "ABCD"] == [0.0] * 4


@pytest.mark.parametrize(("kind", "gold", "output", "right"), OTHERS)
def test_reads_other_answers(kind, gold, output, right):
    assert score(output, gold, kind=kind) == right


def test_captioning_waits_for_a_judge():
    assert math.isnan(score("A man runs.", "A", kind="captioning", benchmark="tempcompass"))


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [("official", [1.0, 0.9, 0.6, 0.5, 0.1]), ("videorft", [1.0, 0.9, 0.5, 0.4, 0.0])],
)
def test_mean_relative_accuracy_at_its_boundaries(scorer, expected):
    outputs = ["10.5", "11", "12.5", "13", "15"]  # The truth is 10.
    got = [score(x, "10", scorer, "regression", "vsibench") for x in outputs]
    assert got == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scorer", "benchmark", "output", "gold", "fields"),
    [
        ("lmms", "videommmu", "I think the answer is C", "I", {"options": TEN}),
        ("lmms", "videommmu", "I cannot tell", "I", {"options": TEN}),
        ("lmms", "videommmu", "API Error", "I", {"options": TEN}),
        ("lmms", "videomme", "[LMMS_EVAL_REQUEST_FAILED", "D", {}),
        ("lmms", "videomme", "I think it is B because C is wrong", "C", {}),
        ("lmms", "videomme", "The answer is B, not C", "C", {}),
        ("lmms", "videomme", "A man drinks, so B", "A", {}),
        ("lmms", "mvbench", "There is a cup, so B", "A", {}),
        ("lmms", "mmvu", "It may be B", "B", {}),
        ("official", "videomme", "Because it is D", "B", {}),
        ("official", "mvbench", "", "C", {}),
        ("official", "mvbench", "(", "C", {}),
        ("official", "lvbench", "(B) the cup", "B", {}),
        ("official", "mlvu", "B) the cup", "B", {}),
        ("official", "vsibench", "b.", "B", {}),
        ("official", "videommmu", "First A. Then B. it is", "B", {}),
        ("official", "videomme-v2", "Answer: B", "B", {}),
        ("official", "scivideobench", "the final answer is C", "C", {}),
        ("official", "video-holmes", "<answer>A</answer> <answer>C: it falls</answer>", "C", {}),
        ("official", "video-holmes", "B or A ", "A", {}),
        ("videorft", "videomme", "B", "B", {}),
        ("videorft", "videomme", "<think><answer>B</answer></think><answer>C</answer>", "B", {}),
    ],
)
def test_other_tools_give_what_is_written_of_them(scorer, benchmark, output, gold, fields):
    assert score(output, gold, scorer, benchmark=benchmark, **fields) == 1.0
    wrong = [letter for letter in "ABCD" if letter != gold]
    if output not in ("", "("):  # These are right for every gold letter of MVBench.
        assert score(output, wrong[0], scorer, benchmark=benchmark, **fields) == 0.0


@pytest.mark.parametrize(
    ("scorer", "benchmark", "output", "gold"),
    [
        ("official", "videomme", "answer b", "B"),
        ("official", "vsibench", "<answer>B</answer>", "B"),
        ("videorft", "videomme", "B.", "B"),
        ("videorft", "videomme", "<answer>b</answer>", "B"),
        ("lmms", "mlvu", "E", "E"),
    ],
)
def test_other_tools_refuse_what_is_written_of_them(scorer, benchmark, output, gold):
    options = [f"{letter}. choice {letter.lower()}" for letter in "ABCDEF"]
    assert score(output, gold, scorer, benchmark=benchmark, options=options) == 0.0


def test_numbers_as_other_tools_read_them():
    def number(output, gold, scorer):
        return score(output, gold, scorer, "regression", "vsibench")

    assert number("1,200", "1", "lmms") == number("20-25", "20", "lmms") == 1.0
    assert number("about 3.5", "3.5", "lmms") == 1.0
    assert number("about 3.5", "3.5", "official") == 0.0  # Its first piece is no number.
    assert score("12,000", "12000", "videorft", "numerical") == 0.0  # Only one has a comma.
    assert score("3.141", "3.142", "videorft", "numerical") == 1.0


def test_mmvu_is_judged_and_open_answers_of_lmms_are_too_easy():
    assert math.isnan(score("B", scorer="official", benchmark="mmvu"))
    assert score("", "force majeure", "lmms", "open-ended", "mmvu") == 1.0
    assert score("o", "Dolly Zoom", "lmms", "open-ended", "mmvu") == 1.0


def test_rules_of_tempcompass():
    def rule(kind, output, gold, question=""):
        return score(output, gold, "official", kind, "tempcompass", question=question, options=[])

    question = "Which caption matches?\nCaption A: It falls.\nCaption B: It rises."
    assert rule("yes_no", "North", "no") == 1.0
    assert math.isnan(rule("yes_no", "**Yes**", "yes"))
    assert rule("caption_matching", "It falls.", "Caption A: It falls.", question) == 1.0
    assert math.isnan(rule("caption_matching", "It falls", "Caption A: It falls.", question))
    assert rule("multiple choice", "B) up", "B. up", "Where?\nA. down\nB. up") == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": "B", "output": "B"}, "row 0 has no 'question_type'"),
        ({"question_type": "riddle", "gold": "B", "output": "B"}, "question_type is 'riddle'"),
        ({"question_type": "mcq", "gold": "B", "output": 3}, "output is int; give a text"),
        (
            {"question_type": "mcq", "gold": "B", "output": "B", "options": "AB"},
            "options is 'AB'; give a list",
        ),
        ({"question_type": "regression", "gold": "some", "output": "3"}, "is no number"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        vr.score_outputs([row])


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ValueError, match="choose one of robust, official, lmms, videorft"):
        vr.score_outputs([], scorer="gpt")


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(KINDS), st.text(max_size=60))
def test_any_text_has_a_score_between_nothing_and_everything(kind, output):
    gold = {"regression": "4", "numerical": "4", "yes_no": "yes"}.get(kind, "B")
    value = score(output, gold, kind=kind, question="?\nA. up\nB. down")
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("piece", ["A ", "<answer>", "( ", "1", "one ", "\n", "not B ", "B or "])
def test_long_texts_do_not_stall(piece):
    started = time.monotonic()
    for kind in KINDS:
        score(piece * 50_000, "4" if kind in ("regression", "numerical") else "B", kind=kind)
    for scorer in ("official", "lmms", "videorft"):
        score(piece * 50_000, "[1, 2]", scorer, "temporal grounding", "charades_sta")
    assert time.monotonic() - started < 60  # Matching that is quadratic in the text takes hours.
