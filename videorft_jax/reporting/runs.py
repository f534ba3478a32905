"""Reads what a run wrote, for a page: of SFT, of GRPO, or of an evaluation.

A run that is still going, was killed or is half written is read as far as it goes. What is missing
is said in the notes of the page.
"""

import dataclasses
import json
import pathlib
from typing import Any

from etils import epath

from videorft_jax.checkpoints import manifest
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.reporting.groups import Completion, Group
from videorft_jax.rewards.answers import extract_answer, first_block

# The tables of a config that a page shows something of.
_SECTIONS = ("model", "data", "train", "weights")
METRICS, COMPLETIONS, RESULTS = "metrics.jsonl", "completions*.jsonl", "results.json"
CONFIG = "config.json"  # the options of a run, from its start
_TOLERANCE = 1e-5  # between a total and the sum of its rewards; totals are kept in float32


@dataclasses.dataclass
class Run:
    """One work directory.

    kind: sft, grpo or evaluation. config: the options of the run, or the settings of an evaluation;
    {} where they are not known. contract: the media contract, None where it is not known. results:
    those of an evaluation. notes: what a reader of the page should know about missing parts.
    """

    folder: pathlib.Path
    kind: str
    metrics: list[dict[str, Any]]
    groups: list[Group]
    config: dict[str, Any]
    contract: MediaContract | None
    results: dict[str, Any]
    notes: list[str]


