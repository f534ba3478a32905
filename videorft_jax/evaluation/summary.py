"""From rows to figures: accuracy with its interval, what has no score, and paired comparisons.

How a completion counts is the decision worth knowing, and stands in every summary (`COUNTED`).
Nothing is scored 0 in silence: an answer that cannot be read is the model's fault and wrong, a
clip or a ground truth that cannot be read is not, and leaves its record out of the mean.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

from videorft_jax.evaluation.intervals import (
    METHOD,
    Interval,
    difference_interval,
    mean_interval,
)

COUNTED = {
    "accuracy": "mean over records with a score of the mean over their completions",
    "all_rows": "the same over all records, where those without a score count as wrong",
    "unparseable": "completions without an answer that can be read; scored 0",
    "failed": "completions whose record has no ground truth that can be read; left out",
    "quarantined": "records whose clip or row cannot be read, never shown to the model; left out",
    "shortened": "records whose prompt was too long and was shown with fewer frames; scored",
    "not_finite": "completions ended by logits that are not finite; scored by what was said before",
    "truncated": "completions ended by max_new_tokens; scored by what was said before",
}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all records and by problem type; `rows` are those of `evaluate_records`.

    accuracy, low, high (a 95 % interval, made as `interval` says; None where nothing has a score),
    all_rows (the accuracy with every record in the denominator), numbers of records, records with
    a score and completions, the counts that COUNTED explains, and the mean length of a completion
    in tokens.
    """
    kinds = sorted({row["problem_type"] for row in rows if row["problem_type"]})
    by_type = {
        kind: _figures([row for row in rows if row["problem_type"] == kind]) for kind in kinds
    }
    reasons = collections.Counter(row["reason"] for row in rows if row["reason"])
    whole = {"reasons": dict(sorted(reasons.items())), "by_type": by_type, "counted": COUNTED}
    return _figures(rows) | whole


def paired_difference(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]
) -> Interval:
    """By how much the accuracy of `second` is above that of `first`, with its 95 % interval.

    The mean is over the records that have a score in both; the interval is clustered by clip.
    """
    before, after = by_record(first), by_record(second)
    differences, clips = [], []
    for name in sorted(before.keys() & after.keys(), key=str):
        pair = [mean_score(rows[name]) for rows in (before, after)]
        if None not in pair:
            differences.append(pair[1] - pair[0])
            clips.append(before[name][0]["path"])
    return difference_interval(differences, clips)


def format_table(summary: dict[str, Any]) -> str:
    """The table for people, a line per problem type."""
    head = (
        f"{'type':<16}{'records':>8}{'scored':>8}{'accuracy':>10}{'95 % interval':>18}"
        f"{'unparseable':>13}{'truncated':>11}{'tokens':>9}"
    )
    lines = [head]
    for name, own in (*summary["by_type"].items(), ("all", summary)):
        accuracy, interval = "-", "-"
        if own["accuracy"] is not None:
            accuracy, interval = f"{own['accuracy']:.4f}", f"{own['low']:.4f} - {own['high']:.4f}"
        length = "-" if own["mean_length"] is None else f"{own['mean_length']:.1f}"
        lines.append(
            f"{name:<16}{own['num_records']:>8}{own['num_scored']:>8}{accuracy:>10}{interval:>18}"
            f"{own['unparseable']:>13}{own['truncated']:>11}{length:>9}"
        )
    lines.append(f"interval: {summary['interval']}; unparseable answers count as wrong")
    if summary["shortened"]:
        lines.append(f"{summary['shortened']} records were shown with fewer frames, to fit a row")
    if left := summary["num_records"] - summary["num_scored"]:
        reasons = "".join(f", {name} {count}" for name, count in summary["reasons"].items())
        lines.append(
            f"left out: {left} records ({summary['quarantined']} quarantined{reasons}); accuracy "
            f"with them as wrong: {summary['all_rows']:.4f}"
        )
    return "\n".join(lines)


def _figures(rows):
    """The figures of `summarise` without those by type."""
    records = list(by_record(rows).values())
    scored = [(own[0]["path"], score) for own in records if (score := mean_score(own)) is not None]
    clips, scores = [clip for clip, _ in scored], [score for _, score in scored]
    interval = mean_interval(scores, clips)
    accuracy, low, high = (None if math.isnan(value) else value for value in interval)
    said = [row for row in rows if row["completion_tokens"] is not None]
    lengths = [row["completion_tokens"] for row in said]
    outcomes = collections.Counter(row["outcome"] for row in rows)
    return {
        "accuracy": accuracy,
        "all_rows": sum(scores) / len(records) if records else None,
        "low": low,
        "high": high,
        "interval": METHOD,
        "num_records": len(records),
        "num_scored": len(scored),
        "num_completions": len(said),
        "unparseable": outcomes["unparseable"],
        "failed": outcomes["failed"],
        "quarantined": outcomes["quarantined"],
        "shortened": sum(any(row.get("shortened") for row in own) for own in records),
        "not_finite": sum(not row["finite"] for row in said),
        "truncated": sum(row["finite"] and not row["stopped"] for row in said),
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
    }


def by_record(rows):
    """The rows of each record, by (index, problem_id)."""
    found = collections.defaultdict(list)
    for row in rows:
        found[row["index"], row["problem_id"]].append(row)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def mean_score(rows):
    """The mean over the completions of one record that have a score, None where none has."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    return sum(scores) / len(scores) if scores else None
