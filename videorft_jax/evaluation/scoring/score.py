"""What a model's outputs are worth under a scorer chosen by name; no model is needed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videorft_jax.evaluation.scoring import harnesses, robust
from videorft_jax.evaluation.scoring.rows import Row, make_row

SCORERS: dict[str, Callable[[Row], float]] = {
    "robust": robust.score,
    "official": harnesses.official,
    "lmms": harnesses.lmms,
    "videorft": harnesses.videorft,
}


def has_answer(fields: Mapping[str, Any]) -> bool:
    """Whether the robust scorer reads any answer in the output of a row as in `score_outputs`."""
    return robust.has_answer(make_row(fields, 0))


def score_outputs(rows: Sequence[Mapping[str, Any]], scorer: str = "robust") -> list[float]:
    """Scores answered questions of any benchmarks.

    Args:
      rows: dicts with `question_type`, `gold` and `output`, and where there are any `benchmark`,
        `options` (a list, with or without letters), `question` and `id`.
      scorer: `robust` reads what a person would read; `official`, `lmms` and `videorft` give what
        the benchmark's own script, lmms-eval and VideoRFT's script give, faults included.

    Returns:
      one number a row: 1.0, 0.0, a fraction (regression, spans), or NaN where a judge is needed.

    Raises:
      ValueError: an unknown scorer or question type, a missing field, a gold that is no number.
    """
    if scorer not in SCORERS:
        raise ValueError(f"score: scorer is {scorer!r}; choose one of {', '.join(SCORERS)}")
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise ValueError(f"score: rows are a {type(rows).__name__}; give a list of dicts")
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("score: a row is no dict; give question_type, gold and output by name")
    made = [make_row(row, place) for place, row in enumerate(rows)]
    return [SCORERS[scorer](row) for row in made]
