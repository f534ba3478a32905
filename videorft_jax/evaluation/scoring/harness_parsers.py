"""How benchmarks' own scripts read an answer, faults included; `lmms_parsers` is lmms-eval's part.

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
# LongVideoBench has the list with all its commas.
_PREFIXES_LONG = (*_PREFIXES[:4], "The best option is", "The correct option is", "Best answer:",
                  "Best option:")  # fmt: skip


def first_capital(text: str, letters: Sequence[str], prefixes: Sequence[str] = _PREFIXES) -> str:
    """Video-MME, LongVideoBench and VideoMathQA remove set phrases, and then read the first capital
    that is an option's letter."""
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    return next((char for char in text if char in letters), "")


def longvideobench_letter(text: str) -> str:
    """LongVideoBench reads as Video-MME does, also where a question has fewer than five options.
    The original guesses at random where nothing is found; here that is no answer."""
    return first_capital(text, "ABCDE", _PREFIXES_LONG)


def videomme_v2_letter(text: str) -> str:
    """Video-MME-v2 reads as Video-MME does, and removes more phrases."""
    return first_capital(text, "ABCDEFGH", _PREFIXES_V2)


def scivideobench_letter(text: str) -> str:
    """SciVideoBench reads as Video-MME does, and removes other phrases. The original guesses at
    random where nothing is found; here that is no answer."""
    return first_capital(text, "ABCDEFGHIJKL", _PREFIXES_SCIENCE)


def video_holmes_letter(text: str, letters: Sequence[str] = "ABCDEF") -> str:
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
    """MVBench keeps the first line, and asks whether its first word without full stops is contained
    in "(x)", or contains it. An empty output is contained in everything."""
    word = text.strip().split("\n")[0].lower().split(" ")[0]
    return word.replace(".", "") in f"({gold.lower()})" or f"({gold.lower()})" in word


def lvbench_letter(text: str) -> str:
    """LVBench takes what stands before the first ")", of that what stands between the first "(" and
    the next, and of that the first word's first character."""
    text = text.strip().split(")")[0]
    return (text.split("(")[1] if "(" in text else text).strip().split(" ")[0][:1]


def mlvu_letter(text: str) -> str:
    """MLVU reads the letter right before the first ")", else the whole text."""
    place = text.find(")")
    return text[place - 1 : place] if place > 0 else text.strip()


def as_number(text: str) -> float | None:
    """A text that Python reads as a number, commas left out; it may be no finite one."""
    try:
        return float(text.replace(",", "").strip())
    except ValueError:
        return None


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
    """Right are the option line, its sentence, also behind a bracket, its label, and the label's
    last part, also with full stops. Of several that an answer fits the last in this order counts.
    """
    options = [line for line in question.split("\n")[1:] if ": " in line]
    labels, sentences = ([line.split(": ")[place] for line in options] for place in (0, 1))
    parts = [re.sub("Sentence |Option |Caption ", "", label) for label in labels]
    behind = text.split(") ")[1] if ") " in text else text
    fitting = [line for line in options if line == text]
    fitting += [sentence for sentence in sentences if sentence in (text, behind)]
    fitting += [name for name in (*labels, *parts) if name in (text, text.replace(".", ""))]
    if not fitting:
        return None
    label, *rest = gold.split(": ")
    return float(fitting[-1] in (gold, label, *rest[:1], *label.split()[1:2]))
