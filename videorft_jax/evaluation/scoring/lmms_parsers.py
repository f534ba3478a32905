"""How lmms-eval 0.7.3 reads an answer, faults included.

None of this is how we would read a text; it is here so that a number of lmms-eval's can be
reproduced without it. Each function is named for the task whose answers it reads.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from videorft_jax.evaluation.scoring.harness_parsers import as_number

# Words behind which a letter counts, and how much each form counts.
_PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is",
    "the best answer is", "best answer is", "the correct option is", "correct option is",
    "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick",
    "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_START, _END, _PHRASE = 10, 9, 7

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MAX_STOPS = 32  # It hands a flag to `re.sub` where the count belongs.
_NUMBER_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
_TENS_TEXT = "thirty forty fifty sixty seventy eighty ninety hundred"
_NUMBERS = (
    {word: value for value, word in enumerate(_NUMBER_TEXT.split())}
    | {word: 10 * value for value, word in enumerate(_TENS_TEXT.split(), 3)}
    | {"thousand": 1000}
)
_RAISED = str.maketrans({sign: f"^{value}" for value, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
_REASONING = (("<think>", "</think>"), ("<analysis>", "</analysis>"))

_PREFIXES_V2 = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option is", "The correct option is", "Final Answer:", "Best answer:",
    "Best option:", "Answer:", "Option:",
)  # fmt: skip
_LINE_V2 = r"[ \t]*(?:\*\*[ \t]*)?([A-H])(?:[ \t]*\*\*)?[ \t]*"
_LAST_V2 = re.compile(rf"(?:^|\n){_LINE_V2}[.)]?[ \t]*$", re.I)
_FIRST_V2 = re.compile(rf"^{_LINE_V2}(?:[.)]|\r?\n|$)", re.I)
_SAID_V2 = re.compile(
    rf"(?:{'|'.join(map(re.escape, _PREFIXES_V2))}"
    r"|\b(?:answer|option)(?:\s+(?:is|would\s+be)|\s*:))[\s:*]*([A-H])\b",
    re.I,
)
_BOLD_V2 = re.compile(r"\*\*\s*([A-H])(?=\s*\*\*|[.)])", re.I)


def without_reasoning(text: str) -> str:
    """Takes closed blocks of reasoning off, and what stands before a closing tag alone, as it does
    before any task sees an answer. Answer tags and a block that was never closed stay."""
    for opening, closing in _REASONING:
        while (start := text.find(opening)) >= 0:
            end = text.find(closing, start)
            if end < 0:
                break
            text = text[:start] + text[end + len(closing) :]
        if opening not in text:
            text = text.rpartition(closing)[2]
    return text.strip()


def general_letter(text: str, letters: Sequence[str]) -> str:
    """Reads most tasks: each letter is looked for in nine forms; the form of the highest rank
    counts, and of several letters in one form the last, wherever it stands in a word."""
    if not text.strip():
        return ""
    text = text.strip()
    for char in ",.!?;:'\"":
        text = text.strip(char)
    bare, text = text.strip(), f" {text} "
    found = [
        (rank, text.rfind(form.format(letter)), letter)
        for form, rank in _FORMS
        for letter in letters
        if form.format(letter) in text
    ]
    lower = text.lower()
    for phrase in _PHRASES:
        place = lower.find(phrase)
        for letter in letters if place >= 0 else ():
            if (behind := text.find(letter, place + len(phrase))) >= 0:
                found.append((_PHRASE, behind, letter))
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((_START, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((_END, len(text) - 1, letter))
    found = found or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    # Of forms that are equal in rank and place the one that was found first counts.
    return max(found, key=lambda item: item[:2])[2] if found else ""


def mvbench_letter(text: str) -> str:
    """Reads MVBench: "X. words" is X, else the first single letter a to e behind the removal of
    punctuation, so that the article "a" is A."""
    text = text.strip()
    labelled = re.match(r"([A-E])\.\s*(.+)$", text, re.I)
    if labelled:
        return labelled[1].upper()
    text = text.replace("\n", " ").replace("\t", " ")
    has_group = re.search(r"\d,\d", text)  # A number with a comma glues words together.
    bare = text
    for mark in _PUNCTUATION:
        is_at_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if is_at_space or has_group else " ")
    bare = re.sub(r"\.(?!\d)", "", bare, count=_MAX_STOPS)
    match = re.search(r"\b([A-E])\b", bare, re.I)
    return match[1].upper() if match else ""


def mmmu_letter(text: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """Reads the letter as the script that Video-MMMU was published with, once a part of lmms-eval:
    with a full stop or a colon, else in brackets, else before a space, else by the option's words
    in a long text; of several the last in one of these forms. "" where it finds none."""
    return _mmmu_letter(text, letters, options, (("{}.", "{}:"), ("({})",), ("{} ",)))


def video_holmes_letter(text: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """Reads Video-Holmes as MMMU is read: brackets come first. It guesses at random where nothing
    is found; here that is no answer."""
    return _mmmu_letter(text, letters, options, (("({})",), ("{} ",), ("{}.",)))


def _mmmu_letter(text, letters, options, ranks):
    if not text:
        return ""
    for char in ",.!?;:'":
        text = text.strip(char)
    text = f" {text} "
    for forms in ranks:
        found = [x for form in forms for x in letters if form.format(x) in text]
        if found:
            # Letters before a space, or a full stop of Video-Holmes, are told apart by " X ".
            used = next(form for form in forms if any(form.format(x) in text for x in letters))
            is_loose = used == "{} " or (used == "{}." and len(forms) == 1)
            return _last(found, text, " {} " if is_loose else used)
    if len(text.split()) > 5:
        lower = text.lower()
        own = {x: option.lower() for x, option in zip(letters, options, strict=False)}
        return _last([x for x in own if own[x] in lower], lower, "{}", own)
    return ""


def _last(found, text, form, words: Mapping[str, str] | None = None):
    """The letter that stands last in one form, the first of those that stand nowhere; "" of none.
    words: what stands for a letter."""
    return max(found, key=lambda x: text.rfind(form.format(words[x] if words else x)), default="")


def number(text: str) -> float | None:
    """Reads VSI-Bench: the first digits or English number words anywhere in the text."""
    text = text.strip().lower()
    digits = re.search(r"-?\d+(?:\.\d+)?", text)
    words = list(re.finditer("[a-z]+", text))
    start = next((i for i, word in enumerate(words) if word[0] in _NUMBERS), None)
    if digits and (start is None or digits.start() < words[start].start()):
        return float(digits[0])
    if start is None:
        return None
    total = part = 0
    for word in words[start:]:
        if word[0] == "and":
            continue
        if word[0] not in _NUMBERS:
            break
        value = _NUMBERS[word[0]]
        if value == 100:
            part = max(part, 1) * 100
        elif value == 1000:
            total, part = total + max(part, 1) * 1000, 0
        else:
            part += value
    return float(total + part)


def videomme_v2_letter(text: str, options: Sequence[str]) -> str:
    """Reads Video-MME-v2: a letter alone on the last line, then on the first, then behind set
    phrases, then in bold; else the one option whose words stand in the text."""
    text = text.strip()
    for match in (_LAST_V2.search(text), _FIRST_V2.match(text)):
        if match:
            return match[1].upper()
    if said := _SAID_V2.findall(text):
        return said[-1].upper()
    if len(bold := {letter.upper() for letter in _BOLD_V2.findall(text)}) == 1:
        return bold.pop()
    own = zip(string.ascii_uppercase, options, strict=False)
    found = [letter for letter, option in own if option.strip(". \n").lower() in text.lower()]
    return found[0] if len(found) == 1 else ""


def mmvu_choice(text: str, gold: str, option: str | None) -> bool:
    """Tells whether MMVU counts a choice as right: where the gold letter stands as a word anywhere
    in any case, or the gold option's text does, or the letter does inside any word and one of the
    option's words with more than two characters. option: None where it is unknown."""
    text = text.strip()
    if re.search(rf"\b{re.escape(gold)}\b", text, re.I):
        return True
    if option is None:
        return False
    option, lower = option.strip().lower(), text.lower()
    words = [word.strip(string.punctuation) for word in option.split()]
    has_letter = gold.upper() in text.upper()
    return option in lower or has_letter and any(x in lower for x in words if len(x) > 2)


