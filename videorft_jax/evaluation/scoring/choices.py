"""Which option a text chooses, read as a person would read it.

Three readings are tried, the plainest first: the whole text is an option or its letter, letters
that the text commits itself to, and the words of an option inside a sentence. A letter is a
commitment when the words around it say so ("the answer is B", "so B", "Option B", "B because"); the
article "a", the pronoun "I", symbols ("G = 5") and denied letters ("not C", "C is wrong") are none.
A text that commits itself to two options chooses none.
"""

import re
from collections.abc import Sequence

from videorft_jax.evaluation.scoring.option_words import find_said, words_of
from videorft_jax.evaluation.scoring.text import without_refusal

_LABELLED = re.compile(
    r"\s*(?:(?:option|caption|sentence|choice)\s+)?\(?([A-Za-z]|\d{1,2}(?!\s*[.:]\d))"
    r"\s*[.):、]\s*(.*)",
    re.S | re.I,
)
_LINE = re.compile(
    r"^[ \t]*(?:(?P<noun>option|caption|sentence|choice)[ \t]+)?"
    r"\(?(?P<label>[A-Z]|\d{1,2}(?![.:]\d))[ \t]*[.):][ \t]*(?P<text>\S.*?)[ \t]*$",
    re.M | re.I,
)
_NOUN = r"(?:option|choice|letter|caption|sentence|candidate|answer|选项|選択肢|opción|opcion)"
_IS = (
    r"(?:\s*(?:is|are|was|be|being|should be|must be|would be|will be|seems to be|=|:|->|"
    r"是|为|は)\s*)"
)
_ARTICLE = (
    r"(?:the\s+|most\s+|likely\s+|probably\s+|definitely\s+|clearly\s+|therefore\s+|thus\s+|"
    r"simply\s+)*"
)
# Words that make a letter behind them an answer, strongest first.
_CUES = tuple(
    re.compile(rf"(?:{pattern})[\s\"'*(\[<]*(?:{_NOUN}\s*)?[\s\"'*(\[<:]*$", re.I)
    for pattern in (
        rf"(?:final|correct|best|right|my|the|an)?\s*(?:answer|response|conclusion|"
        rf"solution){_IS}{_ARTICLE}"
        rf"|(?:correct|best|right|final|suitable|appropriate|matching|accurate)\s+(?:{_NOUN}|"
        rf"one|match|"
        rf"description|statement|answer)s?\s*{_IS}?\s*{_ARTICLE}"
        r"|(?:answer|ans)\s*[:=]\s*|答案(?:应该|應該)?[是为為选選:]*\s*|正解は\s*|答えは\s*|정답은\s*",
        r"\b(?:i\s+(?:would\s+|will\s+|'d\s+)?(?:choose|select|pick|go with|say|guess|answer|"
        r"vote for|lean(?:\s+towards?|\s+to)?)"
        r"|(?:choose|chose|choosing|select|selecting|pick|picking|go with|going with|opt for|"
        r"settle on)"
        r"|(?:think|believe|guess|conclude|suppose|assume|say|"
        r"bet)\s*(?:that\s+)?(?:it\s*(?:is|'s)|it must be)?"
        r"|(?:therefore|thus|hence|so|consequently|accordingly|conclusion),?\s*(?:it\s*(?:is|"
        r"'s|must be)|"
        r"i\s+(?:choose|pick|select|say))?"
        r"|it\s*(?:is|'s|must be|has to be|should be|would be)|(?:that|this|which|what)\s*(?:is|'s)"
        r"|corresponds? to|matches|match|points to|leads to|supports|means)\s*"
        + _ARTICLE
        + r"|(?:应|應|我|故|所以)?[选選](?:择|擇)?[:]?\s*",
        rf"\b{_NOUN}\s*(?:no\.?|number)?\s*",
    )
)
_DENIED_BEFORE = re.compile(
    r"(?:\bnot|n't|n't be|\bnever|rather than|instead of|\bneither|\bnor|except|unlike|"
    r"rule[sd]? out|"
    r"(?:everything|anything|all|any)(?: \w+)? but|"
    r"ruling out|exclude[sd]?|excluding|eliminate[sd]?|eliminating|reject(?:s|ed)?|"
    r"不是|不选|而非|并非|ではなく|as opposed to|other than|over|than|against)"
    rf"\s*(?:be\s+|just\s+|the\s+|either\s+)*(?:{_NOUN}\s*)?[\s\"'(\[]*$",
    re.I,
)
_DENIED_AFTER = re.compile(
    rf"^[\s\"')\].]*(?:{_NOUN}\s*)?(?:is|are|was|were|can|does|do|seems?|looks?|would be|"
    rf"could be|would|"
    r"cannot|can't|isn't|doesn't|contradicts|also|being|to be)?\s*(?:(?:clearly|obviously|"
    r"definitely|"
    r"also|both|all|certainly|simply|be|the)\s+)*(?:wrong|incorrect|false|not\b|no\b|"
    r"ruled out|excluded|"
    r"eliminated|impossible|unlikely|inaccurate|mistaken|isn't|doesn't|cannot|can't|不对|错误|是错|"
    r"不正确|contradict|out\b|untrue|irrelevant)",
    re.I,
)
_AFFIRMED_AFTER = re.compile(
    r"^[\s\"')\]]*(?:is|seems|looks|must be|has to be)\s+(?:clearly\s+|definitely\s+)?(?:the\s+)?"
    r"(?:right|correct|true|best|answer|accurate|better|more (?:likely|plausible|accurate))\b",
    re.I,
)
_TEMPTING = re.compile(
    r"^[\s\"')\]]*(?:is|seems|looks|sounds)\s+(?:\w+ )?(?:tempting|plausible|possible|close)\b",
    re.I,
)
_PLURAL = re.compile(r"^[\s\"')\]]*(?:are|were|can|do|both|all|seem|look)\b", re.I)
_MORE = re.compile(
    r"^[\s\"')\]]*(?:,|/|&|;|\+|\bor\b|\band\b|和|或|、)\s*(?:also\s+|maybe\s+|possibly\s+)?"
)
_NO_ARTICLE = (
    r"because|since|as|is|was|are|seems?|and|or|due|for|with|matches|fits|correctly|best|describes|"
    r"appears|must|would|should|which|therefore|looks|makes|but|not|being|shows|says|if|can|cannot|"
    r"does|has|by|given|based|represents|corresponds|in my"
)
_ARTICLE_A = re.compile(rf"^ (?!(?:{_NO_ARTICLE})\b)[a-z]")
_PRONOUN_I = re.compile(r"^(?:'|\s+(?!(?:because|since|as|is|or|and|due|for)\b)[a-z])")
_SYMBOL = re.compile(
    r"^\s*(?:=|\+|\*|\^|/\s*\d|<|>(?!\s*$)|_|\(\w\)|be the\b|denotes?\b|stands for\b)"
)
# Words behind which a text takes back what it said before.
_REVISION = re.compile(
    r"\b(?:wait|actually|correction|scratch that|on (?:second thought|reflection)|no,)"
    r"|\bbut(?= i\b|,? (?:more|most) likely\b|,? on\b)",
    re.I,
)
_CONTEXT = 120  # characters on each side of a letter
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def split_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """(labels, texts) of options, with or without labels of their own: "A. cat", "(B) dog",
    "Caption A: ...", "Option 1: ...", "cat". Without labels they are A, B, C, ..."""
    matches = [_LABELLED.fullmatch(option.strip()) for option in options]
    letters = [chr(ord("A") + i) for i in range(len(options))]
    digits = [str(i + 1) for i in range(len(options))]
    labels = [match[1].upper() if match else "" for match in matches]
    if options and labels in (letters, digits):
        return labels, [match[2].strip() for match in matches]
    return letters, [option.strip() for option in options]


