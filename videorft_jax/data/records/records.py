"""The VideoRFT record: its schema and its checks.

In memory `process` and `solution` are bare text. The `<think>` and `<answer>` tags that files carry
(or lack, repeat or nest) are taken off once, here, and put back by `Record.to_row` and by
`build_target`; no other code ever meets them.
"""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from videorft_jax.data.records.chats import (
    MediaItem,
    check_placeholders,
    check_times,
    expand_chat,
    expand_media,
    find_opening,
)

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
DATA_TYPES = ("image", "video")

# field: (accepted types, required, what to write instead)
SCHEMA: dict[str, tuple[tuple[type, ...], bool, str]] = {
    "problem_id": ((int, str), True, "give each row an integer or string id"),
    "problem": ((str,), True, "write the question as a non-empty string"),
    "data_type": ((str,), True, f"write one of {', '.join(DATA_TYPES)}"),
    "problem_type": ((str,), True, f"write one of {', '.join(PROBLEM_TYPES)}"),
    "options": ((list, type(None)), False, 'write a list such as ["A. red", "B. blue"], or []'),
    "process": ((str, type(None)), False, "write the reasoning as <think>...</think>, or leave it"),
    "solution": ((str,), True, "write the answer as a string, <answer>...</answer>"),
    "path": ((str,), True, "write the media path relative to the data root, as ./clips/a.mp4"),
    "data_source": ((str, type(None)), False, "write the source's name as a string, or leave it"),
    "start": ((int, float, type(None)), False, "write seconds from the start of the clip"),
    "end": ((int, float, type(None)), False, "write seconds, larger than start"),
    "media": ((list, type(None)), False, 'write [{"type": "video", "path": "a.mp4"}, ...]'),
    "messages": ((list, type(None)), False, 'write [{"role": "user", "content": "..."}, ...]'),
}
CHAT_FIELDS = ("media", "messages")
MEDIA_FIELDS = ("data_type", "path", "start", "end")  # A row with `media` leaves them out.
CHAT_GIVES = ("problem", "problem_type", "options", "process", "solution")
SYNONYMS = {"video_start": "start", "video_end": "end"}  # These are qwen-vl-utils' names.
# The label of an option in the styles of the field: A. red, (A) red, [A] red, A: red, A - red,
# Option A: red, and the same with the wide signs of Chinese and Japanese.
LABEL = re.compile(
    r"\s*(?:(?:option|choice|answer)\s+)?"
    r"(?:\*\*)?[(\[<（【]?([A-Za-zＡ-Ｚａ-ｚ])\s*"
    r"(?:(?:[.):：、．）\]>】]|\*\*)+|\s[-–—](?=\s))\s*(.*)",
    re.DOTALL | re.IGNORECASE,
)
NUMBERED = re.compile(r"\s*[(\[]?(\d{1,2})\s*[.):：、．）\]]\s+.*", re.DOTALL)
DUPLICATE_KEY = "\0duplicate"
UNKNOWN = (
    "no known format has them; write problem, solution and path, or a chat as messages,"
    " conversations or prompt"
)
PAGE = "docs/how_to/record_format.md"  # a row of each type, named by every error


