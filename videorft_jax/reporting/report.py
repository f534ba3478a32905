"""From work directories to a page: reads runs, finds their clips and writes the file."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import media_of
from videorft_jax.reporting.films import Clip, Film, make_films
from videorft_jax.reporting.page import write_page
from videorft_jax.reporting.runs import Run, read_run

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """records, data_root: record file and folder of the clips, where those of the run are not to be
    used; "" otherwise. films_mib: most memory that film strips take of the page; 0 shows none.
    refresh_s: seconds after which a browser loads the page again, 0 for never."""

    records: str = ""
    data_root: str = ""
    films_mib: int = 32
    refresh_s: int = 0


def write_report(
    folders: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    options: ReportOptions,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> list[Run]:
    """Writes the page of one run, or of two side by side, and returns what was read.

    show: is told how many clips have been read, of how many.

    Raises ValueError for folders that no run wrote to and for record files that cannot be read.
    """
    runs = [read_run(folder) for folder in folders]
    films, reasons = find_films(runs[0], options, show) if options.films_mib else ({}, {})
    write_page(path, runs, films, reasons, options.refresh_s)
    return runs


def find_films(
    run: Run, options: ReportOptions, show: Callable[[int, int], None]
) -> tuple[dict[str, Film], dict[str, str]]:
    """Film strips of the clips that the groups of a run are about, and why others are missing.

    The groups of the run learn from the records which clips they are about.
    """
    data = run.config.get("data", {})
    file = options.records or data.get("records", "")
    root = options.data_root or (not options.records and data.get("root")) or None
    if not run.groups or run.contract is None:
        return {}, {}
    if not file:
        run.notes.append("No frames: give the record file with --data to see the clips.")
        return {}, {}
    try:
        source = open_records(file, root)
    except ValueError as error:
        if options.records:
            raise
        run.notes.append(f"No frames: {error}")
        return {}, {}
    keys = [(group.problem_id, group.problem, "".join(group.clips)) for group in run.groups]
    found = _find_clips(source, set(keys))
    run.groups[:] = [
        dataclasses.replace(group, clips=tuple(clip.label for clip in found[key]))
        if key in found
        else group
        for group, key in zip(run.groups, keys, strict=True)
    ]
    clips = {clip.label: clip for own in found.values() for clip in own}
    limit = options.films_mib * MIB
    films, reasons = make_films(clips, source.data_root, run.contract, limit, show)
    if reasons:
        run.notes.append(f"{len(reasons)} of {len(clips)} clips are shown without frames.")
    return films, reasons


def _find_clips(source, wanted):
    """The clips of each wanted (problem id as text, problem, path): those of the record that has
    all three, else of the first that differs in its path, as where files have moved."""
    exact: dict[tuple[str, str, str], list[Clip]] = {}
    alike: dict[tuple[str, str], list[Clip]] = {}
    pairs = {key[:2] for key in wanted}
    for index in range(len(source)):
        try:
            record = source[index]
        except RecordError:
            continue
        pair = (str(record.problem_id), record.problem)
        key = (*pair, record.path)
        if key in wanted or (pair in pairs and pair not in alike):
            clips = [Clip(item, media_of(source, index, item)) for item in record.media]
            alike.setdefault(pair, clips)
            if key in wanted:
                exact.setdefault(key, clips)
        if len(exact) == len(wanted):
            break
    known = {key: exact.get(key, alike.get(key[:2])) for key in wanted}
    return {key: clips for key, clips in known.items() if clips is not None}


def default_path(folder: str | os.PathLike) -> pathlib.Path:
    """Where the page of a run is written unless another place is named."""
    return pathlib.Path(folder) / "report.html"
