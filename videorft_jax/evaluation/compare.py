"""Runs side by side: paired by question, clustered by clip, over all and by category."""

import collections
import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from videorft_jax.evaluation.headline import PLACES, headline
from videorft_jax.evaluation.intervals import difference_interval, mean_interval
from videorft_jax.evaluation.published import format_published, published
from videorft_jax.evaluation.scoreboard import find_misfit

log = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]  # what `outputs.rescore` returns


def compare(runs: Mapping[str, Sequence[Rows]], scorer: str = "robust") -> list[dict[str, Any]]:
    """A line for each benchmark and category and each run; the first run is the baseline.

    runs: for each name the rows of its seeds, one or several evaluations of the same questions.
    A question's score is its mean over seeds and completions. `accuracy`, `low` and `high` are over
    the questions that the run has a score of; `difference` is (mean, low, high) over those that
    both have, `only_here` and `only_there` count the others; `seeds` is the standard deviation
    between seeds, None for one. A line of a whole benchmark has its `headline`, the mean over seeds
    under the rules of `scorer`, the numbers that are `published` of it, by model, and a `warning`
    where its prompts were not made for the scorer.
    """
    questions = {name: _questions(seeds) for name, seeds in runs.items()}
    first = next(iter(questions))
    parts = sorted({part for own in questions.values() for part in own})
    lines = []
    for part in parts:
        before = questions[first].get(part, {})
        for name, seeds in runs.items():
            now = questions[name].get(part, {})
            if not now:
                if not part[1]:
                    has_rows = any(row["benchmark"] == part[0] for rows in seeds for row in rows)
                    what = "has no score in" if has_rows else "answers nothing of"
                    log.warning("%s: %s %s; it has no line", name, what, part[0])
                continue
            clips, scores = zip(*now.values(), strict=True)
            interval = mean_interval(scores, clips)
            both = [key for key in now if key in before]
            differences = [now[key][1] - before[key][1] for key in both]
            change = difference_interval(differences, [now[key][0] for key in both])
            lines.append(
                {
                    "benchmark": part[0],
                    "category": part[1],
                    "run": name,
                    "questions": len(now),
                    "accuracy": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "difference": None if name == first or not both else list(change),
                    "only_here": len(now) - len(both),
                    "only_there": len(before) - len(both),
                    "seeds": _spread(seeds, part),
                    "headline": None if part[1] else _headline(seeds, part[0], scorer),
                    "published": {} if part[1] else published(part[0]),
                    "warning": "" if part[1] else _find_misfit(seeds, part[0], scorer),
                }
            )
    return lines


def _questions(seeds):
    """(benchmark, category) -> question -> (clip, mean score)."""
    scores, places = collections.defaultdict(list), {}
    for row in (row for rows in seeds for row in rows):
        if row["score"] is not None:
            scores[row["benchmark"], row["id"]].append(row["score"])
            places[row["benchmark"], row["id"]] = row
    found = collections.defaultdict(dict)
    for key, own in scores.items():
        row = places[key]
        for part in _parts(row):
            found[part][key] = (row["cluster"], statistics.fmean(own))
    return found


def _parts(row):
    yield row["benchmark"], ""
    for name, values in row["categories"].items():
        for value in values if isinstance(values, list) else [values]:
            if name not in PLACES:
                yield row["benchmark"], f"{name}: {value}"


def _spread(seeds, part):
    means = []
    for rows in seeds:
        own = [row["score"] for row in rows if row["score"] is not None and part in _parts(row)]
        means += [statistics.fmean(own)] if own else []
    return statistics.stdev(means) if len(means) > 1 else None


def _headline(seeds, benchmark, scorer):
    found = []
    for rows in seeds:
        own = [row for row in rows if row["score"] is not None and row["benchmark"] == benchmark]
        found += [headline(own, benchmark, scorer)[0]] if own else []
    return statistics.fmean(found)


def _find_misfit(seeds, benchmark, scorer):
    rows = [row for rows in seeds for row in rows if row["benchmark"] == benchmark]
    return find_misfit(rows, scorer)


def format_comparison(lines: Sequence[Mapping[str, Any]]) -> str:
    """The comparison in Markdown."""
    out = [
        "95 % intervals over clips; differences to the first run, paired by question",
        "",
        "| benchmark | category | run | questions | accuracy | difference | only here / there "
        "| seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        change, spread = "-", "-"
        if line["difference"]:
            mean, low, high = line["difference"]
            change = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        if line["seeds"] is not None:
            spread = f"{line['seeds']:.4f}"
        accuracy = f"{line['accuracy']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        others = f"{line['only_here']} / {line['only_there']}"
        out.append(
            f"| {line['benchmark']} | {line['category'] or 'all'} | {line['run']} "
            f"| {line['questions']} | {accuracy} | {change} | {others} | {spread} |"
        )
    out += [
        f"warning: {line['run']}, {line['benchmark']}: {line['warning']}"
        for line in lines
        if line["warning"]
    ]
    return "\n".join([*out, "", format_published(lines)])


def plot(lines: Sequence[Mapping[str, Any]], path: str) -> None:
    """Draws the forest plot of the differences into the PNG file `path`: a row for each benchmark
    and category, a mark with its interval for each run, and a line at no difference."""
    import matplotlib.figure

    shown = [line for line in lines if line["difference"]]
    rows = list(dict.fromkeys((line["benchmark"], line["category"]) for line in shown))
    runs = list(dict.fromkeys(line["run"] for line in shown))
    colours = ("#2b5c8a", "#d08030", "#3f8f5f", "#8a3b6b", "#666666")
    height = 1.4 + 0.32 * len(rows) * max(1, len(runs))
    figure = matplotlib.figure.Figure((8, height), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    for line in shown:
        number = runs.index(line["run"])
        place = rows.index((line["benchmark"], line["category"])) + 0.7 * number / len(runs)
        mean, low, high = line["difference"]
        colour = colours[number % len(colours)]
        is_whole = not line["category"]
        label = line["run"] if line is next(x for x in shown if x["run"] == line["run"]) else None
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5 if is_whole else 1.2)
        axes.plot(mean, place, "D" if is_whole else "o", color=colour, label=label,
                  markersize=7 if is_whole else 4)  # fmt: skip
    names = [f"  {category}" if category else benchmark for benchmark, category in rows]
    axes.set_yticks(range(len(rows)), names)
    for text, (_, category) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("normal" if category else "bold")
    axes.set_ylim(len(rows) - 0.3, -0.7)
    first = next((line["run"] for line in lines), "")
    axes.set_xlabel(f"difference to {first}, with its 95 % interval over clips")
    if shown:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(runs))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=120)
