"""One HTML file that holds everything: curves, tables, and the gallery with its data.

No text of a run is ever part of the markup. The template escapes what it writes, and the script of
the gallery sets text nodes only. The data follow the visible page in compressed chunks, which are
opened when they are looked at, so that a page of ten thousand groups is drawn at once.
"""

import base64
import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from videorft_jax.reporting.chunks import make_chunks
from videorft_jax.reporting.curves import format_number, make_panels
from videorft_jax.reporting.films import Film
from videorft_jax.reporting.groups import FLAGS
from videorft_jax.reporting.runs import Run

_ASSETS = pathlib.Path(__file__).parent / "assets"
_TIMELINES = "profile/*/timeline.png"  # --profile=STEP draws them.
_COLUMNS = ("accuracy", "low", "high", "num_records", "unparseable", "truncated")


def write_page(
    path: str | os.PathLike,
    runs: Sequence[Run],
    films: Mapping[str, Film],
    reasons: Mapping[str, str],
    refresh_s: int = 0,
) -> None:
    """Writes the page of one run, or of two to be compared; it appears whole.

    films, reasons: strips, and why others are missing, by the label of the clip. refresh_s: seconds
    after which a browser loads the page again; 0 means never.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(_render(runs, films, reasons, refresh_s), encoding="utf-8")
    os.replace(partial, path)


def _render(runs, films, reasons, refresh_s):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    names = name_runs(runs)
    index, chunks = make_chunks(runs, names, films, reasons)
    return environment.get_template("page.html").render(
        runs=runs,
        names=names,
        facts=[_facts(run) for run in runs],
        tables=[_results(run) for run in runs],
        columns=_COLUMNS,
        timelines=[_timelines(run) for run in runs],
        panels=make_panels([run.metrics for run in runs]),
        has_groups=any(run.groups for run in runs),
        flags=FLAGS,
        style=(_ASSETS / "page.css").read_text(encoding="utf-8"),
        script=(_ASSETS / "gallery.js").read_text(encoding="utf-8"),
        index=index,
        chunks=chunks,
        refresh_s=refresh_s,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    )


def name_runs(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of the folders' paths that tell the runs apart."""
    parts = [run.folder.absolute().parts for run in runs]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]


def _facts(run: Run) -> list[tuple[str, str]]:
    """What the head of the page says about a run."""
    config, weights = run.config, run.config.get("weights", {})
    model = config.get("model", {}).get("init_from")
    facts = [
        ("run", str(run.folder)),
        ("kind", run.kind),
        ("recipe", config.get("name")),
        ("model", model or weights.get("checkpoint") or weights.get("init_from")),
        ("records", config.get("data", {}).get("records")),
        ("steps", run.metrics and f"{run.metrics[-1]['step']:,}"),
        ("groups", run.groups and f"{len(run.groups):,}"),
        ("media contract", run.contract and run.contract.digest[:12]),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _timelines(run: Run) -> list[tuple[int, str]]:
    """Gives the steps of a run that were profiled, and an address for the picture of each, which
    holds the picture itself."""
    return [
        (
            int(path.parent.name),
            f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}",
        )
        for path in sorted(run.folder.glob(_TIMELINES))
        if path.parent.name.isdigit()
    ]


def _results(run: Run) -> list[tuple[str, list[str]]]:
    """Rows of the table of an evaluation: all records, and those of each type."""
    if not run.results:
        return []
    rows: list[tuple[str, dict[str, Any]]] = [("all", run.results)]
    rows += sorted(run.results.get("by_type", {}).items())
    return [(name, [_cell(values.get(column)) for column in _COLUMNS]) for name, values in rows]


def _cell(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return format_number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
