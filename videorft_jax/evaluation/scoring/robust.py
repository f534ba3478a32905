"""Our own scorer: what a person would call right, tagged or not, and nothing else."""

from collections.abc import Sequence

from videorft_jax.evaluation.scoring.choices import find_options, read_choice, split_options
from videorft_jax.evaluation.scoring.numbers import read_number
from videorft_jax.evaluation.scoring.rows import NUMERICAL, OPEN_ENDED, Row, kind_of
from videorft_jax.evaluation.scoring.spans import overlap, read_span
from videorft_jax.evaluation.scoring.text import final_texts, plain
from videorft_jax.evaluation.scoring.words import (
    agrees_with_number,
    read_caption,
    read_yes_no,
    says_the_same,
)
from videorft_jax.rewards.accuracy import mean_relative_accuracy


def score(row: Row) -> float:
    """1.0, 0.0 or a fraction; NaN where only a judge can tell.

    An output with several answers counts only where all of them are worth the same and more than
    nothing, so that nobody is paid for trying everything.
    """
    kind = kind_of(row)
    if kind == "captioning":
        return float("nan")
    texts = final_texts(row.output)
    if not texts:
        return 0.0
    values = {_score_text(kind, row, text) for text in texts}
    same = len({_reading(kind, row, text) for text in texts}) == 1
    return values.pop() if len(values) == 1 and same else 0.0


def has_answer(row: Row) -> bool:
    """Whether an answer of the question's type can be read in the output, a right one or not."""
    kind = kind_of(row)
    readers = {"yes_no": read_yes_no, "temporal grounding": read_span}
    read = readers.get(kind) or (lambda text: _reading(kind, row, text) or None)
    return any(read(text) is not None for text in final_texts(row.output))


def _reading(kind: str, row: Row, text: str) -> object:
    """What a text says, in a form in which two answers of one output can be compared."""
    if kind == "multiple choice":
        return read_choice(text, *options_of(row))
    if kind in ("regression", NUMERICAL):
        number = read_number(text)
        return number and number.value
    return " ".join(text.casefold().split()).rstrip(".")


def _score_text(kind: str, row: Row, text: str) -> float:
    gold = plain(row.gold)
    if kind == "multiple choice":
        return float(_choice(row, text))
    if kind == "regression":
        number, truth = read_number(text), read_number(gold)
        if truth is None:
            raise ValueError(f"score: row {row.id}: gold {row.gold!r} is no number; mend the row")
        return 0.0 if number is None else mean_relative_accuracy(number.value, truth.value)
    if kind == "yes_no":
        said = read_yes_no(text)
        return float(said is not None and said == (gold.casefold().startswith("y")))
    if kind == "caption_matching":
        return float(read_caption(text, row.question, row.gold))
    if kind == "temporal grounding":
        span, truth = read_span(text), read_span(gold)
        if truth is None:
            raise ValueError(f"score: row {row.id}: gold {row.gold!r} is no span; mend the row")
        return 0.0 if span is None else overlap(span, truth)
    if kind == NUMERICAL:
        return float(agrees_with_number(text, gold))
    assert kind == OPEN_ENDED
    return float(says_the_same(text, gold))


def _choice(row: Row, text: str) -> bool:
    labels, texts = options_of(row)
    wanted = gold_label(row, labels, texts)
    return wanted is not None and read_choice(text, labels, texts) == wanted


def options_of(row: Row) -> tuple[list[str], list[str]]:
    """(labels, texts) of the options: the row's own, else those in its question, else A to J."""
    if row.options:
        labels, texts = split_options(row.options)
        gold = plain(row.gold).upper()
        letters = [chr(ord("A") + i) for i in range(len(labels))]
        if labels[0] == "1" and gold in letters:  # Numbered texts were lettered in the prompt.
            return letters, list(row.options)
        return labels, texts
    labels, texts = find_options(row.question)
    if labels:
        return labels, texts
    return [chr(ord("A") + i) for i in range(10)], []


def gold_label(row: Row, labels: Sequence[str], texts: Sequence[str]) -> str | None:
    """The label of the right option: that of `gold`, or of the first option with its text. None
    where no option is the gold one, as in two rows of MLVU: no answer to them is right."""
    gold = plain(row.gold)
    if gold.upper() in labels:
        return gold.upper()
    return read_choice(gold, labels, texts)
