"""The held-out accuracy of a run while it trains: which step is best, and when to stop.

Every `validate.every` steps, and after the last one, the model of the moment answers the records of
`validate.records`. What it scores stands in `metrics.jsonl` under `validate/` and, a line each, in
`validation.jsonl`, from which a run that was killed knows again what was best.
"""

import json
import logging
import math
import os
import pathlib
from collections.abc import Callable

import jax

from videorft_jax.data.naming import naming
from videorft_jax.metrics.tracker import drop_lines
from videorft_jax.parallel.processes import gather
from videorft_jax.training.options import ValidateOptions
from videorft_jax.training.step import TrainState

log = logging.getLogger(__name__)

VALIDATION = "validation.jsonl"
Measure = Callable[[TrainState], dict[str, float]]


class Validation:
    """What a run's held-out records have said so far.

    folder: the run's local folder, in which process 0 keeps the file. start: the step that the run
    goes on from; lines of later steps are dropped, since those steps are taken again. measure:
    answers the records with the weights of a state and gives at least "accuracy", NaN where no
    record has a score; all processes call it together.
    """

    def __init__(self, options: ValidateOptions, folder: str, start: int, measure: Measure):
        self._options, self._measure = options, measure
        self._path = pathlib.Path(folder) / VALIDATION
        rows: list[dict[str, float]] = []
        if jax.process_index() == 0:
            drop_lines(self._path, start + 1)
            if self._path.exists():
                rows = [json.loads(line) for line in self._path.read_text().splitlines()]
        self._rows: list[dict[str, float]] = gather(rows)[0]

    def is_due(self, number: int, total: int) -> bool:
        """Whether the records are asked after step `number` of `total`."""
        return number % self._options.every == 0 or number == total

    def take(self, number: int, state: TrainState) -> dict[str, float]:
        """Asks the records after step `number`; returns what `metrics.jsonl` gets."""
        found = self._measure(state)
        row = {"step": number} | {
            name: None if math.isnan(value) else value for name, value in found.items()
        }
        self._rows.append(row)
        if jax.process_index() == 0:
            with naming(self._path), self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        log.info(
            "step %d: held-out accuracy %.4f [%.4f, %.4f], best %s at step %s", number,
            *(found.get(name, math.nan) for name in ("accuracy", "low", "high")),
            "none" if self.best is None else f"{self._accuracy_of(self.best):.4f}", self.best,
        )  # fmt: skip
        return {f"validate/{name}": value for name, value in found.items()}

    @property
    def last(self) -> int | None:
        """The step of the last round; None before the first."""
        return int(self._rows[-1]["step"]) if self._rows else None

    @property
    def best(self) -> int | None:
        """The step with the highest accuracy, the earliest where several have it; None before the
        first that has one."""
        scored = [row for row in self._rows if row["accuracy"] is not None]
        return int(max(scored, key=lambda row: row["accuracy"])["step"]) if scored else None

    @property
    def has_stalled(self) -> bool:
        """Whether the last `validate.patience` times were no better than the best before them."""
        patience = self._options.patience
        later = [row for row in self._rows if self.best is not None and row["step"] > self.best]
        return bool(patience) and len(later) >= patience

    def _accuracy_of(self, step):
        return next(row["accuracy"] for row in self._rows if row["step"] == step)
