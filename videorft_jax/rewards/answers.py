"""Answers out of model text: tag extraction and the parsing of letters, numbers and words.

The text is hostile: a degenerate rollout is megabytes of one tag or of newlines. So nothing here
is a regular expression and nothing is evaluated; every function passes over its text a constant
number of times, takes any string (lone surrogates, NULs, foreign digits) and returns None where it
cannot read an answer without guessing.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_LABEL = 4096  # characters; a longer multiple-choice answer names no option
MAX_NUMBER = 256  # characters; a longer numerical answer is prose
MAX_UNIT = 32
DIGITS = "0123456789"
CURRENCIES = "$€£¥₹"
PERCENT = ("%", "percent", "per cent")
HEDGES = frozenset(("and", "but", "maybe", "not", "or", "plus", "to"))
# Full-width ASCII to ASCII, typographic minus, hyphens and spaces to the plain ones, signs without
# width to nothing. NFKC would do this too, but it also turns the superscript of "5²" into a digit.
PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x2212: "-", 0x2010: "-", 0x2011: "-", 0x2013: "-", 0x00A0: " ", 0x2009: " ", 0x202F: " ",
    0x3000: " ", 0x2103: "°C", 0x2109: "°F", 0x200B: None, 0x2060: None, 0xFEFF: None
}  # fmt: skip
# Scripts written without spaces: there each character is a word.
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF),
            (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # fmt: skip


def first_block(text: str, tag: str) -> str | None:
    """Returns the stripped text of the first `<tag>...</tag>`, None without one. Case-sensitive.

    Equal to the original's lazy regular expression, whose whitespace is cubic to match.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end].strip() if end >= 0 else None


def iter_blocks(text: str, tag: str, start: int = 0) -> Iterator[str]:
    """Returns the stripped innermost `<tag>...</tag>` blocks from `start` on, in order."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    while (end := text.find(closing, start)) >= 0:
        begin = text.rfind(opening, start, end)
        if begin >= 0:
            yield text[begin + len(opening) : end].strip()
        start = end + len(closing)


def extract_answer(text: str) -> str | None:
    """Returns the answer of a completion: what follows the last `</think>` in answer tags.

    Blocks inside the reasoning are drafts and do not count (defect 10 of the original: there the
    first block won). None when there is no block, or when several blocks disagree: naming two
    answers is naming none.
    """
    closing = "</think>"
    end = text.rfind(closing)
    blocks = iter_blocks(text, "answer", end + len(closing) if end >= 0 else 0)
    answer = next(blocks, None)
    return answer if all(block == answer for block in blocks) else None


def check_tags(tokenizer) -> None:
    """Raises ValueError where the tokenizer loses a tag that the rewards read.

    Texts are decoded without special tokens, so a tag that is one never reaches a reward: every
    completion would look as if it had no answer.
    """
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        ids = tokenizer.encode(f"{tag}a", add_special_tokens=False)
        if tag not in tokenizer.decode(ids, skip_special_tokens=True):
            raise ValueError(
                f"tokenizer: {tag} is a special token and is lost where texts are decoded; set "
                '"special": false for it in tokenizer.json and tokenizer_config.json'
            )


def is_think_then_answer(text: str) -> bool:
    """Tells whether all of `text` is a think block, optional whitespace and an answer block.

    Accepts exactly what the original's regular expression accepts: empty, repeated and nested
    blocks pass, one stray newline at either end does not (reference cases of its format reward).
    """
    opening, closing = "<answer>", "</think>"
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return False
    start, last = len("<think>"), len(text) - len("</answer>")
    while (begin := text.find(opening, start, last)) >= 0:
        end = text.rfind(closing, start, begin)
        if end >= 0 and not text[end + len(closing) : begin].strip():
            return True
        start = begin + len(opening)
    return False


def is_one_think_one_answer(text: str) -> bool:
    """Tells whether stripped `text` is one think block and one answer block, both with text in
    them.

    Fixes defect 11 of the original: surrounding whitespace is allowed, each tag occurs once.
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return False
    return is_think_then_answer(text) and all(first_block(text, t) for t in ("think", "answer"))


