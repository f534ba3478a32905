"""The file `completions.jsonl` of a run: every completion with its rewards and its advantage."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from videorft_jax.data.naming import naming
from videorft_jax.grpo.dynamic_sampling import LEFT, PASSED
from videorft_jax.grpo.experience import Experience, taking_part
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.metrics.tracker import drop_lines

COMPLETIONS = "completions.jsonl"


class CompletionLog:
    """Appends one JSON line per completion: question, answer, text, rewards and advantage, and with
    tools its calls, each with the turn that made it and what came back.

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

    def write(self, number: int, part: Experience, fates: np.ndarray, options: GrpoOptions) -> None:
        """Appends the completions of one draw to those of step `number`.

        fates: where each group went, int [B]; see `dynamic_sampling`.
        """
        step, rollout, verdict = part.item, part.rollout, part.verdict
        lines: list[str] = []
        why, num_given = explain(part, fates, options), options.loss.num_given
        for row in np.flatnonzero(step.valid):
            record = step.records[row][0]
            for r, text in enumerate(verdict.texts[row]):
                line: dict[str, Any] = {
                    "step": number,
                    "problem_id": record.problem_id,
                    "problem_type": record.problem_type,
                    "path": record.path,
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
                    "advantage": float(part.advantages[row, r]),
                    "not_trained": why[row][r],
                }
                if rollout.calls is not None:
                    line["calls"] = rollout.calls[row][r]
                if num_given:
                    line["given"] = r >= len(verdict.texts[row]) - num_given
                lines.append(json.dumps(line) + "\n")
        with naming(self._file.name):
            self._file.writelines(lines)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with naming(self._file.name):
            self._file.close()


def explain(part: Experience, fates: np.ndarray, options: GrpoOptions) -> list[list[str]]:
    """Tells why nothing is learnt from each completion of a draw in its step, B lists of R reasons;
    empty where something is."""
    taking = taking_part(options, part.verdict, part.rollout)

    def reason(row, r):
        if not part.verdict.valid[row, r]:
            return "it has no reward"
        if not taking[row, r]:
            return "it has no end"
        if fates[row] == LEFT:
            return "its group waits for the next step"
        if fates[row] == PASSED and part.differing[row]:
            return "its group found no place"
        if fates[row] == PASSED:
            return f"{options.filter} is the same in its group"
        return "" if part.informative[row] else "all rewards of its group are the same"

    rows, rollouts = taking.shape
    return [[reason(row, r) for r in range(rollouts)] for row in range(rows)]
