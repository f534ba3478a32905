"""Sentences of model text, and the descriptive part of a reasoning.

The paper splits a response into parsing the question, describing the video and abstract reasoning;
only the description can be held against pixels, and it begins after the first sentence. The
original looks for the first "." instead, so "3.5", "Mr." and "..." cut wrongly and a first sentence
ending in "?" takes the description with it (defect 3). The decision worth knowing: the splitter
stops only at marks that may end a sentence, looks at most 32 characters back and at most twice at
white space ahead, so it is linear in any text, and lazy, so a long text costs only what is read.
"""

import re
from collections.abc import Iterator

from videorft_jax.rewards.answers import UNSPACED, first_block

TEXT_RULES = ("paper", "repo", "pooled")
MAX_CHARS = 4096  # read of a description; SigLIP's 64 tokens end long before
_MAX_REASONING = 1 << 16  # characters; what a longer reasoning goes on with is not looked at

_LOOK_BACK = 32
_MARK = re.compile(r"[.!?…\n。！？．｡]")  # one character class: linear
_RUN = ".!?…。！？｡"
_WIDE = "。！？｡．"  # end a sentence without white space after them
_CLOSERS = "\"'”’»)]}*_`」』）】》"
_OPENERS = "\"'“‘«([{*_`「『（【《-–—•"
# The next word belongs to these.
_TITLES_TEXT = """
mr mrs ms mx dr prof st vs cf e.g i.e eg ie approx ca gen col sgt capt lt gov sen rep rev hon mt fr
resp incl esp viz
"""
_NUMBERED_TEXT = "no nos fig figs eq eqs vol pp p ch sec art ref"  # they do when it is a number
# May end a sentence, and do when a capital follows.
_SHORT_TEXT = """
etc inc ltd co corp jr sr al min max hr hrs dept est ave blvd rd jan feb mar apr jun jul aug sep
sept oct nov dec a.m p.m ph.d b.c a.d
"""
# Words that begin sentences and follow neither initials nor acronyms: "option B. The man".
_STARTERS_TEXT = """
the a an he she it they we i you this that these those there then in on at so but and or next
finally after before when while as since because therefore thus hence now first second third
however if for my his her its their all both each one two another let based given looking from also
here what which who how not no yes
"""
_LABELS_TEXT = "option answer choice letter team player person"  # "Option B. It" is two sentences
_HEADINGS_TEXT = "step part point scene frame"  # "Step 1. The man" is one
_TITLES = frozenset(_TITLES_TEXT.split())
_NUMBERED = frozenset(_NUMBERED_TEXT.split())
_SHORT = frozenset(_SHORT_TEXT.split())
_STARTERS = frozenset(_STARTERS_TEXT.split())
_LABELS = frozenset(_LABELS_TEXT.split())
_HEADINGS = frozenset(_HEADINGS_TEXT.split())


def iter_sentences(text: str) -> Iterator[str]:
    """Sentences of any text in order, stripped, none empty; no character but white space is lost.

    Knows decimals, abbreviations, initials, acronyms, ellipses, closing quotes and brackets,
    enumerations ("1. The man" is one sentence), paragraphs and list items, and the full stops of
    Chinese and Japanese. Time linear in the text that is read.
    """
    start = position = 0
    while match := _MARK.search(text, position):
        mark, end = match.span()
        if text[mark] != "\n":
            while end < len(text) and text[end] in _RUN:
                end += 1
            while end < len(text) and text[end] in _CLOSERS:
                end += 1
        ahead = end
        while ahead < len(text) and text[ahead].isspace():
            ahead += 1
        if ahead == len(text):
            break
        if _is_end(text, start, mark, end, ahead):
            if sentence := text[start:end].strip():
                yield sentence
            start = position = ahead
        else:  # a line break takes the white space after it along, so nothing is read thrice
            position = ahead if text[mark] == "\n" else end
    if sentence := text[start:].strip():
        yield sentence