def mmvu_open(text: str, gold: str) -> bool:
    """Tells whether the rules of MMVU count an open answer as right, before a judge is asked: where
    one text stands in the other, so that an empty one is right; where their first numbers agree;
    and where all longer words of a short truth are there."""
    said, truth = (" ".join(x.strip().lower().translate(_RAISED).split()) for x in (text, gold))
    if truth in said or said in truth:
        return True
    firsts = [re.search(r"\d+\.?\d*", x) for x in (said, truth)]
    if all(firsts) and abs(float(firsts[0][0]) - float(firsts[1][0])) < 0.01:
        return True
    words, wanted = (
        [word for x in own.split() if (word := x.strip(string.punctuation))]
        for own in (said, truth)
    )
    if 2 <= len(wanted) <= 5 and all(word in words for word in wanted if len(word) > 2):
        return True
    orders = [re.search(r"o\s*\([^)]+\)", x) for x in (said, truth)]
    return all(orders) and orders[0][0] == orders[1][0]


_CUES = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ",
    "in total ", "total ", "identify ", "recognize ", "calculated as ", "counted as ",
    "measured as ", "observed as ", "concluded as ", "found to be ", "equals ",
    "determined to be ", "number of ", "value is ", "adds up to ", "have ", "has ",
)  # fmt: skip
_NUMBER_FORMS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def mmmu_open(text: str, gold: str) -> bool:
    """Tells whether Video-MMMU counts an open answer as right: of each line what follows the last
    cue, or the whole text, holds the truth; or it or a number in it equals the truth to two places.
    An answer that is nothing is wrong here, and is left out there."""
    if text in ("", "API Error"):
        return False
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    parts = []
    for place, line in enumerate(lines):
        cues = (*_CUES, "=") if place == len(lines) - 1 else _CUES
        tails = [line.split(cue)[-1].strip() for cue in cues if cue in line]
        # Whatever comes behind an empty tail takes its place, and is not the shortest then.
        part = ""
        for tail in tails:
            part = tail if not part or len(tail) < len(part) else part
        parts += [part] if part and part not in ":,.!?;'" else []
    parts = parts or [text]
    numbers = [n for part in parts for form in _NUMBER_FORMS for n in re.findall(form, part)]
    said = [value for part in (*parts, *numbers) for value in _normal(part)]
    truths = _normal(gold)
    texts = [truth for truth in truths if isinstance(truth, str)]
    return any(
        any(truth in value for truth in texts) if isinstance(value, str) else value in truths
        for value in said
    )


