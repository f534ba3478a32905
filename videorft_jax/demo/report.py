"""What the demo says at its end: accuracies, paired differences, and where everything is."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from videorft_jax.evaluation.summary import paired_difference, summarise

REPORT, ANSWERS = "report.html", "answers.html"  # pages in the work directory
STAGES = {
    "before": "before SFT",
    "after_sft": "after SFT",
    "after_grpo": "after GRPO",
    "after_more_sft": "control: more SFT instead",
    "blank": "control: GRPO, video blanked",
}
DIFFERENCES = (
    ("after_sft", "after_grpo", "GRPO - SFT"),
    ("after_sft", "after_more_sft", "more SFT - SFT"),
    ("after_more_sft", "after_grpo", "GRPO - more SFT"),
    ("blank", "after_grpo", "GRPO - GRPO blanked"),
)


def collect(folder: pathlib.Path, questions: Sequence[str]) -> dict[str, Any]:
    """The results of a finished demo in its work directory.

    questions: kinds of question, which the held-out records ask in turn.
    """
    seconds = {path.name: float(path.read_text()) for path in (folder / "done").iterdir()}
    rows = {name: _read_lines(folder / f"evaluations/{name}/completions.jsonl") for name in STAGES}
    kinds = [questions[row["index"] % len(questions)] for row in rows["before"]]
    metrics = _read_lines(folder / "grpo/metrics.jsonl")
    sampled = [line["rewards/accuracy/mean"] for line in metrics]
    tenth = max(1, len(sampled) // 10)
    ends = [float(np.mean(part)) for part in (sampled[:tenth], sampled[-tenth:])]
    return compare(rows, kinds) | {"seconds": seconds, "sampled": ends}


def _read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare(rows: dict[str, list[dict]], kinds: Sequence[str]) -> dict[str, Any]:
    """Accuracy of each stage, and by kind of question, with 95 % intervals, and paired differences.

    rows: stage -> rows of `evaluate_records`, one a record; kinds: that of each row.
    """
    accuracy: dict[str, dict] = {}
    for name, own in rows.items():
        parts = {"all": own}
        for row, kind in zip(own, kinds, strict=True):
            parts.setdefault(kind, []).append(row)
        accuracy[name] = {
            kind: [found[field] for field in ("accuracy", "low", "high")]
            for kind, found in ((kind, summarise(part)) for kind, part in parts.items())
        }
    differences = {
        label: list(paired_difference(rows[first], rows[second]))
        for first, second, label in DIFFERENCES
    }
    return {"num_clips": len(kinds), "accuracy": accuracy, "differences": differences}


def format_report(results: dict[str, Any], folder: pathlib.Path) -> str:
    """Markdown."""
    kinds = [kind for kind in results["accuracy"]["before"] if kind != "all"]
    lines = [
        f"seed {results['seed']}, {results['num_clips']} held-out clips, greedy, 95 % intervals",
        "",
        f"| model | accuracy | {' | '.join(kinds)} |",
        "|---" * (2 + len(kinds)) + "|",
    ]
    for name, label in STAGES.items():
        found = results["accuracy"][name]
        mean, low, high = found["all"]
        own = " | ".join(f"{found[kind][0]:.3f}" for kind in kinds)
        lines.append(f"| {label} | {mean:.3f} [{low:.3f}, {high:.3f}] | {own} |")
    lines += ["", "| difference, paired by clip | |", "|---|---|"]
    for label, (mean, low, high) in results["differences"].items():
        lines.append(f"| {label} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] |")
    first, last = results["sampled"]
    seconds = results["seconds"]
    spent = ", ".join(f"{name} {seconds[name]:.0f}" for name in ("clips", "siglip", "sft", "grpo"))
    mean, low, _ = results["differences"]["GRPO - SFT"]
    verdict = "beats" if low > 0 else "does not clearly beat"
    lines += [
        "",
        f"In this run GRPO {verdict} the SFT that it began with ({mean:+.3f}). Accuracy of its own"
        f" draws at temperature 1, first and last tenth of its steps: {first:.3f}, {last:.3f}.",
        f"Seconds: {spent}, all stages {sum(seconds.values()):.0f}.",
        "",
        f"gallery of GRPO      {folder}/{REPORT}",
        f"held-out answers     {folder}/{ANSWERS}, after SFT and after GRPO",
        f"clips and records    {folder}/clips",
        f"SigLIP               {folder}/siglip",
        f"model after GRPO     {folder}/grpo/hf",
        f"model after SFT      {folder}/sft/hf",
        f"answers, raw         {folder}/evaluations",
        f"rollouts and rewards {folder}/grpo/completions.jsonl",
        f"metrics              {folder}/grpo/metrics.jsonl, TensorBoard beside it",
        f"these numbers        {folder}/results.json",
        "",
    ]
    return "\n".join(lines)