def parse_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """Returns the option letter, upper case, of "A", "a", "A.", "(A)", "A) cat" or "A. cat".

    Words after the letter must be the option's own text when `options` (with or without labels)
    are known, and must hold no other lone letter when they are not. "A or B", "A, B", "a cat" and
    "A. dog" where A is the cat are None.
    """
    if len(text) > MAX_LABEL:
        return None
    text = text.translate(PLAIN).strip(" \t\r\n*`")
    bracketed = text.startswith("(")
    first, rest = text[bracketed : bracketed + 1], text[bracketed + 1 :]
    if not (first.isascii() and first.isalpha()):
        return None
    letter = first.upper()
    if bracketed:
        if not rest.startswith(")"):
            return None
        rest = rest[1:].removeprefix(".").removeprefix(":")
    elif rest:
        if rest[0] not in ".):":
            return None
        rest = rest[1:]
    words = " ".join(rest.casefold().split()).rstrip(".")
    index = ord(letter) - ord("A")
    if words and options:
        own = options[index] if index < len(options) else ""
        return letter if words in _option_texts(own, letter) else None
    if any(len(word.strip("().,:;*")) == 1 for word in words.split()):
        return None
    return letter


def _option_texts(option: str, letter: str) -> tuple[str, str]:
    """Returns an option as written, and without its label, in the form that `parse_letter`
    compares."""
    text = " ".join(option.translate(PLAIN).casefold().split()).rstrip(".")
    bare = text.removeprefix("(")
    if bare[:1] == letter.lower() and bare[1:2] and bare[1:2] in ".):":
        bare = bare[2:].strip()
    return text, bare


class Number(NamedTuple):
    """Holds a finite value and the unit written with it: "" for none, "%" for per cent, "cm"."""

    value: float
    unit: str


def parse_number(text: str) -> Number | None:
    """Returns a number as people and models write one; fixes defect 7 of the original.

    Reads signs, decimals, exponents, commas between groups of three, fractions ("3/4", "1 1/2",
    `\\frac{3}{4}`), per cent, currencies, a unit, LaTeX wrappers and full-width digits. None for
    everything else: "nan", "inf", "1e999", "1_000", "3,14", "5 or 6", digits of other scripts.
    """
    if len(text) > MAX_NUMBER:
        return None
    text = _without_latex(text.translate(PLAIN).strip())
    text = text.removesuffix(".").strip()
    sign, unit, pos = "", "", 0
    for char in text[:2]:  # "-$5" and "$-5"
        if char in "+-" and not sign:
            sign, pos = char, pos + 1
        elif char in CURRENCIES and not unit:
            unit, pos = char, pos + 1
        else:
            break
    while text[pos : pos + 1] == " ":
        pos += 1
    value, pos = _scan_value(text, pos)
    written = _parse_unit(text[pos:])
    if value is None or written is None or (unit and written) or not math.isfinite(value):
        return None
    return Number(-value if sign == "-" else value, unit or written)


def plain_notation(text: str) -> str:
    """Returns a notation that is no number without spaces, and a time without zeros in front of it:
    of "02:30" "2:30"."""
    text = "".join(text.translate(PLAIN).split())
    return text.lstrip("0") if ":" in text and text.replace(":", "").isdecimal() else text


def _without_latex(text: str) -> str:
    for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\boxed{", "}")):
        if len(text) > len(opening) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    for latex, plain in (("\\%", "%"), ("\\$", "$"), ("{,}", ","), ("\\,", " "), ("\\ ", " "),
                         ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("^\\circ", "°"),
                         ("^{\\circ}", "°"), ("^{2}", "^2"), ("^{3}", "^3"), ("~\\", " \\"),
                         ("{~", "{"), ("\\mathrm{", "\\text{")):  # fmt: skip
        text = text.replace(latex, plain)
    head, found, tail = text.partition("\\text{")
    return f"{head} {tail.replace('}', '', 1)}" if found else text


def _scan(text: str, pos: int, allowed: str) -> int:
    while pos < len(text) and text[pos] in allowed:
        pos += 1
    return pos