def read_run(folder: str | pathlib.Path) -> Run:
    """The run in a work directory.

    Raises ValueError for a folder that is not there, that no run wrote to, or that another version
    wrote in a form that cannot be read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the work directory of a run")
    notes: list[str] = []
    metrics = _read_metrics(folder, notes)
    rows = [line for path in sorted(folder.glob(COMPLETIONS)) for line in _read_lines(path, notes)]
    body = _read_json(folder / RESULTS)
    if "settings" in body:
        if body.get("results") is None:  # The evaluation goes on, or was stopped.
            body["results"] = {}
        _check_tables(folder, RESULTS, body, "settings", "results")
        _check_tables(folder, RESULTS, body["settings"], *_SECTIONS)
        contract = _make_contract(body["settings"].get("media"), notes)
        groups = _group(rows, _read_evaluated, body["settings"], folder)
        results = body["results"]
        _check_tables(folder, RESULTS, results, "by_type")
        _check_tables(folder, RESULTS, results.get("by_type", {}), *results.get("by_type", {}))
        if not results:
            notes.append("The evaluation has not ended; its results are still missing.")
        return Run(folder, "evaluation", [], groups, body["settings"], contract, results, notes)
    if not metrics and not rows:
        paths = [path for name in (METRICS, COMPLETIONS) for path in folder.glob(f"*/{name}")]
        inside = sorted({path.parent.name for path in paths})
        hint = f"; it holds the runs {', '.join(inside)}, give one of them" if inside else ""
        if folder.parent.name == "checkpoints":
            hint = f"; it is a step of the run {folder.parent.parent}, give that"
        hint = hint or f"; a run writes {METRICS} there with its first step"
        raise ValueError(f"{folder}: no {METRICS} and no completions{hint}")
    meta = _read_meta(folder, notes)
    config = meta.get("config") or _read_json(folder / CONFIG)
    _check_tables(folder, CONFIG, config, *_SECTIONS)
    groups = _group(rows, _read_sampled, config, folder)
    if rows and metrics and metrics[-1]["step"] > rows[-1].get("step", 0):
        notes.append(f"Completions end with step {rows[-1].get('step')}.")
    total = config.get("train", {}).get("max_steps")
    if metrics and isinstance(total, int) and metrics[-1]["step"] < total:
        notes.append(f"The run is at step {metrics[-1]['step']} of at most {total}.")
    contract = _make_contract(meta.get("media"), notes)
    return Run(folder, "grpo" if rows else "sft", metrics, groups, config, contract, {}, notes)


def _check_tables(folder, file, body, *names):
    for name in names:
        if not isinstance(body.get(name, {}), dict):
            raise _other_version(folder, file, f"{name}: no table")


def _other_version(folder, what, reason):
    return ValueError(
        f"{folder}: {what} of another version ({reason}); report them with the version that wrote"
        " them"
    )


def _read_metrics(folder, notes):
    """The logged lines, of each its numbers."""
    rows = _read_lines(folder / METRICS, notes)
    if any(not isinstance(row.get("step"), int) for row in rows):
        raise _other_version(folder, METRICS, "a line without the number of its step")
    return [
        {name: value for name, value in row.items() if isinstance(value, int | float)}
        for row in rows
    ]


def _read_lines(path, notes):
    """Rows of a JSONL file; lines that do not parse are counted in a note."""
    if not path.is_file():
        return []
    rows, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn += 1
    if torn:
        notes.append(f"{torn} lines of {path.name} are torn and left out.")
    return rows


def _read_json(path):
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _read_meta(folder, notes):
    """What the newest readable checkpoint says about its run."""
    for path in sorted((folder / "checkpoints").glob("[0-9]*"), reverse=True):
        try:
            return manifest.read(epath.Path(path))["meta"]
        except (ValueError, KeyError):
            continue
    notes.append("No checkpoint yet, and so no media contract: the clips are not shown.")
    return {}


def _make_contract(fields, notes):
    if not fields:
        return None
    try:
        if not isinstance(fields, dict):
            raise ValueError("it is no table")
        return MediaContract.from_dict({k: v for k, v in fields.items() if k != "digest"})
    except ValueError as error:
        notes.append(f"The media contract is of another version ({error}); no frames are shown.")
        return None


def _group(rows, read, settings, folder):
    """Groups in the order of their first lines; `read(row, settings)` gives one completion."""
    found: dict[tuple, dict] = {}
    for row in rows:
        try:
            record = (row["problem_id"], row.get("problem"), row.get("path"))  # Ids may repeat.
            key = (row.get("step"), row.get("index", record))
            completion = read(row, settings)
            group = found.setdefault(key, {"row": row, "completions": []})
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise _other_version(folder, "completions", reason) from None
        if completion is not None:
            group["completions"].append(completion)
    return [
        Group(
            step=row.get("step"),
            problem_id=str(row["problem_id"] if row["problem_id"] is not None else row["index"]),
            problem_type=row["problem_type"] or "",
            problem=row["problem"] or "",
            solution=str(row["solution"] or ""),
            clips=tuple(filter(None, [row.get("path")])),
            completions=tuple(group["completions"]),
            reason=row.get("reason", ""),
        )
        for group in found.values()
        for row in [group["row"]]
    ]


def _read_sampled(row, config):
    """A completion of GRPO."""
    flags, options = set(), config.get("reward", {})
    if not row["stopped"]:
        flags.add("truncated")
    mode = options.get("mode", "strict")
    text = row["completion"]
    if (extract_answer(text) if mode == "strict" else first_block(text, "answer")) is None:
        flags.add("unparseable")
    if _is_gated(row, config):
        flags.add("gated")
    why = _why_untrained(row, config)
    if why:
        flags.add("untrained")
    if row.get("given"):
        flags.add("given")
    return Completion(
        text, row["length"], row["rewards"], row["total"], row["advantage"], frozenset(flags), why
    )


def _why_untrained(row, config):
    """The reason why nothing was learnt from a completion, "" where something was: the run's own
    word, and in runs of versions that did not write it what can be seen from outside."""
    if "not_trained" in row:
        return row["not_trained"]
    if row["total"] is None:
        return "it has no reward"
    if config.get("grpo", {}).get("mask_truncated") and not row["stopped"]:
        return "it has no end"
    return "its advantage is 0" if row["advantage"] == 0 else ""


def _is_gated(row, config):
    """Whether the total lacks a reward that the completion has."""
    weights = dict(config.get("rewards", ()))
    values = row["rewards"]
    if row["total"] is None or not weights or any(values.get(name) is None for name in weights):
        return False
    return sum(weights[name] * values[name] for name in weights) - row["total"] > _TOLERANCE


def _read_evaluated(row, _):
    """A completion of an evaluation; None for a record that was never shown to the model."""
    if row["completion"] is None:
        return None
    flags = {flag for flag, on in (("truncated", not row["stopped"]),) if on}
    if row["outcome"] == "unparseable":
        flags.add("unparseable")
    rewards = {"accuracy": row["score"]}
    return Completion(
        row["completion"], row["completion_tokens"], rewards, row["score"], None, frozenset(flags)
    )
