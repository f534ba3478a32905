"""`videorft ablate`: one GRPO run per variant and seed, all evaluated on the same held-out records.

A grid is a list of variants in the config, each a name and the options it changes. Runs that are
done are not repeated and one that was stopped goes on, so the same command finishes the grid.
"""

import json
import logging
import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from videorft_jax.evaluation import evaluate
from videorft_jax.evaluation.summary import paired_difference, summarise
from videorft_jax.grpo import trainer as grpo

log = logging.getLogger(__name__)

TABLE, PLOT = "ablation.md", "ablation.png"


def ablate(config: ConfigDict, workdir: str) -> list[dict[str, Any]]:
    """Runs what is missing of the grid, then writes and returns the table: a dict a variant.

    Raises ValueError, before the first run, for a grid that cannot be run.
    """
    variants = [(name, vary(config, changes)) for name, changes in config.ablate.variants]
    check(config, variants)
    seeds = config.ablate.seeds
    for number, (name, varied) in enumerate(variants):
        for seed in seeds:
            log.info("variant %d of %d, %s, seed %d", number + 1, len(variants), name, seed)
            run(varied, os.path.join(workdir, name), seed)
    rows = {name: [_read(workdir, name, seed) for seed in seeds] for name, _ in variants}
    table = compare(rows)
    if jax.process_index() == 0:
        text = format_table(table, len(seeds))
        pathlib.Path(workdir, TABLE).write_text(text)
        plot(table, os.path.join(workdir, PLOT))
        print(f"{text}\n{workdir}: {TABLE}, {PLOT}")
    return table


def vary(config: ConfigDict, changes) -> ConfigDict:
    """The config with (option, value) pairs changed, such as ("grpo.variant", "dapo"). Raises
    ValueError for an option that there is not and a value of another type."""
    varied = ConfigDict(config.to_dict())
    for path, value in changes:
        *sections, option = path.split(".")
        target: Any = varied
        for section in sections:
            target = target.get(section, {})
        if option not in target:
            raise ValueError(f"{config.name}: ablate.variants changes {path!r}; no such option")
        try:
            target[option] = value
        except TypeError as error:
            raise ValueError(f"{config.name}: ablate.variants, {path}: {error}") from None
    return varied


def check(config: ConfigDict, variants) -> None:
    """Everything of the grid that can be refused before hours are spent on its first half."""
    names = [name for name, _ in variants]
    if len(set(names)) != len(names) or not all(name.isidentifier() for name in names):
        raise ValueError(
            f"{config.name}: ablate.variants are named {names}; give each its own name of letters, "
            "digits and _, as it becomes a folder"
        )
    if not names or not config.ablate.seeds:
        raise ValueError(f"{config.name}: ablate.variants or ablate.seeds is empty; name some")
    if not config.ablate.records:
        raise ValueError(f"{config.name}: ablate.records is empty; give held-out records")
    for name, varied in variants:
        try:
            grpo.check(varied)
        except ValueError as error:
            raise ValueError(f"variant {name}: {error}") from None


def run(config: ConfigDict, folder: str, seed: int) -> None:
    """Trains one variant with one seed and evaluates it, each only as far as it is missing."""
    training, results = os.path.join(folder, f"{seed}"), os.path.join(folder, f"{seed}-held-out")
    if _is_done(results):
        return
    config = ConfigDict(config.to_dict())
    config.seed = seed
    grpo.train(config, training)
    config.evaluate.checkpoint = training
    config.data.records, config.data.root = config.ablate.records, config.ablate.root
    evaluate.evaluate(config, results)


def _is_done(folder):
    path = pathlib.Path(folder, "results.json")
    return path.exists() and json.loads(path.read_text())["results"] is not None


def _read(workdir, name, seed):
    paths = sorted(pathlib.Path(workdir, name, f"{seed}-held-out").glob("completions*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def compare(rows: dict[str, list[list[dict]]]) -> list[dict[str, Any]]:
    """name -> rows of each seed's evaluation. Accuracy is the mean over seeds of each record; its
    95 % interval, and that of the paired difference to the first variant, is over clips. `by_seed`
    shows what seeds alone do."""
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
    """Markdown."""
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
    """Accuracy with its interval, a dot for each seed, the first variant on top."""
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