def _is_end(text: str, start: int, mark: int, end: int, ahead: int) -> bool:
    """Tells whether the sentence from `start` ends with the marks [mark, end); `ahead` is the next
    character that is no white space."""
    sign, following = text[mark], text[ahead]
    if sign == "\n":
        return not following.islower() or text.count("\n", mark, ahead) > 1
    if sign == "．" and text[mark - 1 : mark].isdigit() and following.isdigit():
        return False
    if sign in _WIDE:
        return True
    if ahead == end and not _is_unspaced(following):
        return False  # 3.5, clip.mp4, "?,"
    run = text[mark:end].rstrip(_CLOSERS)
    if run == ".":
        return not _continues(text, start, mark, ahead)
    is_quoted = end > mark + len(run)  # "Stop!" he said
    return not following.islower() or (sign in "!?" and not is_quoted)


def _continues(text: str, start: int, mark: int, ahead: int) -> bool:
    """Tells whether a single full stop belongs to an abbreviation, an initial or a list number."""
    behind = text[max(start, mark - _LOOK_BACK) : mark]
    words = [word for word in (w.lstrip(_OPENERS) for w in behind.split()) if word]
    if not words or behind[-1].isspace():
        return False
    word, before = words[-1], words[-2] if len(words) > 1 else ""
    is_first = not before and mark - start <= _LOOK_BACK
    lower, after = word.lower(), _word_at(text, ahead)
    if word.isdigit() or (len(word) <= 4 and word != "I" and not set(lower) - set("ivx")):
        heads = len(words) == 2 and before.lower() in _HEADINGS
        if is_first or heads or before.endswith((":", ";")):
            return True
    if lower in _TITLES:
        return True
    if lower in _NUMBERED:
        return after[:1].isdigit()
    if lower in _SHORT:
        return not (after[:1].isupper() or _is_unspaced(after[:1]))
    if len(word) == 1 and word.isalpha() and word != "I":
        if is_first:
            return True  # "A. cat", "J. Smith"
        is_name = before[:1].isupper() and before.lower() not in _LABELS
        is_name |= len(after) == 1 and text[ahead + 1 : ahead + 2] == "."  # "by J. K. Rowling"
        return is_name and after[:1].isupper() and after.lower() not in _STARTERS
    if "." in word and all(len(part) == 1 for part in word.split(".")):
        return after.lower() not in _STARTERS  # U.S. Army
    return False


def _word_at(text: str, position: int) -> str:
    words = text[position : position + _LOOK_BACK].split(None, 1)
    return words[0].strip(_OPENERS + _CLOSERS + ",;:.!?") if words else ""


def _is_unspaced(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in UNSPACED) if letter else False


def describe(completion: str, rule: str) -> list[str]:
    """Returns the descriptive part of a completion, as the texts to encode; empty without one.

    Args:
      completion: model text with its tags.
      rule: paper – what follows the first sentence of the think block, as one text (equation of
          R_s: the tokens after the first full stop, with a real splitter). Without a think block,
          or with a single sentence in it, nothing: no description earns no reward.
        repo – the original's code: what follows the first "." of the think block, the whole block
          without a "." in it, the whole completion without a block; possibly an empty text.
        pooled – the sentences after the first one by one, so that all of a long reasoning counts
          and not its first 64 tokens.

    Raises:
      ValueError: unknown rule.
    """
    if rule not in TEXT_RULES:
        raise ValueError(f"semantic: text rule is {rule!r}; choose one of {', '.join(TEXT_RULES)}")
    block = first_block(completion, "think")
    if rule == "repo":
        block = completion if block is None else block[block.find(".") + 1 :].lstrip()
        return [block[: MAX_CHARS + 1]]
    sentences = iter_sentences((block or "")[:_MAX_REASONING])
    sentences = (sentence for sentence in sentences if any(map(str.isalnum, sentence)))
    next(sentences, None)
    texts, length = [], 0
    for sentence in sentences:
        texts.append(sentence)
        length += len(sentence) + 1
        if length > MAX_CHARS:
            break
    if rule == "pooled":
        return texts
    return [" ".join(texts)[: MAX_CHARS + 1]] if texts else []
