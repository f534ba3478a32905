"""Options that a text names by their words or numbers, without their letters."""

import re
import unicodedata
from collections.abc import Sequence

from videorft_jax.evaluation.scoring.numbers import parse_plain_number, read_number

_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")
_ARTICLES = ("a", "an", "the")


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers of a text, for comparison. An article in front is none of them
    where other words follow, as an answer may leave it out or choose another."""
    words = _WORD.findall(_spell_powers(text).casefold())
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def _spell_powers(text):
    return unicodedata.normalize("NFKC", re.sub(r"(?<=\w)([⁰¹²³⁴-⁹]+)", r"^\1", text))


def find_said(text: str, labels: Sequence[str], texts: Sequence[str]) -> set[str]:
    """The options whose words, or whose number, stand in the text and are not denied."""
    if {option.casefold().strip(".") for option in texts} == {"yes", "no"}:
        begins = re.match(r"\W*(yes|no)\s*[,.;:!]", text, re.I)
        if begins:  # What follows explains it, and may hold the other word.
            return {lb for lb, own in zip(labels, texts, strict=True)
                    if own.casefold().startswith(begins[1].casefold())}  # fmt: skip
    numbers = [parse_plain_number(option) for option in texts]
    if all(number is not None for number in numbers):
        mine = read_number(text)
        return {lb for lb, n in zip(labels, numbers, strict=False) if mine and n == mine.value}
    marks = _sequence(text)
    if marks:
        same = [lb for lb, own in zip(labels, texts, strict=False) if _sequence(own) == marks]
        if same:
            return set(same[:1])
    said, clauses = _said_in_clauses(text)
    spans = []
    for label, option in zip(labels, texts, strict=False):
        words = words_of(option)
        for start in range(len(said) - len(words) + 1 if words else 0):
            stop = start + len(words)
            if said[start:stop] == words and not _is_denied(said, clauses, start, stop):
                spans.append((start, stop, label))
    longest = [
        s for s in spans
        if not any(o[0] <= s[0] and s[1] <= o[1] and o[1] - o[0] > s[1] - s[0] for o in spans)
    ]  # fmt: skip
    by_place = {}
    for start, _, label in longest:
        by_place.setdefault(start, label)  # the first of equal texts
    return set(by_place.values())


def _said_in_clauses(text):
    """(words of a text, for each the number of its clause): a comma, a stop or "but" ends one."""
    said, clauses = [], []
    for number, clause in enumerate(re.split(r"[,;:!?\n]|\.(?!\d)|\bbut\b", text)):
        own = _WORD.findall(_spell_powers(clause).casefold())
        said, clauses = said + own, clauses + [number] * len(own)
    return said, clauses


def _is_denied(said, clauses, start, stop):
    """Whether the words from `start` to `stop` are denied within their clause."""
    before = [i for i in range(max(0, start - 4), start) if clauses[i] == clauses[start]]
    before = " ".join(said[i] for i in before)
    after = " ".join(said[stop : stop + 3])
    return bool(
        re.search(r"\b(not|no|never|isn|doesn|nothing|neither|nor|without)( \w+){0,2}$", before)
        or re.search(r"(rather than|instead of)( \w+)?$", before)
        or re.match(r"(is |was )?(wrong|incorrect|false)\b|(is|was) not\b", after)
    )


def _sequence(text):
    """The digits of "1->2->3", "1, 2, 3" or "(1)(2)(3)", None for any other text."""
    if re.fullmatch(r"[\s\d,>()\[\]-]+", text) and len(found := re.findall(r"\d+", text)) > 1:
        return found
    return None
