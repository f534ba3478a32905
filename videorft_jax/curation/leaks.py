"""Rules on a chain's text: what would tell a student of notes that it never sees, and its form.

A term that occurs in the question, the options or the answer is allowed: a question about a caption
on a sign may be answered by speaking of it.
"""

import collections
import re

from videorft_jax.data.records.records import Record

VERSION = 2
# name: pattern, matched without regard to case
LEAKS = {
    "caption": r"\b(the|a|these|this|video|each|frame|given|provided) captions?\b"
    r"(?! (on|at|under|above|below|printed|written|painted|reads)\b)|\bcaptioned as\b",
    "description": r"\b(the|this|given|provided|video|image|scene|frame|above) descriptions?\b"
    r"|\bas described\b|\b(is|are|was|were) described (as|in|to)\b|\baccording to the notes?\b"
    r"|\bthe notes? (say|says|mention|mentions|list|lists|state|states"
    r"|describe|describes|tell|tells)\b",
    "metadata": r"\bmetadata\b|\bkey elements\b|\bjson\b|\bnotable_features\b|\bvideo_caption\b"
    r"|\bspatial_relations\b|\bschema\b",
    "given_text": r"\b(provided|given|supplied) (text|information|data|context|details|frames?)\b"
    r"|\bframes? (listed|provided|given)\b|\blisted frames?\b"
    r"|\b(text|information|context|details) (provided|given|supplied)\b",
    "uncertain": r"\[uncertain\]",
    "time": r"\b\d{1,2}:\d{2}(:\d{2})?\b|\b(at|around|by|from|until) (about )?\d+(\.\d+)? ?"
    r"(s|sec|secs|seconds?)\b(?! (long|later|after|before))|\btime ?stamps?\b"
    r"|\bsecond \d+\b|\[\d+(\.\d+)? s\]",
    "frame_number": r"\bframes? (number )?#?\d+\b|\b(first|second|third|fourth|fifth|sixth|next|"
    r"previous|final|last) frames?\b(?! of (the|a) (door|window|bike|bicycle|bed|picture))",
    "box": r"\bbounding box(es)?\b|\bbbox\b|\bcoordinates?\b(?! (the|with)\b)|[\[(] ?\d+(\.\d+)?"
    r"( ?, ?\d+(\.\d+)?){3} ?[\])]|\bobject[ _](id|\d+)\b",
    "prompt": r"\bstep (one|two|three|four|five) of the instructions\b|\bsimulate watching\b"
    r"|\bas instructed\b|\bthe instructions (say|ask|tell)\b|\[\[",
}
RESIDUE = {
    "revision": r"\b(revised|original|corrected|updated) (reasoning|chain|thoughts?|line of thought"
    r"|version)\b|\bno (changes|revision|correction)s? (is|are|was|were)? ?(needed|necessary|made)"
    r"|\bvisuali[sz]ation (is )?(not )?needed\b",
    "markup": r"```|^#{1,6} |</?(think|answer)>",
    "model": r"\bas an ai\b|\blanguage model\b|\bi (cannot|can't) (watch|see|view)\b"
    r"|\bi('m| am) sorry\b|\bi apologi[sz]e\b",
    "link": r"https?://|\bwww\.",
    "control": r"[\x00-\x08\x0b\x0c\x0e-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]",
}
_COMPILED = {
    name: re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for name, pattern in (LEAKS | RESIDUE).items()
}


def find_leaks(chain: str, record: Record) -> dict[str, str]:
    """The rules that a chain breaks, each with the first text that does."""
    allowed = " ".join([record.problem, *record.options, record.solution]).casefold()
    found = {}
    for name, pattern in _COMPILED.items():
        for match in pattern.finditer(chain):
            text = match[0].strip().casefold()
            head = text.split()[-1] if text.split() else text
            if text in allowed or (name in LEAKS and len(head) > 3 and head in allowed):
                continue
            found[name] = match[0].strip()[:80]
            break
    return found


def repeated_share(words: list[str], size: int = 4) -> float:
    """Share of the runs of `size` words that occurred before."""
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    counts = collections.Counter(runs)
    return 1 - len(counts) / len(runs) if runs else 0.0


def kept_share(before: str, after: str) -> float:
    """Longest common subsequence of words as a share of the longer text."""
    a, b = before.split(), after.split()
    row = [0] * (len(b) + 1)
    for word in a:
        last = 0
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = last + 1 if word == other else max(row[j], row[j - 1])
            last = above
    return row[-1] / max(len(a), len(b), 1)


_CONCLUDES = re.compile(
    r"\b(?:answer|option|choice)(?: is| must be| should be|:)? *(?:option )?\(?([A-Z])\b\)?"
)


def other_conclusion(chain: str, record: Record) -> str:
    """The letter of another option that the end of a chain settles on, "" if it does not."""
    if record.problem_type != "multiple choice":
        return ""
    named = _CONCLUDES.findall(" ".join(chain.split()[-40:]))
    gold = record.solution.strip().strip("().").upper()[:1]
    return named[-1] if named and named[-1] != gold else ""
