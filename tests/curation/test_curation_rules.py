"""Rules on the text of chains: leaks on a labelled set, conclusions, what a revision kept."""

import dataclasses
import random

import pytest
import scipy.stats
from labelled_sentences import ALLOWED, INNOCENT, LEAKING

from videorft_jax.curation import leaks
from videorft_jax.curation.chains import choose
from videorft_jax.curation.language import MOST_FOREIGN, foreign_share
from videorft_jax.curation.near import NearTexts
from videorft_jax.data.records.records import Record
from videorft_jax.rewards.accuracy import score_answer

RECORD = Record("1", "What does the man do?", "video", "free-form", (), "", "he sits", "a.mp4")


def test_13_leak_rules_on_labelled_sentences():
    missed = [text for text in LEAKING if not leaks.find_leaks(text, RECORD)]
    wrong = [text for text in INNOCENT if leaks.find_leaks(text, RECORD)]
    for question, text in ALLOWED:
        if leaks.find_leaks(text, dataclasses.replace(RECORD, problem=question)):
            wrong.append(text)
    assert len(set(LEAKING)) + len(set(INNOCENT)) + len(ALLOWED) >= 180
    assert abs(len(LEAKING) - len(INNOCENT) - len(ALLOWED)) <= 10  # about half of them look alike
    assert len(missed) <= 0.05 * len(LEAKING), missed
    assert len(wrong) <= 0.05 * (len(INNOCENT) + len(ALLOWED)), wrong


def test_13_what_the_question_speaks_of_is_allowed():
    record = dataclasses.replace(RECORD, problem="What happens at 12:30 on the clock?")
    assert not leaks.find_leaks("The hands stand at 12:30 as he comes in.", record)
    assert leaks.find_leaks("The hands stand at 12:30 as he comes in.", RECORD)
    assert leaks.find_leaks("Here is the revised reasoning: he sits.", RECORD) == {
        "revision": "revised reasoning"
    }


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_15_a_random_answerer_passes_as_often_as_the_rule_lets_it(attempts):
    """The rule asks for two right attempts of several, so that the share is a binomial's."""
    rng, num = random.Random(attempts), 8000
    options = ("A. red", "B. blue", "C. green", "D. white")
    scores = {letter: score_answer(letter, "C", "multiple choice", options) for letter in "ABCD"}
    passed = sum(
        choose([{"score": scores[rng.choice("ABCD")]} for _ in range(attempts)], 0.0, True)
        is not None
        for _ in range(num)
    )
    share = scipy.stats.binom.sf(1 if attempts > 1 else 0, attempts, 0.25)
    assert share == pytest.approx({1: 0.25, 2: 0.0625, 4: 0.2617}[attempts], abs=1e-3)
    assert abs(passed / num - share) < 4 * (share * (1 - share) / num) ** 0.5


def test_conclusion_names_another_option():
    record = dataclasses.replace(RECORD, problem_type="multiple choice", solution="B")
    assert leaks.other_conclusion("All fits, so the answer is C.", record) == "C"
    assert leaks.other_conclusion("Not C at first; so the answer is B.", record) == ""
    assert leaks.other_conclusion("He sits down.", record) == ""


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [("a b c d", "a b c d", 1.0), ("a b c d", "a x c d", 0.75), ("a b", "x y z", 0.0)],
)
def test_kept_share_is_the_longest_common_subsequence(before, after, share):
    assert leaks.kept_share(before, after) == share


@pytest.mark.parametrize(
    ("asked", "chain", "is_foreign"),
    [
        ("What does he do?", "He sits down on the chair.", False),
        ("What does he do?", "He sits down, 然后他站起来了。", True),
        ("What does he do?", "Он садится на стул.", True),
        ("他在做什么?", "He sits down on the chair.", True),
        ("他在做什么?", "他坐在椅子上,看着屏幕里的 TV 节目,然后慢慢地站起来。", False),
        ("何をしていますか?", "彼は椅子に座っています。", False),
        (
            "How large is the angle θ?",
            "As α is 30 and β is 60, so γ is 90 and θ is 3 of it.",
            False,
        ),
        ("What does he do?", "Ｈｅ ｓｉｔｓ ﬁrst.", False),
        ("2 + 2 = ?", "Es sind vier.", False),  # no letter, so that nothing can be told
        ("Qué hace él en la silla?", "Está sentado, según parece.", False),
    ],
)
def test_a_chain_is_written_in_the_script_of_its_question(asked, chain, is_foreign):
    assert (foreign_share(chain, asked) > MOST_FOREIGN) == is_foreign


def test_near_texts_are_found_and_others_are_not():
    """The oracle is the share of the shingles of three words that two texts have in common."""
    rng = random.Random(0)

    def shingles(words):
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    found, hits = {"near": 0, "middle": 0, "far": 0}, 0
    with NearTexts(0.7) as near:
        for number in range(300):
            words = [f"w{rng.randrange(5000)}" for _ in range(80)]
            near.add(number, " ".join(words))
            for name, changes in (("near", 1), ("middle", 12), ("far", 60)):
                other = list(words)
                for place in rng.sample(range(80), changes):
                    other[place] = "else"
                a, b = shingles(words), shingles(other)
                share = len(a & b) / len(a | b)
                assert share > 0.9 if name == "near" else share < 0.6
                found[name] += near.find(" ".join(other)) == [number]
            hits += number in near.find(" ".join(words).upper())
            assert near.find(" ".join(words), scope="another clip") == []
    assert hits == 300
    assert found["near"] >= 298
    assert found["middle"] <= 12
    assert found["far"] == 0
