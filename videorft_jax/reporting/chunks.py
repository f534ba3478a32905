"""The data of a gallery: an index to sort and filter by, and chunks that are opened one by one."""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from videorft_jax.reporting.films import Film
from videorft_jax.reporting.groups import Group, pack, summarise
from videorft_jax.reporting.runs import Run

CHUNK = 50  # groups, or film strips, of a chunk


def make_chunks(
    runs: Sequence[Run],
    names: Sequence[str],
    films: Mapping[str, Film],
    reasons: Mapping[str, str],
) -> tuple[str, list[tuple[str, str]]]:
    """(the index, [(name of a chunk, its text)]), all of letters that need no escaping in HTML.

    The index and the groups are JSON, gzipped, in base64. Film strips are base64 of JPEG, which
    gzip would not make smaller, one strip a line. names: what the page calls the runs.
    """
    chunks = []
    index: dict[str, Any] = {"chunk": CHUNK, "runs": [], "films": {}, "reasons": dict(reasons)}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        rows = [summarise(group) for group in run.groups]
        columns = {field: [row[field] for row in rows] for field in rows[0]} if rows else {}
        index["runs"].append({"label": name, "groups": columns})
        for place, part in _split(run.groups):
            chunks.append((f"groups-{number}-{place}", _compress([pack(each) for each in part])))
    if len(runs) == 2:
        index["pairs"] = match(runs[0].groups, runs[1].groups)
    for number, (path, film) in enumerate(films.items()):
        index["films"][path] = [number, film.times]
    for place, strips in _split([film.jpeg for film in films.values()]):
        chunks.append((f"films-{place}", "\n".join(strips)))
    return _compress(index), chunks


def match(first: Sequence[Group], second: Sequence[Group]) -> list[int]:
    """For each group of the first run the place of the second run's group of the same question, of
    several that of the nearest step; -1 where there is none."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, group in enumerate(second):
        places.setdefault((group.problem_id, group.problem), []).append(place)

    def nearest(group):
        def gap(place):
            return abs((second[place].step or 0) - (group.step or 0))

        return min(places.get((group.problem_id, group.problem), []), key=gap, default=-1)

    return [nearest(group) for group in first]


def _split(items: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    for place in range(-(-len(items) // CHUNK)):
        yield place, items[place * CHUNK : (place + 1) * CHUNK]


def _compress(value):
    text = json.dumps(value, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
