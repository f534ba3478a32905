"""The part of a model's output that is meant as its answer, in plain characters."""

import re
import unicodedata

from videorft_jax.rewards.answers import PLAIN

MAX_CHARACTERS = 2_000  # Only the end of a longer answer is read.
# Signs that mean the same to a reader: ideographic stops and commas, quotation marks, arrows.
_SIGNS = PLAIN | {
    ord(a): b for a, b in zip("。、｡“”„‘’→⇒≈～·", ".,." + '"""' + "''" + ">>~~.", strict=True)
}
_TAG = re.compile(r"<\s*(/?)\s*(think|thinking|analysis|reasoning|answer)\s*(?:>|$)", re.I)
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>")
_FAILED = re.compile(r"REQUEST_FAILED|^\W*(API|request|connection) (error|failed)", re.I)
_STYLED = re.compile(r"[\U0001D400-\U0001D7FF\u24B6-\u24E9]")  # bold, circled and such letters
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}|\\boxed\s+(\w+)")
_REFUSAL = re.compile(
    r"\b(can ?not|can't|could ?n[o']t|unable to|not able to|impossible to|hard to)"
    r"\s+(?:\w+\s+){0,2}?(tell|see|determine|say|know|answer|view|watch|identify|access|be "
    r"determined|decide|process|infer|provide|choose|find|play|confirm|open|give|assist|help|read)"
    r"|\b(do ?n[o']t|did ?n[o']t|do not) (?:\w+ )?(know|have enough|see any|see the)"
    r"|\b(not (?:\w+ )?(sure|certain|clear|enough information|possible)|unsure|uncertain|no idea"
    r"|unclear|insufficient|undetermined|unknown|no (?:video|answer|information|way to))\b"
    r"|\b(sorry|apologi[sz]e|N/A)\b|无法|不知道|不确定|看不|わかりません|分かりません|모르",
    re.I,
)
_TURN = re.compile(
    r"\b(but|however|nevertheless|though|still|yet|if i had to|best guess|so)\b", re.I
)


def plain(text: str) -> str:
    """The text with full-width and typographic characters as ASCII, without Markdown and LaTeX
    marks around words, control tokens and outer space."""
    text = _CONTROL.sub(" ", text[-MAX_CHARACTERS:]).translate(_SIGNS)
    text = text.replace("&gt;", ">").replace("&lt;", "<")
    text = re.sub(r"<(b|i|u|p|em|strong|span|code)>(.*?)</\1>", r" \2 ", text, flags=re.I)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\$+\s*([A-Za-z])\s*\$+|^\s*\|\s*(\w+)\s*\|\s*$", r"\1\2", text)
    text = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = re.sub(r"\\[()\[\]]|\*\*|__|`|^#+ ?", " ", text, flags=re.M)
    return re.sub(r"[ \t]+", " ", text).strip(" \t\r\n*")


def final_texts(output: str) -> list[str]:
    """What the output gives as its answer: usually one text, several where it has several answer
    blocks or boxes, none where it has no answer (empty, cut off in its reasoning, a failed
    request).

    Text in answer tags behind the reasoning counts before text that only follows the reasoning. An
    answer block inside the reasoning is a draft, unless nothing follows the reasoning or the
    reasoning was never closed. A closing tag that was cut off counts as closed.
    """
    if not isinstance(output, str) or _FAILED.search(output):
        return []
    blocks, tail = _split(output)
    texts = blocks if blocks is not None else [tail]
    found = []
    for text in texts:
        boxes = [a or b for a, b in _BOX.findall(text)]
        found += [plain(box) for box in boxes] or [plain(text)]
    return [] if any(not text for text in found) else found


def _split(output: str) -> tuple[list[str] | None, str]:
    """(answer blocks that count or None, text outside of reasoning and answers)."""
    in_reasoning, is_open, begin, last = False, False, 0, 0
    finals, drafts, outside = [], [], []
    after_draft = ""  # reasoning behind the last draft, which is then no conclusion
    for match in _TAG.finditer(output):
        is_closing, name = bool(match[1]), match[2].lower()
        piece, last = output[last : match.start()], match.end()
        if in_reasoning and not is_open:
            after_draft += piece
        elif not is_open:
            outside.append(piece)
        if name == "answer" and not is_closing:
            is_open, begin = True, match.end()
        elif name == "answer":
            if is_open:
                (drafts if in_reasoning else finals).append(output[begin : match.start()])
                is_open, after_draft = False, ""
        elif not is_closing:
            in_reasoning = in_reasoning or not is_open
        else:
            if not in_reasoning:  # the opening tag was part of the prompt
                drafts, finals, outside = drafts + finals, [], []
            in_reasoning = is_open = False
    rest = output[last:]
    if is_open:  # cut off inside the answer, or inside its closing tag
        rest = re.sub(r"<\s*/?[a-z]*$", "", rest, flags=re.I)
        (drafts if in_reasoning else finals).append(rest)
    elif in_reasoning:
        after_draft += rest
    else:
        outside.append(rest)
    tail = " ".join(outside)
    if finals:
        return finals, tail
    if drafts and not tail.strip() and not after_draft.strip():
        return drafts[-1:], tail
    return ([""] if in_reasoning else None), tail


def without_refusal(text: str) -> str | None:
    """The text, or what follows the "but" after a refusal to answer, or None where a refusal is all
    there is."""
    match = _REFUSAL.search(text)
    if match is None:
        return text
    turn = _TURN.search(text, match.end())
    return None if turn is None else text[turn.end() :].strip(" ,")
