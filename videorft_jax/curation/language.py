"""Scripts: whether a chain is written in those of its question.

A language itself is not told: a chain in English about a question in Spanish passes. What is found
are the replies of models that fall into another script, for a word or from end to end.
"""

import collections
import functools
import re
import unicodedata

MOST_FOREIGN = 0.1  # share of a chain's letters, so that a name or a quoted word passes
LEAST_LETTERS = 4  # Fewer letters say nothing about a question's script.
USED = 0.05  # share of the question's letters from which a script is one of its own
# Japanese is written in three scripts at once, and Korean may hold Chinese ones.
_SYMBOL = re.compile(r"\b[Ͱ-Ͽ]\b")  # A Greek letter by itself is one of a formula.
_FAMILY = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK", "IDEOGRAPHIC": "CJK"}


def foreign_share(chain: str, *asked: str) -> float:
    """Share of the chain's letters whose script the question's texts do not use; 0 where one of
    both has too few letters to tell."""
    own, said = _count(" ".join(asked)), _count(chain)
    total, known = said.total(), own.total()
    if min(total, known) < LEAST_LETTERS:
        return 0.0
    used = {script for script, number in own.items() if number >= USED * known}
    return sum(number for script, number in said.items() if script not in used) / total


def _count(text: str) -> collections.Counter:
    """Letters of a text by script, wide ones as plain ones."""
    plain = _SYMBOL.sub("", unicodedata.normalize("NFKC", text))
    return collections.Counter(script for script in map(_script, plain) if script)


@functools.lru_cache(1 << 14)
def _script(char: str) -> str:
    """The first word of a letter's name, which is its script; "" for what is no letter."""
    if not char.isalpha():
        return ""
    name = unicodedata.name(char, "").split(" ")[0].split("-")[0]
    return _FAMILY.get(name, name)
