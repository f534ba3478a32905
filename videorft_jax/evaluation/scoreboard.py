"""Scored outputs as figures of each benchmark, and as a table."""

import collections
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from videorft_jax.evaluation.headline import breakdown, headline
from videorft_jax.evaluation.intervals import mean_interval

_APART = {"missing": "absent", "too_many_tokens": "too_long"}  # reasons with counts of their own
_SHOWN = ("undecodable", "absent", "too_long", "open", "judged", "shortened", "unparsed",
          "truncated", "failed")  # fmt: skip


MAX_VALUES = 20  # A category with more values stands in the file of scores only.
# Which scorers a prompt was not made for, and what happens then.
_MISFITS = {
    ("as_paper", "official"): "the prompt asks for tags, and this scorer wants a bare answer",
    ("as_paper", "lmms"): "the prompt asks for tags, and this scorer wants a bare answer",
    ("official", "videorft"): "the prompt asks for no tags, and this scorer then takes the whole "
    "output, in which a full stop is wrong",
}


def find_misfit(rows: Sequence[Mapping[str, Any]], scorer: str) -> str:
    """Why the prompts of rows were not made for a scorer, "" where they were."""
    found = {_MISFITS.get((row.get("variant", ""), scorer), "") for row in rows}
    return "; ".join(sorted(found - {""}))


def tabulate(rows: Sequence[dict[str, Any]], scorer: str) -> dict[str, dict[str, Any]]:
    """The figures of each benchmark, from rows of `outputs.rescore`.

    score: the benchmark's headline, made as `how` says. all_rows: the mean with every row in the
    denominator, where rows that were never shown or wait for a judge count as wrong.
    decodable_rows, low, high: the mean over the rows that have a score, with its interval over
    clips. Counts of rows: with a score; undecodable (their media are damaged), absent (there is no
    file) or too long for a prompt; open (a judge must read them) or judged; shortened (shown with
    fewer frames, to fit a prompt); unparsed (an output without an answer, which is wrong),
    truncated (cut at its greatest length) and failed (the ground truth cannot be read, or the model
    gave no finite numbers). warning: why the prompts were not made for this scorer, "" where they
    were. categories: the mean of each value of each category, over the rows that have a score.
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
        "undecodable": sum(row["reason"] not in ("", *_APART) for row in rows),
        **{name: sum(row["reason"] == why for row in rows) for why, name in _APART.items()},
        "open": sum(row["outcome"] == "open" for row in rows),
        "judged": sum(row["outcome"] == "judged" for row in rows),
        "shortened": sum(bool(row.get("shortened")) for row in rows),
        "unparsed": sum(row["outcome"] == "unparsed" for row in rows),
        "failed": sum(row["outcome"] == "failed" or row["finite"] is False for row in rows),
        "warning": find_misfit(rows, scorer),
        "truncated": sum(not row["reason"] and not row["stopped"] for row in rows),
    }
    if not scored:
        empty = dict.fromkeys(("score", "all_rows", "decodable_rows", "low", "high"))
        return counts | empty | {"how": "nothing has a score", "categories": {}}
    score, how = headline(scored, name, scorer)
    interval = mean_interval([row["score"] for row in scored], [row["cluster"] for row in scored])
    return counts | {
        "score": score,
        "how": how,
        "all_rows": _over_questions(rows),
        "decodable_rows": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "categories": breakdown(scored, name),
    }


def _over_questions(rows):
    """The mean over questions of the mean over their completions, 0 where there is no score: a
    question without any completion has one row and weighs as much as one with several."""
    questions = collections.defaultdict(list)
    for row in rows:
        questions[row["id"]].append(row["score"] or 0.0)
    return statistics.fmean(map(statistics.fmean, questions.values()))


def format_scores(table: dict[str, dict[str, Any]], scorer: str) -> str:
    """The table for people, a line a benchmark."""
    lines = [
        f"scorer {scorer}; intervals of 95 % over clips",
        f"{'benchmark':<16}{'score':>8}{'all rows':>10}{'decodable':>11}{'95 % interval':>17}"
        f"{'rows':>7}",
    ]
    for name, own in table.items():
        numbers = ["-"] * 3
        interval = "-"
        if own["score"] is not None:
            numbers = [f"{own[key]:.4f}" for key in ("score", "all_rows", "decodable_rows")]
            interval = f"{own['low']:.4f} - {own['high']:.4f}"
        lines.append(
            f"{name:<16}{numbers[0]:>8}{numbers[1]:>10}{numbers[2]:>11}{interval:>17}"
            f"{own['rows']:>7}"
        )
        counts = "".join(f"; {own[key]} {key.replace('_', ' ')}" for key in _SHOWN if own[key])
        lines.append(f"    score: {own['how']}{counts}")
        if own["warning"]:
            lines.append(f"    warning: {own['warning']}")
        for category, means in own["categories"].items():
            if 1 < len(means) <= MAX_VALUES:
                values = (
                    f"{value} {mean:.4f}".replace(" ", "\xa0") for value, mean in means.items()
                )
                text = f"{category}: {'  '.join(values)}"
                wrapped = textwrap.wrap(
                    text, 88, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
                )
                lines += [f"    {line}".replace("\xa0", " ") for line in wrapped]
    return "\n".join(lines)
