"""Short statements of a number or an option, as the strict rewards accept them.

`answers.parse_number` and `answers.parse_letter` read bare answers. This file reads what people put
around one: marks ("**13**", "[B]"), an introduction ("the answer is", "x =", "about"), number
words, words of scale ("5 million"), and an option's own words behind its letter. Whatever else
stands in the text makes it unreadable, so that no policy is paid for a text that says two things.
"""

import re
from collections.abc import Sequence

from videorft_jax.data.records.plain import order_options
from videorft_jax.rewards import units
from videorft_jax.rewards.answers import (
    CURRENCIES,
    MAX_LABEL,
    MAX_NUMBER,
    PLAIN,
    Number,
    parse_letter,
)
from videorft_jax.rewards.answers import parse_number as parse_bare

_PAIRS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"), ("\\fbox{", "}"),
    ("\\text{", "}"), ("\\mathrm{", "}"), ("\\textbf{", "}"), ("**", "**"), ("__", "__"),
    ("*", "*"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"),
    ("[", "]"), ("{", "}"),
)  # fmt: skip
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence)\s*,?\s+)?(?:"
    r"(?:the\s+|my\s+)?(?:(?:final|correct|best|right)\s+)*(?:answer|option|choice|result|value|total)"
    r"(?:\s+(?:is|are|was|would be|should be)\b|\s*[:=])?\s*(?:option\s+|choice\s+)?"
    r"|(?:there|it|they|this|that)\s+(?:is|are|was|were)\b\s*"
    r"|[a-z]\s*=\s*|=\s*|i\s+(?:choose|pick|select|count)\s+)",
    re.I,
)
_HEDGE = re.compile(
    r"(?:about|approximately|approx\.?|around|roughly|circa|exactly|≈|~|∼)\s*", re.I
)
_SIGN = re.compile(r"(?:minus|negative)\s+", re.I)
_ONES_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_ONES = {word: value for value, word in enumerate(_ONES_TEXT.split())}
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENS_TEXT.split(), 2)}
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12,
    "dozen": 12.0, "万": 1e4, "亿": 1e8, "千": 1e3, "百": 1e2, "percent": 1.0,
}  # fmt: skip
_NUMBER_WORDS = "|".join([*_ONES, *_TENS])
_SCALED = re.compile(
    r"\s*((?:hundred|thousand|million|billion|trillion|dozen)s?\b|k\b|万|亿|千|百)", re.I
)
# Words behind a number that turn it into something else, which no unit does.
_CHANGES = re.compile(
    r"\\pi|π|\b(?:pi|if|unless|except|minus|less|more|than|plus|times \d|over|under|squared|cubed|"
    r"hundred|thousand|million|billion|dozen|half|per \d|each|twice|double|half|when|not|or|and|to|"
    r"lakhs?|crores?|scores?|pairs?|couples?|gross|mio|bn|mn|tens|tenths?|hundredths?|thousandths?|"
    r"thirds?|quarters?|fold|st|nd|rd|th|" + _NUMBER_WORDS + r")\b",
    re.I,
)
_CAPITAL_SCALE = re.compile(r"\d\s?[MBT]\b")  # "5M" may be metres or millions
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8", "⅜": "3/8",
}  # fmt: skip


def read_number(text: str) -> Number | None:
    """Returns the one number that a short statement gives, with its unit; None where it gives none
    or several, or something made of a number ("3π", "7 if counted twice")."""
    if len(text) > MAX_NUMBER or _CAPITAL_SCALE.search(text):
        return None
    found = parse_bare(text)
    if found is not None:
        return _rescaled(found)
    text = _unwrapped(text)
    for pattern in (_LEAD, _HEDGE):
        match = pattern.match(text)
        text = text[match.end() :] if match else text
    text, sign = _HEDGE.sub("", text, count=1) if _HEDGE.match(text) else text, 1.0
    match = _SIGN.match(text)
    if match:
        text, sign = text[match.end() :], -1.0
    found = _read_value(_unwrapped(_in_digits(text)))
    return None if found is None else Number(sign * found.value, found.unit)


def _read_value(text):
    found = parse_bare(text)
    if found is not None:
        return _rescaled(found)
    match = re.match(rf"([-+]?)([{CURRENCIES}]?)(\d[\d,]*(?:\.\d+)?|\.\d+)", text)
    if match:
        scaled = _SCALED.match(text, match.end())
        number = parse_bare(match[1] + match[3])
        if not scaled or number is None:
            return None
        found = _with_unit(number.value * _scale_of(scaled[1]), text[scaled.end() :])
        if not found or not match[2]:
            return found
        return None if found.unit else Number(found.value, match[2])
    words = re.match(r"[a-z]+(?:[\s-]+[a-z]+)*", text, re.I)
    return _read_words(words[0], text[words.end() :]) if words else None


def _is_unit(unit: str) -> bool:
    """Tells whether the words behind a number leave its value as it is: a unit of measurement, or a
    word for what is counted. A single letter that is no unit is an unknown, as in "3x"."""
    if not unit or units.is_known(unit):
        return True
    is_word = len(unit) > 1 or not unit.isascii()
    return is_word and not _CHANGES.search(unit) and not _SCALED.match(unit)


