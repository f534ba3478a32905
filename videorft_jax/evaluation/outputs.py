"""The outputs of finished or running evaluations, read back for scoring and comparing."""

import json
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from videorft_jax.evaluation.scoring.score import has_answer, score_outputs

log = logging.getLogger(__name__)

RECORDS = "records.jsonl"  # beside the completions of a benchmark


def read_outputs(folder: str | pathlib.Path, name: str = "") -> list[dict[str, Any]]:
    """The completions below a folder, of one evaluation or of one for each benchmark.

    name: the benchmark of rows whose records name none; "" stands for the name of their folder.

    A row has benchmark, id, rollout, question_type, gold, output, options, question, categories,
    cluster, variant (of the prompt), judged (what a judge is asked about a caption), score (of the
    run itself), reason ("" where the clip was read), shortened (the frames of a clip that was shown
    with fewer, else None), stopped, finite.

    The rows of a benchmark stand in the order of its records. Of records with the same id all but
    the first have their place behind it, as in "7#12". Raises ValueError where there are no
    completions, and where two folders hold those of one benchmark.
    """
    root = pathlib.Path(folder)
    own, below = (sorted(root.glob(f"{part}completions*.jsonl")) for part in ("", "*/"))
    if not own and not below:
        raise ValueError(f"{folder}: no completions.jsonl; give the workdir of videorft evaluate")
    if own and below:
        log.warning(
            "%s: has completions of its own; those of %s are left out, give that folder by itself",
            folder, ", ".join(sorted({str(path.parent) for path in below})),
        )  # fmt: skip
    rows: dict[tuple, dict[str, Any]] = {}
    places: dict[str, pathlib.Path] = {}  # Here each benchmark has the folder of its rows.
    for path in own or below:
        source = path.parent / RECORDS
        records = _read_lines(source) if source.exists() else None
        for row in _read_lines(path):
            if "outcome" not in row:
                raise ValueError(f"{path}: is not of an evaluation; give one of videorft evaluate")
            try:
                record = {} if records is None else records[row["index"]]
                made = _join(row, record, name or path.parent.name)
            except IndexError:
                raise ValueError(
                    f"{source}: has no row {row['index']}, which {path} answers; repeat the "
                    "evaluation, which writes it"
                ) from None
            except KeyError as error:
                raise ValueError(
                    f"{path}: a row has no {error}; repeat its evaluation, which mends it"
                ) from None
            other = places.setdefault(made["benchmark"], path.parent)
            if other != path.parent:
                raise ValueError(
                    f"{other}, {path.parent}: both answer {made['benchmark']}; give one by itself"
                )
            rows[made["benchmark"], row["index"], made["rollout"]] = made
    return _name_apart({name: rows[name] for name in sorted(rows)})


def find_common_name(folders: Sequence[str | pathlib.Path]) -> str:
    """The name for `read_outputs` by which evaluations of one record file are told to be of the
    same questions, however their folders are called; "" where they are not all of one file."""
    digests = {_digest_of_records(pathlib.Path(folder)) for folder in folders}
    if len(digests) > 1 or None in digests:
        return ""
    names = {pathlib.Path(folder).absolute().name for folder in folders}
    return names.pop() if len(names) == 1 else "records"


def _digest_of_records(folder):
    """The digest of the record file that the completions of a folder answer; None for benchmarks,
    whose records name them, and where no evaluation says it."""
    if (folder / RECORDS).exists():
        return None
    try:
        body = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return body["settings"]["records"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name_apart(rows):
    """The rows of (benchmark, index, rollout), those of different records under different ids."""
    seen: dict[tuple, int] = {}
    for (benchmark, index, _), row in rows.items():
        if seen.setdefault((benchmark, row["id"]), index) != index:
            row["id"] = f"{row['id']}#{index}"
    return list(rows.values())


def rescore(rows: Sequence[dict[str, Any]], scorer: str) -> list[dict[str, Any]]:
    """The rows with the scores of another scorer, in their order, none left out.

    `score` is None and `outcome` says why where a row was never shown to the model ("undecodable"),
    must be read by a judge ("open"), or has a ground truth that cannot be read ("failed"). Else it
    is "scored", or "unparsed" where nobody can read an answer in the output. Raises ValueError for
    an unknown scorer.
    """
    score_outputs([], scorer)
    return [row | _score(row, scorer) for row in rows]


def _score(row, scorer):
    if row["reason"]:
        return {"score": None, "outcome": "undecodable"}
    try:
        (value,) = score_outputs([row], scorer)
        is_parsed = has_answer(row)
    except ValueError as error:
        log.warning("%s: %s", row["benchmark"], error)
        return {"score": None, "outcome": "failed"}
    if math.isnan(value):
        return {"score": None, "outcome": "open"}
    return {"score": value, "outcome": "scored" if is_parsed else "unparsed"}


def _read_lines(path):
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a line without its end was cut off
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; repeat its evaluation, which mends it") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: holds a line that is no object; repeat its evaluation")
    return rows


def _join(row, record, folder):
    fields = {name: record.get(name, row.get(name)) for name in ("problem_type", "solution")}
    return {
        "benchmark": record.get("benchmark", folder),
        "id": str(record.get("problem_id", row["problem_id"] or row["index"])),
        "rollout": row["rollout"],
        "question_type": record.get("question_type") or fields["problem_type"] or "",
        "gold": fields["solution"] or "",
        "output": row["completion"] or "",
        "options": record.get("choices") or [],
        "question": record.get("problem") or row["problem"] or "",
        "categories": record.get("categories") or {"type": fields["problem_type"] or ""},
        "cluster": record.get("cluster") or row["path"],
        "variant": record.get("variant") or "",
        "judged": record.get("judged") or "",
        "score": row["score"],
        "reason": row["reason"],
        "shortened": row.get("shortened"),
        "stopped": row["stopped"],
        "finite": row["finite"],
    }
