"""Scored outputs as figures of each benchmark, and as a table."""

import collections
from collections.abc import Sequence
from typing import Any

from videorft_jax.evaluation.headline import by_category, headline
from videorft_jax.evaluation.intervals import mean_interval


def tabulate(rows: Sequence[dict[str, Any]], scorer: str) -> dict[str, dict[str, Any]]:
    """The figures of each benchmark, from rows of `outputs.rescore`.

    score: the benchmark's headline, made as `how` says. all_rows: the mean with every row in the
    denominator, where rows that were never shown or wait for a judge count as wrong.
    decodable_rows, low, high: the mean over the rows that have a score, with its interval over
    clips. Counts of rows, of those that are undecodable (their media are damaged), absent (there is
    no file) or open (a judge must read them), and of truncated outputs. categories: the mean of
    each value of each category.
    """
    grouped = collections.defaultdict(list)
    for row in rows:
        grouped[row["benchmark"]].append(row)
    return {name: _figures(own, name, scorer) for name, own in sorted(grouped.items())}


def _figures(rows, name, scorer):
    scored = [row for row in rows if row["score"] is not None]
    counts = {
        "rows": len(rows),
        "scored": len(scored),
        "undecodable": sum(row["reason"] not in ("", "missing") for row in rows),
        "absent": sum(row["reason"] == "missing" for row in rows),
        "open": sum(row["outcome"] == "open" for row in rows),
        "truncated": sum(not row["reason"] and not row["stopped"] for row in rows),
    }
    if not scored:
        empty = dict.fromkeys(("score", "all_rows", "decodable_rows", "low", "high"))
        return counts | empty | {"how": "nothing has a score", "categories": {}}
    score, how = headline(scored, name, scorer)
    interval = mean_interval([row["score"] for row in scored], [row["cluster"] for row in scored])
    categories = sorted({key for row in scored for key in row["categories"]})
    return counts | {
        "score": score,
        "how": how,
        "all_rows": sum(row["score"] for row in scored) / len(rows),
        "decodable_rows": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "categories": {key: by_category(scored, key) for key in categories if key != "group"},
    }


def format_scores(table: dict[str, dict[str, Any]], scorer: str) -> str:
    """The table for people, a line a benchmark."""
    lines = [
        f"scorer {scorer}; intervals of 95 % over clips",
        f"{'benchmark':<16}{'score':>8}{'all rows':>10}{'decodable':>11}{'95 % interval':>17}"
        f"{'rows':>7}{'absent':>8}{'undecodable':>13}{'open':>6}{'truncated':>11}",
    ]
    for name, own in table.items():
        numbers = ["-"] * 3
        interval = "-"
        if own["score"] is not None:
            numbers = [f"{own[key]:.4f}" for key in ("score", "all_rows", "decodable_rows")]
            interval = f"{own['low']:.4f} - {own['high']:.4f}"
        lines.append(
            f"{name:<16}{numbers[0]:>8}{numbers[1]:>10}{numbers[2]:>11}{interval:>17}"
            f"{own['rows']:>7}{own['absent']:>8}{own['undecodable']:>13}{own['open']:>6}"
            f"{own['truncated']:>11}"
        )
        lines.append(f"    score: {own['how']}")
    return "\n".join(lines)