class RecordError(ValueError):
    """One fault of one row. `reason` is one of missing, type, value, tags, json, encoding, length
    and duplicate, so that faults can be counted; `str()` is one line with place and remedy."""

    def __init__(self, where: str, field: str, reason: str, value: Any, remedy: str):
        super().__init__(where, field, reason, value, remedy)
        self.where, self.field, self.reason, self.remedy = where, field, reason, remedy
        self.value = value if isinstance(value, str) else repr(value)

    def __str__(self) -> str:
        value = self.value.encode("unicode_escape", "backslashreplace").decode()
        value = value if len(value) <= 80 else value[:77] + "..."
        said = f"{self.where}: {self.field}: bad {self.reason}: {value}; {self.remedy}"
        return f"{said} ({PAGE})".encode("utf-8", "backslashreplace").decode()


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One question about videos and images, or one chat about them.

    Most records show one item: `data_type`, `path`, `start` and `end` (seconds within the clip).
    `items` holds all of them where there are several, or where one is a list of frames; the fields
    are then those of the first. `turns` are the (role, text) pairs of a chat, whose wording is kept
    as it is; `problem` and `solution` are then its last question and answer, and `opening` is what
    the prompt already holds of that answer, as in "Best option: (". `extra` holds the
    row's other fields unchanged, for user rewards and benchmark breakdowns.
    """

    problem_id: int | str
    problem: str
    data_type: str
    problem_type: str
    options: tuple[str, ...]
    process: str
    solution: str
    path: str
    data_source: str = ""
    start: float | None = None
    end: float | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    items: tuple[MediaItem, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    opening: str = ""

    @property
    def media(self) -> tuple[MediaItem, ...]:
        """What is shown, in the order in which the prompt shows it."""
        return self.items or (MediaItem(self.data_type, self.path, self.start, self.end),)

    def to_row(self) -> dict[str, Any]:
        """The row of a VideoRFT file: tags put back, absent times left out."""
        row = {field: getattr(self, field) for field in SCHEMA if field not in CHAT_FIELDS}
        row["options"] = list(self.options)
        row["process"] = f"<think>{self.process}</think>" if self.process else ""
        row["solution"] = f"<answer>{self.solution}</answer>"
        for field in ("start", "end"):
            if row[field] is None:
                del row[field]
        if self.items:
            row["media"] = [item.to_row() for item in self.items]
            row = {field: value for field, value in row.items() if field not in MEDIA_FIELDS}
        if self.turns:
            row["messages"] = [{"role": role, "content": text} for role, text in self.turns]
            if self.opening:
                row["messages"][-1]["opening"] = self.opening
            row = {field: value for field, value in row.items() if field not in CHAT_GIVES}
        return row | dict(self.extra)


def unwrap(text: str, tag: str) -> str:
    """The bare text of `<tag>text</tag>`, stripped, in time linear in the length of `text`.

    Text without the tag is returned as it is. Nested and repeated tags around one and the same
    text count as one. Case of the tags does not matter.

    Raises:
      ValueError: unbalanced tags, text outside them, or blocks that disagree.
    """
    pieces = re.split(f"(</?{tag}>)", text, flags=re.IGNORECASE)
    if len(pieces) == 1:
        return text.strip()
    depth, blocks = 0, []
    for index, piece in enumerate(pieces):
        if index % 2:
            depth += -1 if piece.startswith("</") else 1
            if depth < 0:
                raise ValueError(f"</{tag}> before <{tag}>")
            if depth == 1 and not piece.startswith("</"):
                blocks.append([])
        elif piece.strip():
            if not depth:
                raise ValueError(f"text outside <{tag}>")
            blocks[-1].append(piece.strip())
    if depth:
        raise ValueError(f"<{tag}> is not closed")
    if any(len(block) > 1 for block in blocks) or len({tuple(block) for block in blocks}) > 1:
        raise ValueError(f"several different <{tag}> texts")
    return blocks[0][0] if blocks[0] else ""


def label_options(options: Iterable[str]) -> list[tuple[str, str]]:
    """(letter, text) of each option.

    The options' own labels are used when all of them carry one and the labels are the first letters
    of the alphabet, in any order: "C. green", "A. red", "B. blue" stay C, A and B. Otherwise ("J.
    Doe", "4. of May") what looks like a label belongs to the text, and the letters are given in
    order.
    """
    options = [option.strip() for option in options]
    matches = [LABEL.fullmatch(option) for option in options]
    letters = [chr(ord("A") + i) for i in range(len(options))]
    if all(matches) and sorted(_letter(match) for match in matches) == letters:
        return [(_letter(match), match[2].strip()) for match in matches]
    return list(zip(letters, options, strict=True))


def has_unclear_labels(options: Iterable[str], answer: str) -> bool:
    """Whether the letter `answer` names one option by its place and another by its own label, as A
    does among "B. red", "A. blue", "green": nobody can know which is meant. The same holds of
    options that are numbered in another order than they stand."""
    options = [option.strip() for option in options]
    labelled = label_options(options)
    if answer not in dict(labelled) or [text for _, text in labelled] != options:
        return False
    numbered = [NUMBERED.fullmatch(option) for option in options]
    if all(numbered):
        numbers = [int(match[1]) for match in numbered]
        if sorted(numbers) == list(range(1, len(numbers) + 1)) != numbers:
            return True
    matches = [(letter, LABEL.fullmatch(option)) for letter, option in labelled]
    return any(match and _letter(match) == answer != letter for letter, match in matches)


def _letter(match: re.Match[str]) -> str:
    """The letter of a label, a wide one as the plain one."""
    return unicodedata.normalize("NFKC", match[1]).upper()


def parse_row(row: Any, where: str = "record") -> Record:
    """A checked record from one decoded row. Raises the first of `find_errors` as RecordError."""
    errors, values = check_row(row, where)
    if errors:
        raise errors[0]
    return Record(**values)


def find_errors(row: Any, where: str = "record") -> list[RecordError]:
    """Every fault of one decoded row; `where` opens each message."""
    return check_row(row, where)[0]


def _find_rows(row: dict[str, Any]) -> str:
    """The key under which an object holds the rows of a file, such as "data", or ""."""
    known = SCHEMA.keys() | {"conversations", "prompt"}
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and first.keys() & known:
            return key
    return ""


def check_row(row: Any, where: str) -> tuple[list[RecordError], dict[str, Any]]:
    if not isinstance(row, dict):
        remedy = "write one JSON object per row"
        return [RecordError(where, "row", "type", row, remedy)], {}
    errors: list[RecordError] = []
    row = {SYNONYMS.get(key, key) if SYNONYMS.get(key) not in row else key: row[key] for key in row}
    if not row.keys() & SCHEMA.keys():
        what, inner = f"columns {', '.join(map(str, row)) or 'none'}", _find_rows(row)
        remedy = f"the rows are in its list {inner!r}; write that list alone" if inner else UNKNOWN
        return [RecordError(where, "row", "value", what, remedy)], {}
    if isinstance(row.get("options"), dict):  # {"A": "red", "B": "blue"}
        row["options"] = [f"{letter}. {text}" for letter, text in row["options"].items()]

    def fail(field: str, reason: str, value: Any, remedy: str = "") -> None:
        errors.append(RecordError(where, field, reason, value, remedy or SCHEMA[field][2]))

    values: dict[str, Any] = {}
    row, items = expand_media(row, fail)
    row, turns = expand_chat(row, fail)
    opening = find_opening(row, fail)
    for field, (types, required, _) in SCHEMA.items():
        value = row.get(field)
        if field not in row:
            if required:
                fail(field, "missing", "absent")
        elif not isinstance(value, types) or isinstance(value, bool):
            fail(field, "type", value)
        elif isinstance(value, str) and not _is_text(value):
            fail(field, "encoding", value, "remove lone surrogates and NUL characters")
        elif isinstance(value, str) and required and not value.strip():
            fail(field, "value", value)
        else:
            values[field] = value
    if DUPLICATE_KEY in row:
        fail("row", "value", row[DUPLICATE_KEY], "name each field once")
    extra = {key: value for key, value in row.items() if key not in SCHEMA}
    for key, value in extra.items():
        if isinstance(value, float) and not math.isfinite(value):
            fail(str(key), "value", value, "write a finite number or null")

    for field, allowed in (("data_type", DATA_TYPES), ("problem_type", PROBLEM_TYPES)):
        if values.get(field, allowed[0]) not in allowed:
            fail(field, "value", values.pop(field))
    options = values.get("options") or ()
    if not all(isinstance(text, str) and text.strip() and _is_text(text) for text in options):
        fail("options", "type", options)
        options = ()
    elif len(options) > 26:
        fail("options", "value", f"{len(options)} options", "write at most 26, one a letter")
    for field, tag, other in (("process", "think", "answer"), ("solution", "answer", "think")):
        present = bool(values.get(field))
        try:
            values[field] = unwrap(values.get(field) or "", tag)
        except ValueError as error:
            fail(field, "tags", values.pop(field), f"{error}: write one <{tag}>...</{tag}>")
        else:
            if re.search(f"</?{other}>", values[field], re.IGNORECASE):
                fail(field, "tags", values.pop(field), f"move the <{other}> part to its own field")
            elif field == "solution" and present and not values[field]:
                fail(field, "value", row[field])
    if values.get("problem_type") == "multiple choice" and options and values.get("solution"):
        letters = sorted(letter for letter, _ in label_options(options))
        if has_unclear_labels(options, values["solution"].upper()):
            remedy = f"label all options, {letters[0]} to {letters[-1]}, each letter once"
            fail("options", "value", options, remedy)
        elif values["solution"].upper() not in letters:
            remedy = f"write one letter of {letters[0]} to {letters[-1]} alone"
            fail("solution", "value", values["solution"], remedy)
    if values.get("problem_type") in ("numerical", "regression"):
        answer = values.get("solution", "").strip("+-").casefold()
        if answer in ("nan", "inf", "infinity"):
            fail("solution", "value", values["solution"], "write a finite number")
    check_times(values.get("data_type"), values.get("start"), values.get("end"), fail)
    texts = [text for role, text in turns] or [values.get("problem", "")]
    check_placeholders(texts, [item.kind for item in items] or [values.get("data_type")], fail)

    for field in CHAT_FIELDS:
        values.pop(field, None)
    values |= {"options": tuple(options), "data_source": values.get("data_source") or ""}
    values |= {"items": items, "turns": turns, "opening": opening}
    return errors, values | {"extra": extra}


def _is_text(value: str) -> bool:
    return "\0" not in value and value == value.encode("utf-8", "ignore").decode()
