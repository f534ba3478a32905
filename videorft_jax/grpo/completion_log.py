"""The file `completions.jsonl` of a run: every completion with its rewards and its advantage."""

import json
import pathlib

import jax
import numpy as np

from videorft_jax.data.loader.steps import Step
from videorft_jax.grpo.judge import Verdict
from videorft_jax.metrics.tracker import drop_lines
from videorft_jax.rollout.results import Rollout

COMPLETIONS = "completions.jsonl"


class CompletionLog:
    """Appends one JSON line per completion: question, answer, text, rewards and advantage.

    Process p > 0 writes `completions-p.jsonl`. A run that goes on from a checkpoint draws the
    completions since then again, so lines of `start_step` and later are dropped first.
    """

    def __init__(self, workdir, start_step: int):
        number = jax.process_index()
        name = COMPLETIONS if not number else COMPLETIONS.replace(".", f"-{number}.")
        path = pathlib.Path(workdir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_lines(path, start_step)
        self._file = path.open("a")

    def write(
        self, number: int, step: Step, rollout: Rollout, verdict: Verdict, advantages: np.ndarray
    ) -> None:
        """Appends the completions of one batch to those of step `number`.

        advantages: float32 [B, R].
        """
        for row in np.flatnonzero(step.valid):
            record = step.records[row][0]
            for r, text in enumerate(verdict.texts[row]):
                line = {
                    "step": number,
                    "problem_id": record.problem_id,
                    "problem_type": record.problem_type,
                    "problem": record.problem,
                    "solution": record.solution,
                    "completion": text,
                    "length": int(rollout.lengths[row, r]),
                    "stopped": bool(rollout.stopped[row, r]),
                    "rewards": {
                        name: None if np.isnan(array[row, r]) else float(array[row, r])
                        for name, array in verdict.scores.items()
                    },
                    "total": float(verdict.total[row, r]) if verdict.valid[row, r] else None,
                    "advantage": float(advantages[row, r]),
                }
                self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
