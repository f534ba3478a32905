"""Three scorers that give what other tools give: VideoRFT's script, each benchmark, lmms-eval."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from videorft_jax.evaluation.scoring import harness_parsers as parsers
from videorft_jax.evaluation.scoring import lmms_parsers
from videorft_jax.evaluation.scoring.choices import split_options
from videorft_jax.evaluation.scoring.robust import gold_label, options_of
from videorft_jax.evaluation.scoring.rows import NUMERICAL, OPEN_ENDED, Row, kind_of
from videorft_jax.evaluation.scoring.spans import overlap, read_span
from videorft_jax.rewards.accuracy import mean_relative_accuracy
from videorft_jax.rewards.answers import first_block

_JUDGED = float("nan")


def videorft(row: Row) -> float:
    """What `eval_bench.py` of VideoRFT gives: the first answer block anywhere, else the whole
    output; letters with their case, numbers to two places, MRA with < in float32, else 0."""
    kind = kind_of(row)
    said = (first_block(row.output, "answer") or "").strip() or row.output
    truth = (first_block(row.gold, "answer") or "").strip() or row.gold
    if kind == "multiple choice":
        # The truth of some releases is a line such as "B. a dog", of which the letter counts.
        letter = _letters(row)[1] if len(truth.strip()) > 1 else ""
        return float(said.strip() == (letter or truth.strip()))
    if kind == NUMERICAL:
        is_decimal = [any(mark in text for mark in ".,") for text in (said, truth)]
        numbers = [_plain_float(text) for text in (said, truth)]
        if is_decimal[0] != is_decimal[1] or None in numbers:
            return 0.0
        return float(round(numbers[0], 2) == round(numbers[1], 2))
    if kind == "regression":
        number, target = _plain_float(said), _plain_float(truth)
        if number is None or target is None:
            return 0.0
        return mean_relative_accuracy(number, target, boundary="videorft")
    return 0.0


def _plain_float(text: str) -> float | None:
    try:
        value = float(text.replace(",", "").strip())
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def official(row: Row) -> float:
    """What the benchmark's own script gives; NaN where it asks a judge."""
    return _OFFICIAL.get(_name(row), _official_choice)(row)


def lmms(row: Row) -> float:
    """What lmms-eval gives without a judge; NaN where it asks one. It takes the reasoning off
    before any task reads an answer."""
    row = dataclasses.replace(row, output=lmms_parsers.without_reasoning(row.output))
    return _LMMS.get(_name(row), _lmms_choice)(row)


def _name(row: Row) -> str:
    """The benchmark's name in lower case, without marks and the name of its part."""
    name = re.sub(r"[^a-z0-9]", "", row.benchmark.casefold())
    return next((known for known in _NAMES if name.startswith(known)), name)


def _letters(row: Row) -> tuple[list[str], str]:
    labels, texts = options_of(row)
    return labels, gold_label(row, labels, texts) or ""


def _by_letter(read: Callable[[str], str]) -> Callable[[Row], float]:
    """A scorer that compares the letter which `read` finds in the output with the gold one."""
    return _by_options(lambda text, letters, options: read(text))


def _by_options(read: Callable[[str, list[str], list[str]], str]) -> Callable[[Row], float]:
    """The same with the letters and texts of the row's options, where `read` goes by them."""

    def score(row: Row) -> float:
        if kind_of(row) != "multiple choice":
            return _JUDGED
        letters, gold = _letters(row)
        texts = split_options(row.options)[1]
        return float(bool(gold) and read(row.output, letters, texts) == gold)

    return score


def _vsibench(read_number: Callable[[str], float | None]) -> Callable[[Row], float]:
    def score(row: Row) -> float:
        if kind_of(row) == "regression":
            truth = _plain_float(row.gold)
            if truth is None:
                raise ValueError(f"score: row {row.id}: gold {row.gold!r} is no number")
            number = read_number(row.output)
            return mean_relative_accuracy(0.0 if number is None else number, truth)
        _, gold = _letters(row)
        return float(bool(gold) and parsers.first_piece(row.output).lower() == gold.lower())

    return score


