"""The one number that a text states, read as a person would read it.

Digits and number words count ("about 3.5", "three chairs", "4个"). Ranges, choices and texts with
two different numbers state none, unless words such as "the answer is" or "in total" single one out.
Numbers that only name something ("frame 4", "2nd") are passed over.
"""

import math
import re
import unicodedata

from videorft_jax.evaluation.scoring.text import without_refusal
from videorft_jax.rewards.answers import Number, parse_number

_UNITS_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_UNITS = {word: value for value, word in enumerate(_UNITS_TEXT.split())}
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENS_TEXT.split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_HAN = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "萬": 10_000}
_WORD = "|".join([*_UNITS, *_TENS, *_SCALES])
_WORDS = re.compile(rf"\b(?:a\s+)?(?:{_WORD})(?:(?:\s+and\s+|[\s-]+)(?:{_WORD}))*\b", re.I)
_DIGITS = re.compile(
    r"(?<![A-Za-z0-9_.,])[-+]?[$€£¥₹]?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|"
    r"(?<=\d)\.(?!\d))?"
    r"(?:[eE][-+]?\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?"
)
_NAMED_VALUES = {"half": 0.5, "dozen": 12.0, "single": 1.0, "pair": 2.0, "couple": 2.0, "once": 1.0,
                 "twice": 2.0, "thrice": 3.0}  # fmt: skip
_NAMED = re.compile(r"\b(?:a\s+|the\s+)?(half|dozen|single|pair|couple|once|twice|thrice)\b", re.I)
_POWER = re.compile(r"(\d+(?:\.\d+)?)\s*(?:x|\*|×|\\times)\s*10\s*(?:\^|\*\*)\s*\{?([-+]?\d+)\}?")
_BARE_POWER = re.compile(r"(?<![\w.])10\s*(?:\^|\*\*)\s*\{?([-+]?\d{1,3})\}?(?![\w.])")
_MARGIN = re.compile(r"\s*(?:±|\+/-|\+-|\\pm)\s*\d+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"(?<![\w.,])(\d+),(\d{1,2})(?![\d,]|\.\d)")
_SPACED = re.compile(r"(?<![\w.,'])\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?![\w.,]| \d)")
# "3 objects: a cup, 2 plates" counts before it lists.
_LISTED = re.compile(r"\W*(?:there (?:are|is)\s+)?\w+(?: [a-z]+){1,3}\s*(?=:)", re.I)
# What is shown, and parts of what was counted, where other numbers are said too.
_ASIDE = re.compile(
    r"^\s?(?:frames?|images?|pictures?|screenshots?|clips?|videos?|options?|steps?"
    r"|of (?:them|which|these|those))\b",
    re.I,
)
_NOTHING = re.compile(
    r"\W*(?:there (?:is|are|was|were)\s+)?(?:none|no(?! (?:idea|answer|clue|doubt|way|number|info"
    r"|one|video))\s+[a-z]+)(?: (?:at all|in|on|of|visible|there)\b[\w\s]{0,40})?\W*",
    re.I,
)
# Words before a number that deny it or only bound it.
_DENIED = re.compile(
    r"\b(?:not|n't|rather than|instead of|(?:more|less|fewer|greater|higher|lower|larger|smaller)"
    r" than|at least|at most|no more than|up to)\s+(?:about\s+|exactly\s+)?$",
    re.I,
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_NAMES = re.compile(
    r"\b(?:frames?|images?|pictures?|steps?|questions?|options?|figures?|fig|videos?|scenes?|"
    r"shots?|"
    r"rooms?|clips?|parts?|level|floor|item|page|line|no\.|#)\s*#?\s*$",
    re.I,
)
_RANGE = re.compile(
    r"^\s*(?:-|~|to|or|and|through|\.\.+|至|到|或|/)\s*(?:about\s+|around\s+)?$", re.I
)
WINDOW = 120  # characters before and after a number that can say what it is
_ABOUT = r"(?:about|around|approximately|roughly|exactly|probably|~|\s)*$"
# Words that make the number behind them the answer, strongest first.
_CUES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"(?:answer|result)[^.;\d]{{0,40}}?(?:is|are|was|be|of|=|:|是|为|は)\s*{_ABOUT}|=\s*$",
        r"(?:so|therefore|thus|hence|total(?:ing)?|sum|altogether|"
        r"overall)[,:]?\s*(?:(?:there (?:are|"
        rf"is)|it is|it's|i (?:count|see|get|say)|of|is|about|a total of)\s*)*{_ABOUT}",
        r"(?:count|counted|number|distance|size|length|height|width|area|estimate|value)[^.;\d]{0,40}?"
        rf"(?:is|are|was|be|of|=|:|\s)\s*{_ABOUT}",
    )
)
_AFTER_CUE = re.compile(r"^\s*(?:\w+\s+){0,3}?(?:in total|altogether|overall|in all)\b", re.I)
_POINTER = re.compile(r"^\s*(?:of|another|more|side|by one|at a time)\b", re.I)


