"""One answered question of a benchmark, as scorers read it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

NUMERICAL, OPEN_ENDED = "numerical", "open-ended"
# How files and harnesses call the types of questions, in words without spaces and hyphens.
_KINDS = {
    "multiplechoice": "multiple choice",
    "mcq": "multiple choice",
    "mc": "multiple choice",
    "multichoice": "multiple choice",
    "perception": "multiple choice",
    "regression": "regression",
    "numerical": NUMERICAL,
    "yesno": "yes_no",
    "captionmatching": "caption_matching",
    "captioning": "captioning",
    "openended": OPEN_ENDED,
    "open": OPEN_ENDED,
    "freeform": OPEN_ENDED,
    "ocr": OPEN_ENDED,
    "temporalgrounding": "temporal grounding",
    # The names of VSI-Bench; its other types are multiple choice and have options.
    "objectcounting": "regression",
    "objectabsdistance": "regression",
    "objectsizeestimation": "regression",
    "roomsizeestimation": "regression",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A question, its answer and what a model said.

    Attributes:
      benchmark: name of the benchmark; it decides the rules of the `official` and `lmms` scorers.
      question_type: multiple choice, regression, numerical, yes_no, caption_matching, captioning,
        open-ended or temporal grounding, in any usual spelling.
      gold: a label, the text of an option, a number, a span or the answer's words.
      output: everything that the model wrote.
      options: with or without labels; empty where the question has none or holds them itself.
      question: its text.
      id: what errors call the row.
    """

    benchmark: str
    question_type: str
    gold: str
    output: str
    options: tuple[str, ...] = ()
    question: str = ""
    id: str = ""


def make_row(fields: Mapping[str, Any], place: int) -> Row:
    """Makes a row of a plain dict, the `place`-th of its list.

    Raises ValueError for a field that is missing or of another type, naming the row.
    """
    name = str(fields.get("id", place))
    for field in ("question_type", "gold", "output"):
        if field not in fields:
            raise ValueError(
                f"score: row {name} has no {field!r}; give question_type, gold, output"
            )
    options = fields.get("options") or ()
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise ValueError(f"score: row {name}: options is {options!r}; give a list of texts")
    output = fields["output"]
    if output is not None and not isinstance(output, str):
        raise ValueError(f"score: row {name}: output is {type(output).__name__}; give a text")
    row = Row(
        benchmark=str(fields.get("benchmark", "")),
        question_type=str(fields["question_type"]),
        gold=str(fields["gold"]),
        output=output or "",
        options=tuple(map(str, options)),
        question=str(fields.get("question", "")),
        id=name,
    )
    kind_of(row)
    return row


def kind_of(row: Row) -> str:
    """The type of the question under its one name. Raises ValueError for an unknown one."""
    word = "".join(char for char in row.question_type.split("(")[0].casefold() if char.isalpha())
    if word not in _KINDS and row.options:
        return "multiple choice"
    if word not in _KINDS:
        known = ", ".join(dict.fromkeys(_KINDS.values()))
        raise ValueError(
            f"score: row {row.id}: question_type is {row.question_type!r}; choose among {known}"
        )
    return _KINDS[word]