def _mmmu(read_choice: Callable[[Row], float]) -> Callable[[Row], float]:
    def score(row: Row) -> float:
        if kind_of(row) != "multiple choice":
            return float(lmms_parsers.mmmu_open(row.output, row.gold))
        return read_choice(row)

    return score


def _tempcompass(row: Row) -> float:
    kind = kind_of(row)
    if kind == "captioning":
        return _JUDGED
    verdict = parsers.tempcompass_rule(kind, row.output, row.gold, row.question)
    return _JUDGED if verdict is None else verdict


def _official_mvbench(row: Row) -> float:
    _, gold = _letters(row)
    return float(bool(gold) and parsers.mvbench_agrees(row.output, gold))


def _charades(row: Row) -> float:
    """How well the span of the text covers that of the truth."""
    truth = read_span(row.gold)
    if truth is None:
        raise ValueError(f"score: row {row.id}: gold {row.gold!r} is no span")
    span = lmms_parsers.charades_span(row.output)
    return 0.0 if span is None else overlap(span, truth)


def _lmms_mmvu(row: Row) -> float:
    if kind_of(row) == OPEN_ENDED:
        return 1.0 if lmms_parsers.mmvu_open(row.output, row.gold) else _JUDGED
    letters, gold = _letters(row)
    texts = dict(zip(letters, split_options(row.options)[1], strict=False))
    return float(bool(gold) and lmms_parsers.mmvu_choice(row.output, gold, texts.get(gold)))


def _official_choice(row: Row) -> float:
    return _by_options(lambda text, letters, _: parsers.first_capital(text, letters))(row)


def _lmms_choice(row: Row) -> float:
    return _by_options(lambda text, letters, _: lmms_parsers.general_letter(text, letters))(row)


def _among(
    read: Callable[[str, Sequence[str]], str], letters: Sequence[str]
) -> Callable[[Row], float]:
    """A scorer that looks for these letters, whichever options a row has."""
    return _by_letter(lambda text: read(text, letters))


_OFFICIAL: dict[str, Callable[[Row], float]] = {
    "vsibench": _vsibench(parsers.vsibench_number),
    "videommmu": _mmmu(_by_options(lmms_parsers.mmmu_letter)),
    "mmvu": lambda row: _JUDGED,  # every answer goes to a judge
    "mvbench": _official_mvbench,
    "tempcompass": _tempcompass,
    "videommev2": _by_letter(parsers.videomme_v2_letter),
    "videoholmes": _by_letter(parsers.video_holmes_letter),
    "scivideobench": _by_letter(parsers.scivideobench_letter),
    "videomathqa": _among(parsers.first_capital, "ABCDE"),
    "videomme": _among(parsers.first_capital, "ABCD"),
    "lvbench": _by_letter(parsers.lvbench_letter),
    "mlvu": _by_letter(parsers.mlvu_letter),
    "longvideobench": _by_letter(parsers.longvideobench_letter),
    "charadessta": _charades,
}
_LMMS: dict[str, Callable[[Row], float]] = {
    "vsibench": _vsibench(lmms_parsers.number),
    "videommmu": _mmmu(_lmms_choice),
    "mmvu": _lmms_mmvu,
    "mvbench": _by_letter(lmms_parsers.mvbench_letter),
    "tempcompass": _tempcompass,
    "videomme": _among(lmms_parsers.general_letter, "ABCD"),
    "lvbench": _among(lmms_parsers.general_letter, "ABCD"),
    "mlvu": _among(lmms_parsers.general_letter, "ABCD"),  # E and F can never be right there
    "videommev2": _by_options(lambda text, _, texts: lmms_parsers.videomme_v2_letter(text, texts)),
    "videoholmes": _by_options(lmms_parsers.video_holmes_letter),
    "scivideobench": _by_letter(parsers.scivideobench_letter),
    "videomathqa": _among(parsers.first_capital, "ABCDE"),
    "longvideobench": _by_letter(parsers.longvideobench_letter),
    "charadessta": _charades,
}
_NAMES = tuple(sorted({*_OFFICIAL, *_LMMS}, key=len, reverse=True))