def _scan_decimal(text: str, pos: int) -> tuple[float | None, int]:
    """Reads an unsigned decimal with thousands separators and exponent: (value or None, end)."""
    end = _scan(text, pos, DIGITS + ",.")
    whole, _, decimals = text[pos:end].partition(".")
    first, *groups = whole.split(",")
    if not (whole or decimals) or "," in decimals or "." in decimals:
        return None, pos
    if groups and (not 1 <= len(first) <= 3 or any(len(group) != 3 for group in groups)):
        return None, pos
    digits = f"{first}{''.join(groups)}.{decimals}0"
    if text[end : end + 1] in ("e", "E"):
        start = end + 1 + (text[end + 1 : end + 2] in ("+", "-"))
        stop = _scan(text, start, DIGITS)
        if stop > start:
            return float(f"0{digits}e{text[end + 1 : stop]}"), stop
    return float(f"0{digits}"), end


def _scan_value(text: str, pos: int) -> tuple[float | None, int]:
    """Reads a decimal, a fraction or a mixed number: (value or None, end)."""
    if text.startswith("\\frac{", pos):
        above, pos = _scan_decimal(text, pos + len("\\frac{"))
        if above is None or not text.startswith("}{", pos):
            return None, pos
        below, pos = _scan_decimal(text, pos + 2)
        if not below or text[pos : pos + 1] != "}":
            return None, pos
        return above / below, pos + 1
    value, pos = _scan_decimal(text, pos)
    if value is None:
        return None, pos
    slash = pos + (text[pos : pos + 1] == " ")
    if text[slash : slash + 1] == "/":
        below, end = _scan_decimal(text, slash + 1 + (text[slash + 1 : slash + 2] == " "))
        return (value / below if below else None), end
    if slash > pos and text[slash : slash + 1] and text[slash] in DIGITS:
        above, end = _scan_decimal(text, slash)
        if above is not None and text[end : end + 1] == "/":
            below, end = _scan_decimal(text, end + 1)
            return (value + above / below if below else None), end
    return value, pos


def _parse_unit(text: str) -> str | None:
    """Reads the normalised unit after a number, "" for none, None for anything that is no unit."""
    unit = " ".join(text.casefold().split()).rstrip(".")
    unit = unit.replace("²", "^2").replace("³", "^3")
    if not unit:
        return ""
    if unit in PERCENT:
        return PERCENT[0]
    if unit in CURRENCIES:  # "5 €"
        return unit
    words = unit.split()
    if len(unit) > MAX_UNIT or len(words) > 3 or HEDGES.intersection(words):
        return None
    if not (unit[0].isalpha() or unit[0] in "°µ'\""):
        return None
    for before, char in zip(" " + unit, unit, strict=False):
        if (char.isdecimal() and before != "^") or char in ",;:=<>?!":
            return None
    return unit[:-1] if unit.endswith("s") and unit[-3:-1].isalpha() else unit  # a plural


def split_words(text: str) -> list[str]:
    """Returns lower-case words of any script; fixes defect 12 of the original, which saw a-z and
    0-9 only.

    A word is a run of letters, marks and digits; in scripts without spaces, one character.
    """
    words, start = [], -1
    text = unicodedata.normalize("NFKC", text).lower()
    for i, char in enumerate(text):
        code = ord(char)
        unspaced = code >= 0x0E00 and any(low <= code <= high for low, high in UNSPACED)
        inside = not unspaced and (
            char.isalnum() or (code > 127 and unicodedata.category(char)[0] == "M")
        )
        if start >= 0 and not inside:
            words.append(text[start:i])
            start = -1
        elif start < 0 and inside:
            start = i
        if unspaced and unicodedata.category(char)[0] in "LN":
            words.append(char)
    return [*words, text[start:]] if start >= 0 else words


def split_read_words(text: str) -> list[str]:
    """Words of a text that was read off a picture: full-width letters as plain ones, no punctuation
    around a word, one character a word in scripts without spaces. Case stays."""
    words = []
    for part in unicodedata.normalize("NFKC", text).split():
        bare = part.strip(".,;:!?\"'()[]{}…。，、！？「」“”‘’")
        words += _split_unspaced(bare or part)
    return words


def _split_unspaced(word: str) -> list[str]:
    found, run = [], ""
    for char in word:
        if any(low <= ord(char) <= high for low, high in UNSPACED):
            found += [run, char] if run else [char]
            run = ""
        else:
            run += char
    return [*found, run] if run else found
