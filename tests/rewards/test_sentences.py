"""Sentences and the descriptive part of a reasoning, by a table and by properties."""

import numpy as np
import pytest

from videorft_jax.rewards.sentences import MAX_CHARS, describe, iter_sentences

TABLE = [  # sentences, written apart by |
    "The man walks.|He runs.",
    "the man walks.|he runs.",
    "Is it red?|It is!|Good.",
    "Mr. Smith and Dr. Lee wait.|Then they go.",
    "It weighs 3.5 kg.|It costs $.50.|Done.",
    "He eats 2.|Then he sleeps.",
    "Hmm... let me see...|The dog barks.",
    "Well… perhaps.|Yes.",
    "Use e.g. a cup, i.e. Bob's, etc. and so on.|Then stop.",
    "There are cups, plates, etc.|The man eats.",
    "The game starts at 5 p.m. sharp.|It ends at 6 p.m.|Then all leave.",
    "See fig. 3 and no. 4.|The answer is no.|It is so.",
    "The answer is B.|Walking is slower.",
    "It is option B.|Walking is slower.",
    "John F. Kennedy met J. K. Rowling.|They spoke.",
    "So do I.|He left.",
    "The U.S. Army came to the U.S.|They stayed.",
    '"Stop!" he said.|He left.',
    '"Why?"|Nobody knows.',
    "It is (really.)|Good.",
    "**Look closely.**|A dog runs.",
    "1. The man walks.|2. He runs.",
    "A. cat",
    "iv. The man walks.|v. He runs.",
    "Step 1. The man enters.|Step 2. He sits.",
    "Here they are: 1. The man.|He sits.",
    "- one\n|- two",
    "The man\nwalks.|He runs\n\n|and jumps",
    "First line\n|Second line",
    "Open clip.mp4 at www.x.org now.|Play.",
    "他走了。|她来了！|真的？|“是。”|好",
    "長さは3．5メートル。|「行く。」|彼は走る。",
    "他走了.|好",
    "wait?!|What...?!|Yes.",
    "no mark at all",
    "...",
]


@pytest.mark.parametrize("marked", TABLE)
def test_table(marked):
    expected = [part.strip() for part in marked.split("|")]
    text = "".join(
        part if part.endswith("\n") or any(ord(c) > 0x2FFF for c in part) else part + " "
        for part in marked.split("|")
    )
    assert list(iter_sentences(text)) == expected
    assert list(iter_sentences(f"\n  {text}\n")) == expected


def test_nothing_is_lost_in_random_text():
    rng = np.random.default_rng(0)
    letters = list("aB1.!?…\n \t\"')(。．是I:x") + ["Mr.", "e.g.", "\ud800", "\u2028", " The "]
    for _ in range(3000):
        text = "".join(rng.choice(letters, rng.integers(0, 40)))
        sentences = list(iter_sentences(text))
        assert "".join("".join(sentences).split()) == "".join(text.split()), repr(text)
        assert all(s and s == s.strip() for s in sentences)


HOSTILE = [".", ". ", "\n", " \n", "a.\n ", "Mr. ", "A.", '."', "x", "1. ", "。", "a. \n\t", "!'"]


class Counted(str):
    """Text that counts how many of its characters are looked at."""

    looked = 0

    def __getitem__(self, where):
        part = super().__getitem__(where)
        Counted.looked += len(part)
        return part

    def count(self, part, start, end):
        Counted.looked += end - start
        return super().count(part, start, end)


@pytest.mark.parametrize("unit", HOSTILE)
def test_work_is_linear(unit):
    def measure(number):
        Counted.looked = 0
        sentences = iter_sentences(Counted((unit * number)[:number] + " " * number + "\nx"))
        assert sum(map(len, sentences)) <= 2 * number + 2
        return Counted.looked

    assert measure(64_000) < 9 * measure(8_000)


def test_description():
    text = "<think>What is asked? A dog runs 2.5 m. It stops. </think><answer>B</answer>"
    assert describe(text, "paper") == ["A dog runs 2.5 m. It stops."]
    assert describe(text, "pooled") == ["A dog runs 2.5 m.", "It stops."]
    # The original cuts at the first full stop, wherever it is.
    assert describe(text, "repo") == ["5 m. It stops."]
    for empty in ("", "<answer>B</answer>", "<think>Only one.</think>", "<think>A. B", "<think>"):
        assert describe(empty, "paper") == describe(empty, "pooled") == []
    assert describe("<think>... ok. ! ?! </think>", "paper") == []
    assert describe("<answer>B.C</answer>", "repo") == ["<answer>B.C</answer>"]
    assert describe("<think>no stop</think>", "repo") == ["no stop"]
    assert describe("<think>The end.</think>", "repo") == [""]
    long = "<think>A b. " + "c d. " * 10**5 + "</think>"
    assert len(describe(long, "paper")[0]) == MAX_CHARS + 1
    assert sum(map(len, describe(long, "pooled"))) <= MAX_CHARS + 1
    with pytest.raises(ValueError, match="choose one of paper, repo, pooled"):
        describe("", "first")