def _normal(text: str) -> list[str] | list[float]:
    """A number to two places, else the text in lower case; one character has a space beside it."""
    text = text.strip()
    value = as_number(text)
    if value is not None:
        return [round(value, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


_TIME_WORDS = ("start", "end", "happen")  # and all forms of these
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?"
_DECIMAL = r"\d+(?:\.\d+)?"


def charades_span(text: str) -> tuple[float, float] | None:
    """Reads Charades-STA: the first range of clock times, then of numbers, in the sentences that
    speak of a start or an end; else the first two times that stand alone, or the first numbers of
    two sentences. The ends may come in either order."""
    text = text.lower().replace("a specific example is : 20.8 - 30.0 seconds", "")
    sentences = re.split(r"[!?\n]", text.replace("to", "-"))
    own = [sentence for sentence in sentences if any(word in sentence for word in _TIME_WORDS)]
    own = own or sentences
    ranges: tuple[tuple[str, Callable[[str], float]], ...] = (
        (rf"\b({_CLOCK})\s*[–-]\s*({_CLOCK})\b", _seconds),
        (rf"(?<!\d)({_DECIMAL})\s*[–-]\s*({_DECIMAL})", float),
    )
    for pattern, read in ranges:
        found = next((match for x in own if (match := re.search(pattern, x))), None)
        if found:
            return _ordered(read(found[1]), read(found[2]))
    times = [_seconds(time) for x in own for time in re.findall(rf"\b({_CLOCK})\b", x)]
    if len(times) < 2:
        firsts = (re.search(rf"\b({_DECIMAL})\b", x) for x in own)
        times = [float(first[1]) for first in firsts if first]
    if len(times) > 1:
        return _ordered(times[0], times[1])
    spelled = rf"(?<!\d)({_DECIMAL})\s*s?\s*[–-]\s*({_DECIMAL})\s*s?"
    found = next((match for x in own if (match := re.search(spelled, x))), None)
    return _ordered(float(found[1]), float(found[2])) if found else None


def _ordered(first: float, second: float) -> tuple[float, float]:
    return min(first, second), max(first, second)


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total