def find_options(question: str) -> tuple[list[str], list[str]]:
    """(labels, texts) of the option lines inside a question, as `split_options` gives them; empty
    where it has none."""
    lines = _find_lines(question)
    return [line["label"].upper() for line in lines], [line["text"] for line in lines]


def without_options(question: str) -> str:
    """The question without the option lines inside it."""
    if not (lines := _find_lines(question)):
        return question
    return question[: lines[0].start()].rstrip("\n") + question[lines[-1].end() :]


def _find_lines(question):
    found = list(_LINE.finditer(question))
    for start in range(len(found)):
        labels = [line["label"].upper() for line in found[start:]]
        for first in ("A", "1"):
            if len(labels) > 1 and labels == [chr(ord(first) + i) for i in range(len(labels))]:
                return found[start:]
    return []


def read_choice(text: str, labels: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The label of the option that `text` chooses, None where it chooses none or several.

    labels: those the question has, "A", "B", ... or "1", "2", .... texts: the options without
    labels, where they are known. Where several options have the same text, that text alone chooses
    the first of them.
    """
    text = text.strip()
    if not text or not labels:
        return None
    whole = _read_whole(text, labels, texts)
    if whole is not None:
        return whole or None
    committed = without_refusal(text)
    cued = _read_letters(text, labels, _CUES[:1])
    if committed is None and not cued:
        return None
    text = text if committed is None else committed
    found = _read_revised(text, labels) or _read_letters(text, labels, _CUES)
    if not found and texts:
        found = find_said(text, labels, texts)
    if len(found) != 1:
        return None
    label = found.pop()
    return None if _is_contradicted(text, label, labels, texts) else label


def _is_contradicted(text, label, labels, texts) -> bool:
    """Whether the label stands before the text of another option: "B: Nothing changes"."""
    own = {other: words_of(option) for other, option in zip(labels, texts, strict=False)}
    for match in re.finditer(rf"(?<!\w){re.escape(label)}[\"')\]]*\s*[.:)]\s*([^\n]+)", text):
        said = words_of(match[1])
        if any(words and said == words for words in own.values()) and said != own.get(label):
            return True
    return False


def _read_whole(text, labels, texts) -> str | None:
    """The label where the whole text is an option, a label, or both; "" where it is a label and
    another option's text; None for anything else."""
    said = words_of(text)
    own = [words_of(option) for option in texts]
    alone = re.fullmatch(r"\W*([A-Z])\W*", text)
    if alone and alone[1] in labels:  # It is so where an option's text is a letter, too.
        return alone[1]
    exact = [label for label, option in zip(labels, texts, strict=False) if option == text]
    if exact:  # "-1" and "1" have the same words
        return exact[0]
    for label, words in zip(labels, own, strict=False):
        if words and said == words:
            return label
    match = re.fullmatch(
        rf"[\s\"'(\[<{{*]*(?:(?:the\s+)?{_NOUN}\s*[:.]?\s*)?[\s\"'(\[<{{*]*([A-Za-z]|\d{{1,2}})"
        r"[\s\"')\]>}*]*[.:,!;。]?[\s\"')\]*]*",
        text,
        re.I,
    )
    if match:
        label = match[1].upper()
        return label if label in labels else ""
    match = re.match(
        r"[\s\"'(\[]*(?:option\s+)?([A-Za-z]|\d{1,2})\s*[.):\]-]+\s*(\S.*)", text, re.S | re.I
    )
    if match and match[1].upper() in labels:
        label, rest = match[1].upper(), words_of(match[2])
        for other, words in zip(labels, own, strict=False):
            if words and rest == words:
                same = own[labels.index(label)] == words if label in labels[: len(own)] else False
                return label if same else ""
            if other == label and words and rest[: len(words)] == words and len(words) > 1:
                return label
    match = re.fullmatch(rf"(?:it(?:'s| is)\s+)?(?:the\s+)?(\w+)\s+{_NOUN}\W*", text, re.I)
    if match and match[1].casefold() in _ORDINALS:
        place = _ORDINALS.index(match[1].casefold())
        return labels[place] if place < len(labels) else ""
    return None


def _mentions(text, labels):
    """(label, start, end) of every lone label that is not an article, a pronoun or a symbol."""
    is_letter = labels[0].isalpha()
    pattern = r"[A-Za-z]" if is_letter else r"\d{1,2}"
    for match in re.finditer(rf"(?<![A-Za-z0-9_'&.-])(?:{pattern})(?![A-Za-z0-9_&])", text):
        label, before, after = match[0].upper(), *_around(text, match.start(), match.end())
        if label not in labels:
            continue
        is_bracketed = before.endswith(("(", "[")) and after.startswith((")", "]"))
        ends = not re.match(r"\s*[\w'-]", after)
        if is_letter and match[0].islower():
            is_cued = any(cue.search(before) for cue in _CUES)
            is_first = not before.strip() and re.match(r"[.):]", after)
            if not is_bracketed and not is_first and not (is_cued and ends):
                continue
        if label == "A" and not is_bracketed and _ARTICLE_A.match(after):
            continue
        if label == "I" and not is_bracketed and _PRONOUN_I.match(after):
            continue
        if re.match(r"['’]", after) or re.match(r"-\w", after):
            continue
        is_symbol = re.search(r"[=+*^]\s*$|\d\s*/\s*$|\b[Ll]et\s+$|\b[A-Z]\s*[<>]\s*$", before)
        if _SYMBOL.match(after) or is_symbol and not re.search(r"answer\s*=\s*$", before, re.I):
            continue
        yield label, match.start(), match.end()


def _around(text, start, end):
    """The words before and after a place, as many as decide what a letter there means."""
    return text[max(0, start - _CONTEXT) : start], text[end : end + _CONTEXT]


def _read_letters(text, labels, cues) -> set[str]:
    """The labels that the text commits itself to by the strongest words it uses."""
    mentions = list(_mentions(text, list(labels)))
    denied = _find_denied(text, mentions)
    kept = [mention for mention in mentions if mention not in denied]
    if len(kept) > 1 and not re.search(r"\w{2,}", re.sub(r"\b(?:or|and)\b", "", text)):
        return {label for label, *_ in kept}  # letters alone
    denied = {label for label, *_ in mentions} - {label for label, *_ in kept}
    leading = {
        label
        for label, start, end in kept[:1]
        if not re.search(r"\w", text[:start]) and _is_leading(text[end:])
    }
    for cue in cues:
        found = [m for m in kept if cue.search(_around(text, m[1], m[2])[0])]
        if found:
            chosen = _with_alternatives(text, kept, found)
            later = kept[kept.index(found[-1]) + 1 :]
            chosen |= {m[0] for m in later if _is_commitment(text, m, cues)}
            return chosen | (leading if cue is cues[0] or leading - denied else set())
    if len(cues) == 1:
        return set()
    if leading and _starts_sentence(text, kept):
        return leading
    lone = {m for m in kept if _stands_alone(text, m)}
    for first, second in zip(kept, kept[1:], strict=False):
        if second in lone and re.fullmatch(r"\s*(?:,|/|&|and|or)\s*", text[first[2] : second[1]]):
            lone.add(first)  # "between A and C" names both.
    return {label for label, *_ in lone}


def _is_commitment(text, mention, cues):
    """Whether a letter behind an answer is another one: "so C" is, and a sentence of a letter."""
    before, after = text[: mention[1]].rstrip(" \"'*(["), text[mention[2] :]
    is_cued = any(cue.search(_around(text, *mention[1:])[0]) for cue in cues[:2])
    is_alone = not before or before[-1] in ".!?\n"
    return is_cued or is_alone and re.match(r"[\s\"')\]*]*(?:[.!?]|$)", after) is not None


def _find_denied(text, mentions):
    """The mentions that the text denies, alone or in a list: "not A or C", "A, C and D are wrong".
    An option that is only called plausible before another one is named is denied too."""
    around = {mention: _around(text, *mention[1:]) for mention in mentions}
    denied = {
        mention for mention, (before, after) in around.items()
        if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after)
        or (_TEMPTING.match(after) and mention is not mentions[-1])
    }  # fmt: skip
    pairs = list(zip(mentions, mentions[1:], strict=False))
    for first, second in pairs:
        if first in denied and re.fullmatch(r"\s*n?or\s*", text[first[2] : second[1]]):
            denied.add(second)
    is_list = False
    for first, second in reversed(pairs):
        between = text[first[2] : second[1]]
        ends = second in denied and _PLURAL.match(around[second][1])
        joined = re.fullmatch(r"\s*,?\s*(?:and|or|&)\s*", between) if not is_list else None
        is_list = bool((ends and joined) or (is_list and re.fullmatch(r"\s*,\s*", between)))
        if is_list:
            denied.add(first)
    return denied


