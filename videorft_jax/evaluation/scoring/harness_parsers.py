"""How benchmarks' own scripts and lmms-eval read an answer, faults included.

Each function does what `docs/how_to/benchmark.md` says of the tool it is named for. None of them is
how we would read a text; they are here so that a published number can be reproduced.
"""

import math
import re
from collections.abc import Sequence

_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",  # a comma is missing in the original list
    "Best answer:Best option:",
)
_PREFIXES_V2 = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Final Answer:",
    "Best answer:",
    "Best option:",
    "Answer:",
    "Option:",
)
_PREFIXES_SCIENCE = (
    "The answer is",
    "The correct answer is",
    "The best answer is",
    "Answer:",
    "Option:",
    "### Final Answer:\n$$\\boxed",
    "the final answer is",
)
_WORDS_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
_WORDS = {word: value for value, word in enumerate(_WORDS_TEXT.split())}


def first_capital(text: str, letters: Sequence[str], prefixes: Sequence[str] = _PREFIXES) -> str:
    """Video-MME, LongVideoBench and VideoMathQA remove set phrases, and then read the first capital
    that is an option's letter."""
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    return next((char for char in text if char in letters), "")


def videomme_v2_letter(text: str, letters: Sequence[str]) -> str:
    """Video-MME-v2 reads as Video-MME does, and removes more phrases."""
    return first_capital(text, letters, _PREFIXES_V2)


def scivideobench_letter(text: str, letters: Sequence[str]) -> str:
    """SciVideoBench reads as Video-MME does, and removes other phrases. The original guesses at
    random where nothing is found; here that is no answer."""
    return first_capital(text, letters, _PREFIXES_SCIENCE)


def video_holmes_letter(text: str, letters: Sequence[str]) -> str:
    """Video-Holmes takes the last answer block, or the whole text, and there the first option in
    the order of the alphabet whose letter stands before a space or a colon or behind a bracket,
    else anywhere."""
    blocks = re.findall(r"<answer>\s*(.*?)\s*</answer>", text, re.S)
    said = blocks[-1].strip() if blocks else text
    marked = (x for x in letters if any(mark in said for mark in (f"{x} ", f"{x}:", f"[{x}")))
    return next(marked, "") or next((x for x in letters if x in said), "")


def first_piece(text: str) -> str:
    """VSI-Bench reads what stands before the first space, without a full stop at its end."""
    return text.split(" ")[0].rstrip(".").strip()


def vsibench_number(text: str) -> float | None:
    """VSI-Bench reads that piece as Python does: "1,200" is no number."""
    try:
        value = float(first_piece(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def mvbench_agrees(text: str, gold: str) -> bool:
    """MVBench asks whether the first word without full stops is contained in "(x)", or contains it.
    An empty output is contained in everything."""
    word = text.lower().split(" ")[0]
    return word.replace(".", "") in f"({gold.lower()})" or f"({gold.lower()})" in word


def lvbench_letter(text: str) -> str:
    """LVBench takes what stands before the first ")" and behind "(", and of that the first word's
    first character."""
    text = text.split(")")[0].split("(")[-1].strip()
    return text.split(" ")[0][:1]


def mlvu_letter(text: str) -> str:
    """MLVU reads the letter right before the first ")", else the whole text."""
    place = text.find(")")
    return text[place - 1 : place] if place > 0 else text.strip()


def mmmu_letter(text: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """Video-MMMU reads the last letter with full stop, colon, brackets or space around it; else an
    option whose words stand in a long text. The original guesses at random where nothing is
    found; here that is no answer."""
    for char in ",.!?;:'":
        text = text.strip(char)
    text = f" {text} "
    for form in ("{}.", "{}:", "({})", " {} "):
        found = {x: text.rfind(form.format(x)) for x in letters if form.format(x) in text}
        if found:
            return max(found, key=lambda letter: found[letter])
    if len(text.split()) > 5:
        places = {
            letter: text.lower().rfind(option.lower())
            for letter, option in zip(letters, options, strict=False)
            if option and option.lower() in text.lower()
        }
        if places:
            return max(places, key=lambda letter: places[letter])
    return ""


def lmms_letter(text: str, letters: Sequence[str]) -> str:
    """lmms-eval's general reader: every letter is looked for in ten forms; the form of the highest
    rank counts, and of several letters in one form the last."""
    text = text.strip()
    found = []
    for letter in letters:
        forms = (
            (10, _last(rf"^{letter}(?![A-Za-z])", text)),
            (9, _last(rf"(?<![A-Za-z]){letter}$", text)),
            (7, _last(rf"(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\s*(?:is|:)\s*\(?{letter}\b", text)),
            (6, text.rfind(f"({letter})")),
            (5, text.rfind(f"{letter}.")),
            (4, text.rfind(f"{letter}:")),
            (3, text.rfind(f"{letter})")),
            (2, text.rfind(f"{letter} ")),
            (0, text.rfind(letter)),
        )
        found += [(rank, place, letter) for rank, place in forms if place >= 0]
    return max(found)[2] if found else ""


def _last(pattern: str, text: str) -> int:
    places = [match.start() for match in re.finditer(pattern, text)]
    return places[-1] if places else -1


def lmms_number(text: str) -> float | None:
    """On VSI-Bench lmms-eval reads the first number or English number word anywhere in the text."""
    match = re.search(r"-?\d+(?:\.\d+)?|\b(?:" + "|".join(_WORDS) + r")\b", text, re.I)
    if match is None:
        return None
    word = match[0].lower()
    return float(_WORDS[word]) if word in _WORDS else float(word)


def lmms_mvbench_letter(text: str) -> str:
    """On MVBench lmms-eval reads the first single letter a to e, so that the article "a" is A."""
    match = re.search(r"\b([A-Ea-e])\b", text)
    return match[1].upper() if match else ""


def tempcompass_rule(kind: str, text: str, gold: str, question: str) -> float | None:
    """Scores as the rules of TempCompass do, 1 or 0; None where they leave it to the judge."""
    text = text.strip()
    if kind == "yes_no":
        said = next((word for word in ("yes", "no") if text.lower().startswith(word)), None)
        return None if said is None else float(said == gold.strip().lower())
    if kind == "caption_matching":
        return _caption_rule(text, gold, question)
    if text == gold:
        return 1.0
    if text in ("A", "B", "C", "D"):
        return float(text == gold[:1])
    if text[:2] in tuple(f"{letter}{mark}" for letter in "ABCD" for mark in ".)"):
        return float(text[0] == gold[:1])
    return None


def _caption_rule(text, gold, question):
    """Right are the option line, its sentence, its label, and the label's last part, exactly."""
    for line in question.split("\n")[1:]:
        label, _, sentence = line.partition(":")
        forms = (line, sentence.strip(), label, label.split(" ")[-1])
        if text in forms:
            return float(line.strip() == gold.strip() or label == gold.partition(":")[0])
    return None