def _rescaled(number: Number) -> Number | None:
    """Returns a number whose unit begins with a word of scale: "5 million" is parsed with that
    unit."""
    match = _SCALED.fullmatch(number.unit.split(" ")[0]) if number.unit else None
    if match is None:
        return number if _is_unit(number.unit) else None
    rest = number.unit.partition(" ")[2]
    return _with_unit(number.value * _scale_of(match[1]), rest)


def _scale_of(word: str) -> float:
    return _SCALES[word.casefold().removesuffix("s")]


def _with_unit(value: float, text: str) -> Number | None:
    text = text.strip(" .")
    unit = parse_bare(f"1 {text}") if text else Number(1.0, "")
    if unit is None or not _is_unit(unit.unit):
        return None
    return Number(value, unit.unit)


def _read_words(words: str, rest: str) -> Number | None:
    """Returns the value of leading number words and the unit behind them: "twenty-one chairs"."""
    tokens = re.split(r"[\s-]+", words.casefold())
    total, part, used, last = 0.0, 0.0, 0, ""
    for place, token in enumerate(tokens):
        if token in _ONES and (last in ("", "scale") or (last == "tens" and 0 < _ONES[token] < 10)):
            part, last = part + _ONES[token], "ones"
        elif token in _TENS and last in ("", "scale"):
            part, last = part + _TENS[token], "tens"
        elif token.removesuffix("s") in _SCALES and last:
            scale = _scale_of(token)
            total, part = (total, part * scale) if scale == 100 else (total + part * scale, 0.0)
            last = "scale"
        elif token == "and" and last == "scale":
            continue
        else:
            break
        used = place + 1
    if not used:
        return None
    return _with_unit(total + part, " ".join(tokens[used:]) + rest)


def _in_digits(text: str) -> str:
    """Writes vulgar fractions, `\\frac12`, products with powers of ten and spaced thousands in
    digits."""
    for sign, plain in _FRACTIONS.items():
        text = text.replace(sign, f" {plain}" if re.search(rf"\d{sign}", text) else plain)
    text = re.sub(r"\\[dt]?frac(\d)(\d)(?!\d)", r"\1/\2", text)
    text = re.sub(r"(\d)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1 \2/\3", text)
    text = re.sub(r"^\\([dt]?frac)\{-", r"-\\\1{", text)
    text = re.sub(
        r"(\d+(?:\.\d+)?)\s*(?:×|x|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?([-+]?\d+)\}?",
        r"\1e\2",
        text,
    )
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?(?=$|\D)[^\d]*", text):
        text = re.sub(r"(?<=\d) (?=\d{3})", "", text)
    return text


def _unwrapped(text: str) -> str:
    """Returns the text without the marks that enclose all of it, and without outer space and full
    stop."""
    text = text.translate(PLAIN).strip()
    for _ in range(8):
        before = text
        text = text.strip().removesuffix(".").strip()
        for opening, closing in _PAIRS:
            size = len(opening) + len(closing)
            if len(text) >= size and text.startswith(opening) and text.endswith(closing):
                text = text[len(opening) : len(text) - len(closing)].strip()
        if text == before:
            break
    return text


def read_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """Returns the letter of the option that a short statement chooses, None where it chooses none.

    Beside what `answers.parse_letter` reads: marks around the letter or all of it, an introduction,
    and the option's own words behind the letter after any mark or space.
    """
    if len(text) > MAX_LABEL:
        return None
    options = order_options(options)
    letter = parse_letter(text, options)
    if letter is not None:
        return letter
    text = _unwrapped(text)
    match = _LEAD.match(text)
    text = _unwrapped(text[match.end() :] if match else text).lstrip(":")
    letter = parse_letter(text, options)
    if letter is not None:
        return letter
    match = re.fullmatch(r"[\s*_\"'(\[{]*([A-Za-z])([^\w]+|(?=$))(.*)", text, re.S)
    if match is None:
        return None
    label, between, rest = match[1].upper(), match[2], match[3]
    if not rest.strip():
        return label if match[1].isupper() or between.strip(" ") else None
    index = ord(label) - ord("A")
    if match[1].islower() or index >= len(options):
        return None
    return (
        label if _words(rest) in (_words(options[index]), _words(_bare(options[index]))) else None
    )


def read_choice(text: str) -> frozenset[str] | str | None:
    """Tells what a choice without a single letter says: a set of letters ("A and C", "AC"), a
    number ("1"), or yes, no, true or false. None for anything else."""
    text = _unwrapped(text[:MAX_LABEL])
    match = _LEAD.match(text)
    text = _unwrapped(text[match.end() :] if match else text).strip(" ,;:!")
    if re.fullmatch(r"[A-J]{2,}", text) or re.fullmatch(
        r"\(?[A-J]\)?(?:\s*(?:,|;|&|/|and)\s*\(?[A-J]\)?)+", text
    ):
        return frozenset(char for char in text if char.isupper())
    word = text.casefold()
    if word.isdecimal() or word in ("yes", "no", "true", "false"):
        return word
    return None


def _bare(option: str) -> str:
    match = re.match(r"\s*\(?[A-Za-z][.):]\s*(.*)", option, re.S)
    return match[1] if match else option


def _words(text: str) -> list[str]:
    """Returns lower-case words without a leading article."""
    words = re.findall(r"\w+", text.casefold())
    return words[1:] if words[:1] and words[0] in ("the", "a", "an") and len(words) > 1 else words