def parse_plain_number(text: str) -> float | None:
    """The value of a text that is a number and nothing else."""
    try:
        value = float(text.strip().rstrip(".").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_number(text: str) -> Number | None:
    """The number that a text states and its unit, None where it states none or several.

    The unit is read only where it stands right behind the number; its value is not converted.
    """
    if re.fullmatch(r"\s*\d+(?:st|nd|rd|th)\W*", text, re.I):
        return None
    whole = parse_number(text)
    if whole is not None and whole.unit not in (*_SCALES, "k"):
        return whole
    if re.search(r"\d[eE]\+?\d{3}|\binf(inity)?\b|\bnan\b", text, re.I):
        return None
    if _NOTHING.fullmatch(text):
        return Number(0.0, "")
    text = without_refusal(_spell(text)) or ""
    head = _LISTED.match(text)
    if head and re.match(r"\W*(?:there (?:are|is)\s+)?\d", text, re.I):
        text = head[0]
    bare = re.sub(r"\([^()]*\)", " ", text)  # "4 chairs (2 left, 2 right)", "3.5 m (11 ft)"
    for version in (bare, text):
        found = _mentions(version)
        if found:
            return _choose(version, found)
    return None


def _spell(text: str) -> str:
    """Powers of ten, vulgar fractions, fractions of LaTeX, decimal commas and signs that are words
    in digits; margins of error are left out."""
    text = re.sub(r"10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", lambda m: "10^" + m[1].translate(_SUPERSCRIPTS), text)
    text = _POWER.sub(lambda m: f"{m[1]}e{int(m[2])}", text)
    text = _BARE_POWER.sub(lambda m: f"1e{int(m[1])}", text)
    text = _MARGIN.sub("", text)
    text = _SPACED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _DECIMAL_COMMA.sub(r"\1.\2", text)
    text = re.sub(r"\b(?:minus|negative)\s+(?=\d)", "-", text, flags=re.I)
    text = re.sub(r"(?<=\d)\s+and\s+(?:a|one)\s+half\b", ".5", text, flags=re.I)
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    for char in set(text):
        if unicodedata.category(char) == "No" and 0 < unicodedata.numeric(char, 0) < 1:
            text = re.sub(rf"(\d*)\s*{char}", lambda m, c=char: _add_fraction(m[1], c), text)
    return text.replace("$", " ") if text.count("$") > 1 else text


def _add_fraction(whole: str, char: str) -> str:
    return f"{float(whole or 0) + unicodedata.numeric(char):g}"


def _mentions(text: str) -> list[tuple[Number, int, int]]:
    """(number, start, end) of each number that counts or measures something."""
    found = []
    for match in _DIGITS.finditer(text):
        if not any(char.isdigit() for char in match[0]):
            continue
        number = _digits(text, match)
        if number is not None:
            found.append((number, match.start(), match.end()))
    for match in _WORDS.finditer(text):
        # "2 million" is one number.
        is_scale = re.search(r"\d\s*$", text[max(0, match.start() - 9) : match.start()])
        if is_scale or _is_pronoun(text, match, bool(found)):
            continue
        value = _word_value(match[0])
        if value is not None:
            end, number = match.end(), float(value)
            if half := re.match(r"\s+and\s+a\s+half\b", text[end:], re.I):
                number, end = number + 0.5, end + half.end()
            if re.search(r"\b(?:minus|negative)\s+$", text[: match.start()], re.I):
                number = -number
            found.append((Number(number, ""), match.start(), end))
    if not found:
        found = _han(text) or _named(text)
    found = [item for item in found if not _DENIED.search(text[max(0, item[1] - 30) : item[1]])]
    return sorted(found, key=lambda item: item[1])


def _digits(text, match):
    """The number of one run of digits with its unit, or None where it names something."""
    after, before = text[match.end() :], text[: match.start()]
    if _NAMES.search(before) or re.match(r"(?:st|nd|rd|th)\b|_\d|\.\d|x[\da-f]", after):
        return None
    number = parse_number(match[0].strip())
    if number is None:
        return None
    scale = re.match(r"\s*(hundred|thousand|million|billion|k\b|万|亿)", after, re.I)
    if scale:
        factors = _SCALES | {"k": 1000, "万": 10**4, "亿": 10**8}
        return Number(number.value * factors[scale[1].casefold()], number.unit)
    unit = re.match(r"\s?(%|[^\W\d_]{1,12}(?:\^?[23²³])?)", after)
    if number.unit or unit is None:
        return number
    return parse_number(f"{match[0].strip()} {unit[1]}") or number


def _is_pronoun(text, match, has_digits):
    """Whether "one" stands for a thing ("one of the chairs", "the red one"), not for a number."""
    if match[0].casefold().strip() not in ("one", "a one"):
        return False
    before = text[: match.start()]
    is_named = re.search(
        r"\b(?:the|this|that|which|another|each|every|no|any|\w+er|\w+est)\s+$", before
    )
    return bool(_POINTER.match(text[match.end() :]) or is_named or has_digits)


def _word_value(text: str) -> int | None:
    """The value of number words: "twenty-one", "one hundred and five"; None where they are several
    numbers in a row, such as "one two three"."""
    total, part, last = 0, 0, None
    for word in re.split(r"[\s-]+", text.casefold()):
        if word in ("and", "a"):
            continue
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                part = max(part, 1) * 100
            else:
                total, part = total + max(part, 1) * scale, 0
            last = None
            continue
        value = _UNITS.get(word, _TENS.get(word))
        if last is not None and not (last in _TENS.values() and value < 10):
            return None
        part, last = part + value, value
    return total + part


def _han(text):
    """Chinese and Japanese numerals of a short text."""
    found = []
    for match in (
        re.finditer("[零一二三四五六七八九〇两兩十百千万萬]+", text) if len(text) < 24 else ()
    ):
        total, part = 0, 0
        for char in match[0]:
            if char in _HAN:
                part = part * 10 + _HAN[char] if part else _HAN[char]
            else:
                total, part = total + max(part, 1) * _HAN_SCALES[char], 0
        found.append((Number(float(total + part), ""), match.start(), match.end()))
    return found


def _named(text):
    """The number of a word such as "half", "a pair" or "twice"."""
    match = _NAMED.search(text)
    if not match or re.search(r"half (?:of|the)|(?:in|first|second) half", text, re.I):
        return []
    value = _NAMED_VALUES[match[1].casefold()]
    return [(Number(value, ""), match.start(), match.end())]


def _choose(text, found):
    """The one number among those mentioned."""
    found = [item for item in found if not _ASIDE.match(text[item[2] :])] or found
    joined = _joined(text, found)
    if joined:
        single = [item for item in found if item not in joined]
        cued = [
            m for m in single
            if any(cue.search(_before(text, m)) for cue in _CUES[:2])
            or _AFTER_CUE.match(text[m[2] : m[2] + WINDOW])
        ]  # fmt: skip
        return cued[-1][0] if len({m[0].value for m in cued}) == 1 else None
    values = {number.value for number, *_ in found}
    if len(values) == 1:
        return found[0][0]
    for strength, cue in enumerate(_CUES):
        cued = [m for m in found if cue.search(_before(text, m))]
        if strength == 1:
            cued += [m for m in found if _AFTER_CUE.match(text[m[2] : m[2] + WINDOW])]
        if cued:
            return cued[-1][0] if strength or len({m[0].value for m in cued}) == 1 else None
    return None


def _before(text, mention):
    return text[max(0, mention[1] - WINDOW) : mention[1]]


def _joined(text, found):
    """The mentions that are ends of a range or members of a list: "2-4", "3 to 5", "7 or 8"."""
    joined = []
    for first, second in zip(found, found[1:], strict=False):
        between = text[first[2] : second[1]]
        between = re.sub(r"^\s?(?:[^\W\d_]{1,12}|%)(?=\s)", "", between)
        is_range = _RANGE.match(between) and not re.search(r"=\s*$", text[: first[1]])
        is_dashed = second[0].value <= 0 and not between.strip() and text[second[1]] == "-"
        joined += [first, second] if is_range or is_dashed else []
    return joined
