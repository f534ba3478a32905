"""Yes or no, captions, and answers in the model's own words, read as a person would read them."""

import functools
import re
import unicodedata

from videorft_jax.evaluation.scoring.choices import find_options, read_choice
from videorft_jax.evaluation.scoring.numbers import read_number
from videorft_jax.evaluation.scoring.option_words import words_of
from videorft_jax.evaluation.scoring.text import without_refusal
from videorft_jax.rewards.answers import plain_notation

_YES = re.compile(
    r"\b(?:yes|yeah|yep|true|correct|right|affirmative|absolutely|certainly|indeed|of course|"
    r"i (?:think|believe|guess) so|sí|si|oui|ja)\b|^\W*y\W*$|^是|对|對|はい|네",
    re.I,
)
_NO = re.compile(
    r"\b(?:no|nope|false|incorrect|wrong|negative|not at all|non|nein)\b|^\W*n\W*$"
    r"|不是|不对|不對|不|否|没有|いいえ|아니",
    re.I,
)
_NOT = re.compile(
    r"\b(?:absolutely|certainly|definitely|of course|indeed|probably|clearly|obviously|surely)"
    r"\s+not\b",
    re.I,
)
_DENIAL = re.compile(
    r"\b(?:does|do|did|is|are|was|were|has|have|can|could|will|would)(?:\s+not\b|n['’]?t\b)"
    r"|\b(?:do|does|did)(?:n['’]t| not) (?:think|believe) so\b"
    r"|\b(?:isn|doesn|aren|wasn|weren|didn|hasn|can)['’]?t\b|\bnever\b",
    re.I,
)
_CONFIRMATION = re.compile(
    r"^(?:it|he|she|they|this|that|the \w+)\s+(?:does|is|do|are|did|was)\b", re.I
)
_FILLERS_TEXT = """
the a an is are was it its this that answer of in to final correct technique term called known as i
think would be so eye human option
"""
_FILLERS = frozenset(_FILLERS_TEXT.split())
# Words before the answer in a plain sentence, and words that may follow it without changing it.
_LEADERS_TEXT = """
is are was were be called named as by with to of in at on for uses used shows moves turns goes
becomes means performs exhibits represents it this that answer known into from toward towards likely
probably
"""
_FOLLOWERS = frozenset(
    [
        "of",
        "in",
        "on",
        "at",
        "by",
        "because",
        "since",
        "as",
        "which",
        "that",
        "for",
        "with",
        "from",
        "during",
    ]
)
_SPELLINGS = (("aluminium", "aluminum"), ("grey", "gray"), ("centre", "center"), ("metre", "meter"))
# Endings of British spelling, and of adjectives made of nouns, as the other form has them.
_FORMS = (
    (re.compile(r"(?<=[a-z]{3})our(?=$|s$|ed$|ing$|ful$)"), "or"),
    (re.compile(r"(?<=[a-z]{3})is(?=e$|es$|ed$|ing$|ation$)"), "iz"),
    (re.compile(r"(?<=[a-z]{2}[a-z]l)ys(?=e$|es$|ed$|ing$)"), "yz"),
    (re.compile(r"(?<=[a-z]{3})ular$"), "le"),
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
# Units by their names, in the form in which signs name them.
_UNITS_TEXT = """
meter:m metre:m centimeter:cm centimetre:cm millimeter:mm millimetre:mm kilometer:km kilometre:km
second:s sec:s minute:min hour:h hr:h gram:g kilogram:kg dollar:$ usd:$ euro:€ eur:€ pound:£ volt:v
ampere:a watt:w newton:n joule:j degree:° percent:% liter:l litre:l
"""
_UNITS = dict(pair.split(":") for pair in _UNITS_TEXT.split() if ":" in pair)
_CLOSE = 0.005  # a number agrees with the truth where it agrees to two places


def read_yes_no(text: str) -> bool | None:
    """Whether a text says yes; None where it says neither, both, or refuses."""
    text = without_refusal(re.sub(r"\bno (?:doubt|question)\b", " ", text, flags=re.I))
    if text is None:
        return None
    text = _NOT.sub(" no ", text)
    begins = re.match(
        r"\W*(yes|no)\b(?!\s*(?:and|or|/)\s*(?:yes|no)\b)(?=\s*(?:$|[.,;:!\n—-]))", text, re.I
    )
    asked = re.match(r"\W*(?:yes|no)\s*\?\s*(yes|no)\W*$", text, re.I)
    if asked:  # A question that the text answers itself.
        return asked[1].casefold() == "yes"
    if re.fullmatch(r"\W*yes\W+no\W*|\W*no\W+yes\W*", text, re.I):
        return None
    if begins and not re.search(r"\b(?:wait|actually)\b", text, re.I):
        return begins[1].casefold() == "yes"
    says_no = bool(_NO.search(text))
    rest = _NO.sub(" ", text)
    says_yes = bool(_YES.search(rest))
    if re.search(r"\bnot\s+(?:yes|true|correct|right)\b", text, re.I):
        return False
    if says_yes != says_no:
        return says_yes
    if says_yes:
        return None
    if _DENIAL.search(text):
        return False
    return True if _CONFIRMATION.match(text.strip()) else None


def read_caption(text: str, question: str, gold: str) -> bool:
    """Whether a text chooses the caption that `gold` names: by its label or by its sentence."""
    labels, texts = find_options(question)
    wanted = re.match(r"\s*(?:\w+\s+)?\(?([A-Z]|\d{1,2})\b\s*[.):]\s*(.*)", gold, re.I | re.S)
    if not labels:
        return words_of(text) == words_of(gold)
    if wanted is None:
        return False
    return read_choice(text, labels, texts) == wanted[1].upper()


def says_the_same(text: str, gold: str) -> bool:
    """Whether a text in the model's own words gives the answer `gold`, by words alone.

    Right is the answer itself in another case, spelling or word form, inside a plain sentence, or
    as a number that agrees to two places. Wrong are a part of it, another thing that contains it,
    a denial, and a text that names alternatives.
    """
    stated = without_refusal(text)
    if stated is None or not stated.strip():
        return False
    if _normal(stated) == _normal(gold):
        return True
    if _normal(gold) in ("yes", "no"):
        return read_yes_no(stated) is (_normal(gold) == "yes")
    truth = read_number(gold)
    if truth is not None:
        return _same_number(stated, gold, truth)
    for option in _alternatives(gold):
        if any(_says(_stems(version), _stems(option)) for version in _versions(stated)):
            return True
    return False


def _alternatives(gold: str) -> list[str]:
    """The gold answer, and the forms it names itself: "Depth-First Search (DFS)", "a or b"."""
    outside = re.sub(r"\s\([^()]*\)", "", gold).strip()
    inside = [part for part in re.findall(r"\s\(([^()]*)\)", gold) if len(part) > 1]
    others = [part for part in re.split(r"\s+or\s+|\s+/\s+", outside) if len(part) > 2]
    return list(dict.fromkeys(part for part in (gold, outside, *inside, *others) if part))


def _versions(text: str) -> list[str]:
    """The text, the text without what stands in brackets, and what stands there."""
    outside = re.sub(r"\s\([^()]*\)", "", text).strip()
    return list(dict.fromkeys([text, outside, *re.findall(r"\s\(([^()]*)\)", text)]))


def _says(said: list[str], wanted: list[str]) -> bool:
    """Whether the stems `said` are `wanted`, or a sentence around them that says nothing else: a
    noun next to the answer makes another thing of it, "then", "or" and "not" another statement."""
    if said == wanted or not wanted:
        return bool(wanted)
    places = [i for i in range(len(said)) if said[i : i + len(wanted)] == wanted]
    if not places:
        return False
    before, after = said[: places[-1]], said[places[-1] + len(wanted) :]
    if {"not", "never", "or", "neither", "nor", "isn", "instead", "rather", "no"} & set(before):
        return False
    if after and (after[0] not in _FOLLOWERS or {"or", "then", "not"} & set(after)):
        return False
    if not before or len(wanted) > 1:
        return (
            not before
            or bool({*before} & _leading_stems())
            or all(word in _filler_stems() for word in before)
        )
    return before[-1] in _leading_stems()


def agrees_with_number(text: str, gold: str) -> bool:
    """Whether the one number of a text is that of `gold`: equal to two places, with a unit that is
    the same, missing or only written otherwise; 50 % is .5."""
    truth = read_number(gold)
    if truth is None:
        return plain_notation(_normal(text)) == plain_notation(_normal(gold))
    return _same_number(text, gold, truth)


def _same_number(text, gold, truth):
    number = read_number(text)
    if number is None:
        return False
    if abs(number.value - truth.value) <= _CLOSE + 1e-12:
        return not (number.unit and truth.unit) or _same_unit(number.unit, truth.unit)
    if "%" in gold and "%" not in text:
        return abs(number.value * 100 - truth.value) <= _CLOSE
    if number.unit == "%" and not truth.unit:
        return abs(number.value / 100 - truth.value) <= _CLOSE * abs(truth.value)
    return False


def _same_unit(first: str, second: str) -> bool:
    names = [unicodedata.normalize("NFKC", unit).casefold() for unit in (first, second)]
    return len({_UNITS.get(name.removesuffix("s"), name) for name in names}) == 1


def _normal(text: str) -> str:
    """The text without case, accents of notation, punctuation around it, and outer articles."""
    text = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).casefold()
    text = re.sub(r"[_^](?:\{(\w+)\})?|\*\*", r"\1", text)
    for theirs, ours in _SPELLINGS:
        text = text.replace(theirs, ours)
    text = re.sub(r"^(?:the|a|an)\s+", "", text.strip(" .\"'!?,;:()[]\n"))
    return re.sub(r"\s+", " ", text)


@functools.lru_cache(1)
def _tokenizer():
    from rouge_score.tokenizers import DefaultTokenizer  # This takes a second: it loads nltk.

    return DefaultTokenizer(use_stemmer=True)


@functools.lru_cache(1)
def _leading_stems() -> frozenset[str]:
    return frozenset(_stems(_LEADERS_TEXT)) | frozenset(_LEADERS_TEXT.split())


@functools.lru_cache(1)
def _filler_stems() -> frozenset[str]:
    return frozenset(_stems(" ".join(_FILLERS))) | _FILLERS


def _stems(text: str) -> list[str]:
    """Word stems without articles in one spelling; "rectangle" and "rectangular" have one stem."""
    words = [word for word in words_of(_normal(text)) if word not in ("the", "a", "an")]
    return [_stem(word) for word in words]


@functools.lru_cache(4096)
def _stem(word: str) -> str:
    for theirs, ours in _FORMS:
        word = theirs.sub(ours, word)
    found = _tokenizer().tokenize(word) if word.isascii() else []
    return found[0] if found else word