def _read_revised(text, labels) -> set[str]:
    """The one label that the text names behind the last words that take back what it said, as in
    "B... wait, actually C"; none where it names no or several labels there."""
    *_, last = [0, *(match.end() for match in _REVISION.finditer(text))]
    found = _read_letters(text[last:], labels, _CUES) if last else set()
    return found if len(found) == 1 else set()


def _is_leading(after):
    """Whether what follows the first letter of a text leaves it an answer."""
    return bool(
        re.match(r"[\")\]*]*(?:\s*$|\s*[.):,;\n-]|\s+(?:because|since|as|is|-|due)\b)", after)
    )


def _starts_sentence(text, kept):
    """Whether only the first letter is labelled like an answer: "B. The cup fills." is, a list of
    all options is not."""
    if len({label for label, *_ in kept}) == 1:
        return True
    first = text[kept[0][2] :]
    if re.match(r"[\")\]*]*\s*(?:,|/|&|\bor\b|\band\b)\s*[\"(]?(?:[A-Za-z]|\d)(?![A-Za-z])", first):
        return False
    others = [text[end : end + 1] for label, _, end in kept[1:] if label != kept[0][0]]
    return not any(mark and mark in ".):" for mark in others)


def _with_alternatives(text, kept, found):
    """The labels of `found` and those joined to them: "A or B", "A, B", "A B"."""
    chosen = set()
    for mention in found:
        chosen.add(mention[0])
        place = kept.index(mention)
        for previous, following in zip(kept[place:], kept[place + 1 :], strict=False):
            between = text[previous[2] : following[1]]
            joint = _MORE.match(between) or re.fullmatch(r"\s+", between)
            if joint is None or re.search(r"\w", between[joint.end() :].replace("option", "")):
                break
            chosen.add(following[0])
    return chosen


_LINKS_TEXT = """
is be so thus hence with was to say probably likely clearly obviously definitely maybe perhaps guess
and or either both es est ist è é sono choose option certainly surely yes sure just only then
therefore but also la le el die leaving leaves
"""
_LINKS = frozenset(_LINKS_TEXT.split())


def _stands_alone(text, mention):
    """Whether a letter without cue is an answer: set apart by punctuation, or after a linking
    word."""
    _, start, end = mention
    before, after = text[:start].rstrip(" \"'*"), text[end:]
    if _AFFIRMED_AFTER.match(after):
        return True
    if before.endswith(("(", "[")) and after[:1] in (")", "]"):
        return True
    if not before or not before[-1].isascii() or before[-1] in ".,:;!?\n-/&+>":
        return not re.match(r"\s*\w", after) or not after[:1].isspace() or not before.strip()
    last = re.search(r"(\w+)$", before)
    if last is None:
        return False
    return last[1].casefold() in _LINKS and not re.match(r" [a-z]+ing\b", after)
