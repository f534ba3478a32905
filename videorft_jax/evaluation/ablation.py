"""A grid of GRPO runs, one per variant and seed, compared on the same held-out records.

Runs that are done are not repeated and one that was stopped goes on, so the same command finishes
the grid.
"""

import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from videorft_jax.data.records.opening import digest_records
from videorft_jax.evaluation.results_folder import check_begun
from videorft_jax.evaluation.summary import paired_difference, summarise
from videorft_jax.training import changes

log = logging.getLogger(__name__)

TABLE, PLOT = "ablation.md", "ablation.png"


def check_grid(name: str, variants: Sequence[str], seeds: Sequence[int], records: str) -> None:
    """Raises ValueError for a grid that cannot be run: variants without names that can be folders,
    no variants or seeds, no held-out records. `name` is the recipe's, for the message."""
    if len(set(variants)) != len(variants) or not all(own.isidentifier() for own in variants):
        raise ValueError(
            f"{name}: ablate.variants are named {list(variants)}; give each its own name of "
            "letters, digits and _, as it becomes a folder"
        )
    if not variants or not seeds:
        raise ValueError(f"{name}: ablate.variants or ablate.seeds is empty; name some")
    if not records:
        raise ValueError(f"{name}: ablate.records is empty; give held-out records")


def check_results(
    variants: Sequence[str], seeds: Sequence[int], workdir: str, records: str
) -> None:
    """Raises ValueError where a run of the grid was evaluated on other records than those of the
    file, with which it would be compared."""
    digest = {"records": {"sha256": digest_records(records)}}
    for name, seed in itertools.product(variants, seeds):
        check_begun(pathlib.Path(_folders(workdir, name, seed)[1]), digest)


def check_done(workdir: str, name: str, seed: int, config: dict[str, Any]) -> None:
    """Raises ValueError where a run of the grid is done that another config has made: one that
    learns, lasts or is evaluated otherwise. What else has changed is logged."""
    training, results = _folders(workdir, name, seed)
    path = pathlib.Path(training, "config.json")
    if not _is_done(results) or not path.exists():
        return
    found = changes.find_changes(json.loads(path.read_text(encoding="utf-8")), config)
    differ = {option: pair for option, pair in found.items() if _decides_result(option)}
    if differ:
        raise ValueError(
            f"{training}: is done, and {changes.describe(differ)}; give the same options or "
            "another workdir"
        )
    if found:
        log.warning("%s is done, and %s", training, changes.describe(found))


def _decides_result(option):
    length = ("train.max_steps", "data.epochs")
    judged = option.startswith(("evaluate.", "validate."))
    return option in length or judged or changes.decides_learning(option)


def ablate(
    variants: Sequence[str],
    seeds: Sequence[int],
    workdir: str,
    *,
    train: Callable[[str, int, str], None],
    evaluate: Callable[[str, int, str, str], None],
) -> list[dict[str, Any]]:
    """Runs what is missing of the grid, then writes and returns the table: one dict a variant.

    train(variant, seed, folder) trains one variant with one seed. evaluate(variant, seed, training
    folder, results folder) evaluates it on the held-out records. Both go on where they were
    stopped.
    """
    for number, name in enumerate(variants):
        for seed in seeds:
            log.info("variant %d of %d, %s, seed %d", number + 1, len(variants), name, seed)
            training, results = _folders(workdir, name, seed)
            if not _is_done(results):
                train(name, seed, training)
                evaluate(name, seed, training, results)
    rows = {name: [_read(_folders(workdir, name, seed)[1]) for seed in seeds] for name in variants}
    table = compare(rows)
    if jax.process_index() == 0:
        text = format_table(table, len(seeds))
        pathlib.Path(workdir, TABLE).write_text(text)
        plot(table, os.path.join(workdir, PLOT))
        print(text)
    return table


def _folders(workdir, name, seed):
    """(training, results) of one run."""
    folder = os.path.join(workdir, name)
    return os.path.join(folder, f"{seed}"), os.path.join(folder, f"{seed}-held-out")


def _is_done(folder):
    path = pathlib.Path(folder, "results.json")
    return path.exists() and json.loads(path.read_text())["results"] is not None


def _read(folder):
    """The rows of one evaluation, of all its processes."""
    paths = sorted(pathlib.Path(folder).glob("completions*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def compare(rows: dict[str, list[list[dict]]]) -> list[dict[str, Any]]:
    """One line of the table for each variant; `rows` holds the rows of each seed's evaluation.

    `accuracy` is the mean over records of each record's mean over the seeds. Its 95 % interval
    (`low`, `high`) is clustered by clip, and so is `difference`, the paired difference to the first
    variant as (mean, low, high). `by_seed` shows how far the seeds alone move the accuracy.
    """
    table, first = [], next(iter(rows))
    for name, by_seed in rows.items():
        whole = sum(by_seed, [])
        found = summarise(whole)
        line = {name: found[name] for name in ("accuracy", "low", "high", "num_records")}
        line |= {"name": name, "by_seed": [summarise(own)["accuracy"] for own in by_seed]}
        difference = paired_difference(sum(rows[first], []), whole)
        table.append(line | {"difference": None if name == first else difference})
    return table


def format_table(table: list[dict[str, Any]], num_seeds: int) -> str:
    """The table in Markdown."""
    lines = [
        f"{table[0]['num_records']} held-out records, {num_seeds} seeds; 95 % intervals over clips",
        "",
        f"| variant | accuracy | difference to {table[0]['name']} | by seed |",
        "|---|---|---|---|",
    ]
    for line in table:
        difference = "-"
        if line["difference"] is not None:
            mean, low, high = line["difference"]
            difference = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        seeds = ", ".join(f"{value:.4f}" for value in line["by_seed"])
        accuracy = f"{line['accuracy']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        lines.append(f"| {line['name']} | {accuracy} | {difference} | {seeds} |")
    return "\n".join([*lines, ""])


def plot(table: list[dict[str, Any]], path: str) -> None:
    """Draws the accuracy of each variant with its interval, and a mark for each seed, into the PNG
    file `path`. The first variant stands on top."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((7, 1.2 + 0.45 * len(table)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(table[0]["accuracy"], color="0.85", linewidth=1, zorder=0)
    for place, line in enumerate(table):
        axes.plot([line["low"], line["high"]], [place, place], color="#2b5c8a", linewidth=2)
        axes.plot(line["accuracy"], place, "o", color="#2b5c8a", markersize=7)
        seeds = line["by_seed"]
        axes.plot(seeds, [place + 0.22] * len(seeds), "|", color="#d08030", markersize=8)
    axes.set_yticks(range(len(table)), [line["name"] for line in table])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("held-out accuracy, 95 % interval over clips; orange: single seeds")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=120)
