"""Stage 4b, difficulty: how often a checkpoint answers each question right, as columns of the sets.

`videorft pass_rate` draws the answers, of `QUESTIONS`, once as GRPO would, and if wanted without
the clip and with few frames. Its work directories are joined here by the digest of that file. Which
questions training reads is left to `data.filter` of the training; only a question that no teacher
and no rollout answered as its source does is kept out of the RL set, since its label is suspect.
"""

import array
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.data.records.opening import digest_records
from videorft_jax.data.records.pass_rates import FILE as PASS_RATES
from videorft_jax.data.records.pass_rates import write_pass_rates
from videorft_jax.evaluation.results_folder import COMPLETIONS

QUESTIONS, FILE = "questions.jsonl", "difficulty.jsonl"
PREFIX = "extra_curation_"


class Probe(NamedTuple):
    """records, weights: digests of the questions and of the checkpoint. answers: row of a question
    -> (scores, lengths in tokens) of its answers, NaN where there is none."""

    records: str
    weights: str
    answers: dict[int, tuple[array.array, array.array]]


def read_probes(folders: Mapping[str, str]) -> dict[str, Probe]:
    """The probes by name; folders: those of `videorft pass_rate`, by names of `options.PROBES`.
    Raises ValueError, one line, for a folder that holds no finished one."""
    if folders and "rollouts" not in folders:
        raise ValueError("difficulty: rollouts is missing; probes are compared with them")
    return {name: _read(name, pathlib.Path(folder)) for name, folder in folders.items()}


def _read(name: str, folder: pathlib.Path) -> Probe:
    try:
        with (folder / PASS_RATES).open(encoding="utf-8") as file:
            head = json.loads(file.readline())
        answers: dict[int, tuple[array.array, array.array]] = {}
        with (folder / COMPLETIONS).open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                own = answers.setdefault(row["index"], (array.array("f"), array.array("f")))
                for numbers, key in zip(own, ("score", "completion_tokens"), strict=True):
                    numbers.append(math.nan if row[key] is None else row[key])
        return Probe(head["records"], head["weights"], answers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "a row cannot be read"
        raise ValueError(
            f"difficulty.{name}={folder}: {detail}; give the work directory of a finished "
            "videorft pass_rate"
        ) from None


def fits(probes: Mapping[str, Probe], questions: pathlib.Path) -> bool:
    """Whether all probes are of these questions."""
    return {probe.records for probe in probes.values()} == {digest_records(questions)}


def measure(
    questions: pathlib.Path, probes: Mapping[str, Probe], gates: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """The row of each question, in their order. gates: the score that is exceeded by a right
    answer, by problem type; 0 for others. k counts the scored answers, std is that of their rewards
    themselves; stopped_early says that fewer were drawn than of other questions."""
    rollouts = probes["rollouts"]
    most = max((len(scores) for scores, _ in rollouts.answers.values()), default=0)
    with questions.open(encoding="utf-8") as file:
        for index, row in enumerate(map(json.loads, file)):
            gate = gates.get(row["problem_type"], 0.0)
            scores = _scores(rollouts, index)
            passes, teacher = int((scores > gate).sum()), row[f"{PREFIX}teacher_pass_rate"]
            known = {
                name: _scores(probe, index) > gate
                for name, probe in probes.items()
                if index in probe.answers
            }
            blind, few = known.get("blind"), known.get("few_frames")
            yield {
                "record": row[f"{PREFIX}record"],
                "k": len(scores),
                "passes": passes,
                "pass_rate": round(passes / len(scores), 4) if len(scores) else None,
                "mean": round(float(scores.mean()), 4) if len(scores) else None,
                "std": round(float(scores.std()), 4) if len(scores) else None,
                "stopped_early": len(rollouts.answers.get(index, ((), ()))[0]) < most,
                "suspect_label": bool(len(scores) and not passes and teacher == 0),
                "blind_passes": None if blind is None else round(float(blind.mean()), 4),
                "few_frame_pass": None if few is None else bool(few.mean() > 0.5),
                "checkpoint": rollouts.weights,
            }


def _scores(probe: Probe, index: int) -> np.ndarray:
    """Scores of one question, without those of answers that nothing could score: [k]."""
    scores = np.array(probe.answers.get(index, ((), ()))[0], np.float64)
    return scores[~np.isnan(scores)]


def count(rows: Iterable[dict[str, Any]], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Passes the rows on and counts them for the card: never, sometimes and always right."""
    names = ("questions", "never", "sometimes", "always", "no_score", "stopped_early", "suspects",
             "blind", "few_frames", "by_blind", "by_few_frames", "k")  # fmt: skip
    found |= dict.fromkeys(names, 0)
    for row in rows:
        rate = row["pass_rate"]
        kind = "no_score" if rate is None else {0: "never", 1: "always"}.get(rate, "sometimes")
        found[kind] += 1
        found["questions"] += 1
        found["stopped_early"] += row["stopped_early"]
        found["suspects"] += row["suspect_label"]
        found["blind"] += row["blind_passes"] is not None
        found["few_frames"] += row["few_frame_pass"] is not None
        found["by_blind"] += (row["blind_passes"] or 0) > 0.5
        found["by_few_frames"] += bool(row["few_frame_pass"])
        found["k"] = max(found["k"], row["k"])
        found["checkpoint"] = row["checkpoint"]
        yield row


def attach(
    read: Callable[[], Iterable[dict[str, Any]]], difficulty: pathlib.Path, *, drops_suspects: bool
) -> Iterator[dict[str, Any]]:
    """Rows of a set with the columns of their questions; both stand in the same order."""
    with difficulty.open(encoding="utf-8") as file:
        measured = map(json.loads, file)
        for row in read():
            found = next(own for own in measured if own["record"] == row[f"{PREFIX}record"])
            if drops_suspects and found["suspect_label"]:
                continue
            yield row | {f"{PREFIX}{name}": found[name] for name in found if name != "record"}


def carry_pass_rates(
    path: pathlib.Path, rl: pathlib.Path, questions: pathlib.Path, probe: Probe
) -> None:
    """Writes the pass rates of the RL set, for `data.pass_rates` of the training on it. They are
    those of the questions under other row numbers, since the RL set may hold fewer."""
    with questions.open(encoding="utf-8") as file:
        place = {json.loads(line)[f"{PREFIX}record"]: index for index, line in enumerate(file)}
    rows = []
    with rl.open(encoding="utf-8") as file:
        for index, row in enumerate(map(json.loads, file)):
            scores, lengths = probe.answers.get(place[row[f"{PREFIX}record"]], ((), ()))
            for score, length in zip(scores or [math.nan], lengths or [math.nan], strict=True):
                own = {"score": score, "completion_tokens": length}
                own = {key: None if math.isnan(value) else value for key, value in own.items()}
                rows.append({"index": index, "problem_id": row["problem_id"]} | own)
    write_pass_rates(path, rows, digest_records(rl), probe.weights)
