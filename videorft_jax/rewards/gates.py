"""The gates of rewards that count only where the answer is right: above what accuracy they open."""

from collections.abc import Mapping, Sequence

import numpy as np

from videorft_jax.rewards.accuracy import RULES

# Above what accuracy the gate of a type opens. One shared word gives a free-form answer a positive
# ROUGE, so a gate at 0 is always open (defect 5); the strict values are our choice.
GATES: dict[str, tuple[tuple[str, float], ...]] = {
    "repo": (),
    "paper": (),
    "strict": (("OCR", 0.5), ("free-form", 0.3), ("regression", 0.5)),
}


def check_gates(gates: Sequence[tuple[str, float]]) -> None:
    """Raises ValueError for (problem type, threshold) pairs that change nothing: of a type that
    there is not, and of a threshold that no accuracy exceeds."""
    known = RULES["strict"]
    for kind, threshold in gates:
        if kind not in known:
            raise ValueError(f"rewards: a gate names {kind!r}; name one of {', '.join(known)}")
        if threshold >= 1:
            raise ValueError(
                f"rewards: the gate of {kind} is {threshold}, which no accuracy exceeds; give a "
                "number below 1"
            )


def open_gate(
    accuracy: np.ndarray, problem_types: Sequence[str], thresholds: Mapping[str, float]
) -> np.ndarray:
    """bool [B, R]: accuracy [B, R] exceeds the threshold (default 0) of the row's type; NaN no."""
    limits = np.array([thresholds.get(kind, 0.0) for kind in problem_types], np.float64)
    return accuracy > limits[:, None]


def close_gate(scores: np.ndarray, is_open: np.ndarray) -> np.ndarray:
    """Scores [B, R] with 0 where the gate is closed; a failed score stays NaN, open or not, so
    that a broken reward cannot leave only the wrong answers of a group in the batch."""
    return np.where(is_open | np.isnan(scores), scores, 0.0)
