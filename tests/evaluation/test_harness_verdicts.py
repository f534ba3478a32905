"""The scorers of other tools against verdicts that those tools gave themselves.

`lmms_verdicts.json` holds outputs of random pieces and what lmms-eval 0.7.3 said of them, its
functions called one by one, with nothing of this package; null where it asks a judge or guesses.
The other verdicts are those of the benchmarks' published scripts.
"""

import json
import math
import pathlib

import pytest

import videorft_jax as vr
from videorft_jax.evaluation.scoring import lmms_parsers

VERDICTS = pathlib.Path(__file__).parents[1] / "golden" / "lmms_verdicts.json"
FIVE = ["A. one", "B. two", "C. three", "D. four", "E. five"]
CAPTIONS = "Which caption matches?\nCaption A: It falls.\nCaption B: It rises."
# Benchmark, options, output, the letter that its own script reads.
OFFICIAL = (
    ("longvideobench", FIVE[:4], "Each of them is D", "E"),
    ("longvideobench", FIVE, "Best answer: C", "C"),
    ("videomathqa", FIVE, "Best answer: C", "B"),
    ("lvbench", FIVE, "(see (D", "s"),
    ("mvbench", FIVE, "C)\nbecause it falls", "C"),
    ("scivideobench", FIVE, "Known to be D", "K"),
    ("videommmu", FIVE, "A: no. B. yes", "B"),
    ("videommmu", FIVE, "DNA is it", "A"),
    ("video-holmes", FIVE, "<answer>C </answer> or <answer>D</answer>", "D"),
)


def score(scorer, **row):
    return vr.score_outputs([row], scorer)[0]


def test_lmms_gives_what_lmms_eval_gave():
    rows = json.loads(VERDICTS.read_text(encoding="utf-8"))
    wrong = []
    for row in rows:
        verdict = row.pop("verdict")
        value = score("lmms", **row)
        same = math.isnan(value) if verdict is None else value == pytest.approx(verdict, abs=1e-5)
        wrong += [] if same else [(row["benchmark"], row["output"], row["gold"], value, verdict)]
    assert not wrong


def test_lmms_takes_reasoning_off_before_it_reads():
    def lmms(output, benchmark="videomme"):
        row = {"question_type": "mcq", "gold": "B", "options": FIVE[:4]}
        return score("lmms", benchmark=benchmark, output=output, **row)

    assert lmms("<think>The answer is C. It is C.</think>\nB", "vsibench") == 1.0
    assert lmms("A man. So it is C.</think> B", "vsibench") == 1.0  # The prompt opened it.
    assert lmms("<think>C</think><answer>B</answer>") == 1.0
    assert lmms("<think>C</think><answer>B</answer>", "vsibench") == 0.0  # These tags stay.
    assert lmms("<think>B", "vsibench") == 0.0
    assert lmms("<THINK>C</THINK> B", "vsibench") == 0.0


@pytest.mark.parametrize(("benchmark", "options", "output", "letter"), OFFICIAL)
def test_official_gives_what_the_script_gives(benchmark, options, output, letter):
    for gold in "ABCDE"[: len(options)]:
        row = {"question_type": "mcq", "gold": gold, "options": options, "output": output}
        assert score("official", benchmark=benchmark, **row) == float(gold == letter)


@pytest.mark.parametrize("scorer", ["official", "lmms"])
@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        ("B) It falls.", 1.0),
        ("A.", 1.0),
        ("Caption A.", 1.0),
        ("Caption B", 0.0),
        ("B", 0.0),
        ("(A)", None),
        ("It falls", None),
    ],
)
def test_captions_as_tempcompass_matches_them(scorer, output, verdict):
    row = {"question_type": "caption_matching", "gold": "Caption A: It falls.", "output": output}
    value = score(scorer, benchmark="tempcompass", question=CAPTIONS, **row)
    assert math.isnan(value) if verdict is None else value == verdict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("one hundred and five", 105.0),
        ("three hundred and twenty-one", 321.0),
        ("two thousand three hundred and four", 2304.0),
        ("one hundred thousand and one", 100001.0),
        ("ninety nine hundred", 9900.0),
        ("a thousand", 1000.0),
        ("twenty twenty", 40.0),
        ("four or 3", 4.0),
        ("none", None),
    ],
)
def test_number_words_are_worth_what_lmms_eval_reads(text, value):
    assert lmms_parsers.number(text) == value
