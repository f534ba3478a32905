"""Three scorers that give what other tools give: VideoRFT's script, each benchmark, lmms-eval."""

import re
from collections.abc import Callable

import numpy as np

from videorft_jax.evaluation.scoring import harness_parsers as parsers
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
    """What lmms-eval gives without a judge; NaN where it asks one."""
    return _LMMS.get(_name(row), _lmms_choice)(row)


def _name(row: Row) -> str:
    """The benchmark's name in lower case, without marks and the name of its part."""
    name = re.sub(r"[^a-z0-9]", "", row.benchmark.casefold())
    return next((known for known in _NAMES if name.startswith(known)), name)


def _letters(row: Row) -> tuple[list[str], str]:
    labels, texts = options_of(row)
    return labels, gold_label(row, labels, texts) or ""


def _by_letter(read: Callable[[str, list[str]], str]) -> Callable[[Row], float]:
    """A scorer that compares the letter which `read` (text, letters) finds with the gold one."""

    def score(row: Row) -> float:
        if kind_of(row) != "multiple choice":
            return _JUDGED
        letters, gold = _letters(row)
        return float(bool(gold) and read(row.output, letters) == gold)

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


def _official_mmmu(row: Row) -> float:
    if kind_of(row) != "multiple choice":
        return _mmmu_open(row)
    letters, gold = _letters(row)
    _, texts = split_options(row.options)
    return float(bool(gold) and parsers.mmmu_letter(row.output, letters, texts) == gold)


def _mmmu_open(row: Row) -> float:
    """A number that equals the truth to two places, or a truth that stands in the text."""
    truth = _plain_float(row.gold)
    if truth is None:
        return float(row.gold.strip().lower() in row.output.strip().lower())
    numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?", row.output)
    values = [round(float(number.replace(",", "")), 2) for number in numbers]
    return float(round(truth, 2) in values)


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
    """The first two numbers of the text as seconds, over the span of the truth."""
    truth = read_span(row.gold)
    numbers = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", row.output)]
    if truth is None:
        raise ValueError(f"score: row {row.id}: gold {row.gold!r} is no span")
    return overlap((numbers[0], numbers[1]), truth) if len(numbers) > 1 else 0.0


def _lmms_mmvu(row: Row) -> float:
    """The gold letter as a word anywhere, or a longer word of the gold option. For open answers an
    empty prediction and any part of the gold are right."""
    text = row.output.strip()
    if kind_of(row) == OPEN_ENDED:
        return 1.0 if text.lower() in row.gold.lower() else _JUDGED
    letters, gold = _letters(row)
    _, texts = split_options(row.options)
    words = texts[letters.index(gold)].lower().split() if gold in letters[: len(texts)] else []
    keys = [word for word in words if len(word) > 3]
    found = re.search(rf"\b{gold}\b", text) or any(word in text.lower() for word in keys)
    return float(bool(gold) and bool(found))


def _official_choice(row: Row) -> float:
    return _by_letter(parsers.first_capital)(row)


def _lmms_choice(row: Row) -> float:
    return _by_letter(parsers.lmms_letter)(row)


def _four(read):
    return _by_letter(lambda text, letters: read(text, [x for x in letters if x in "ABCD"]))


_OFFICIAL: dict[str, Callable[[Row], float]] = {
    "vsibench": _vsibench(parsers.vsibench_number),
    "videommmu": _official_mmmu,
    "mmvu": lambda row: _JUDGED,  # every answer goes to a judge
    "mvbench": _official_mvbench,
    "tempcompass": _tempcompass,
    "videommev2": _by_letter(parsers.videomme_v2_letter),
    "videoholmes": _by_letter(parsers.video_holmes_letter),
    "scivideobench": _by_letter(parsers.scivideobench_letter),
    "videomme": _four(parsers.first_capital),
    "lvbench": _by_letter(lambda text, letters: parsers.lvbench_letter(text)),
    "mlvu": _by_letter(lambda text, letters: parsers.mlvu_letter(text)),
    "longvideobench": _by_letter(parsers.first_capital),
    "charadessta": _charades,
}
_LMMS: dict[str, Callable[[Row], float]] = {
    "vsibench": _vsibench(parsers.lmms_number),
    "videommmu": lambda row: (
        _lmms_choice(row) if kind_of(row) == "multiple choice" else _mmmu_open(row)
    ),
    "mmvu": _lmms_mmvu,
    "mvbench": _by_letter(lambda text, letters: parsers.lmms_mvbench_letter(text)),
    "tempcompass": _tempcompass,
    "lvbench": _four(parsers.lmms_letter),
    "mlvu": _four(parsers.lmms_letter),  # golds E and F can never be right there
    "videommev2": _by_letter(parsers.videomme_v2_letter),
    "scivideobench": _by_letter(parsers.scivideobench_letter),
    "videomathqa": _by_letter(parsers.first_capital),
    "longvideobench": _by_letter(parsers.first_capital),
    "charadessta": _charades,
}
_NAMES = tuple(sorted({*_OFFICIAL, *_LMMS}, key=len, reverse=True))
