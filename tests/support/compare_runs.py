"""Compares what two runs wrote, to the bit, leaving out times and figures about the machine."""

import dataclasses
import json
import pathlib
import re

import numpy as np

ABOUT_MACHINE = ("perf/", "time/", "memory/")  # names of metrics
TIMES = ("seconds", "performance")  # keys of results.json
NUMBERED = re.compile(r"\d{6}\.(?=mp4$|png$)")
MODIFIED_NS = re.compile(r"\b1\d{18}\b")  # when a clip was written, in the indices of the loader
IGNORED_FOLDERS = {"compiled", "done", "tensorboard"}
IGNORED_SUFFIXES = {".html", ".lock", ".log"}

IGNORED_FILES = {"report.md", "demo.out"}  # tell how many seconds each stage took


@dataclasses.dataclass
class Compared:
    """One output of both runs: how many of its parts were compared and how many differ."""

    name: str
    compared: int
    differing: int
    first: str = ""  # the first part that differs


def compare_folders(first: pathlib.Path, second: pathlib.Path) -> list[Compared]:
    """A row for each output of either folder, in the order of their names; clips count as one.

    What only the second folder has, be it a file, a metric or a field, is an addition and no
    difference; what only the first has is one.
    """
    sides = [_read_folder(folder) for folder in (first, second)]
    rows: list[Compared] = []
    for name in sorted(sides[0].keys() | sides[1].keys()):
        there, here = (side.get(name) for side in sides)
        if there is None or here is None:
            lost = here is None
            rows.append(
                Compared(name, 1, int(lost), f"only in the {'first' if lost else 'second'}")
            )
            continue
        if name.endswith("manifest.json"):
            there, here = _common_options(there, here)
        paths = sorted(there)
        wrong = [path for path in paths if not _equal(there[path], here.get(path))]
        text = f"{wrong[0]}: {_show(there, here, wrong[0])}" if wrong else ""
        rows.append(Compared(name, len(paths), len(wrong), text))
    return _merge_clips(rows)


def _merge_clips(rows):
    """One row for all clips of a folder, which are numbered."""
    merged: dict[str, Compared] = {}
    for row in rows:
        name = NUMBERED.sub("*.", row.name)
        known = merged.setdefault(name, Compared(name, 0, 0))
        known.compared += row.compared
        known.differing += row.differing
        known.first = known.first or row.first
    return list(merged.values())


def _read_folder(folder):
    """{output: {part: value}} of everything worth comparing below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if IGNORED_FOLDERS & set(inside.parts[:-1]) or path.suffix in IGNORED_SUFFIXES:
            continue
        if path.is_dir():
            if path.parent.name == "checkpoints":
                found[f"{inside}/arrays"] = _read_checkpoint(path)
        elif path.name == "manifest.json":
            found[str(inside)] = _read_manifest(path)
        elif "checkpoints" not in inside.parts[:-1] and path.name not in IGNORED_FILES:
            found[str(inside)] = _read_file(path)
    return found


def _read_checkpoint(path):
    """Arrays by their path; Orbax reads them without any code of the commit that wrote them."""
    import jax
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(path)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in leaves}


def _read_manifest(path):
    """The body by dotted names, without the digests of files, whose names Orbax draws by chance."""
    body = json.loads(path.read_text())["body"]
    body.pop("files")
    return _flatten(body)


def _read_file(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    if path.suffix not in {".json", ".jsonl", ".out"}:
        return {"bytes": path.read_bytes()}
    text = MODIFIED_NS.sub("0", path.read_text())
    if path.suffix == ".json":
        body = json.loads(text)
        if not isinstance(body, dict):
            return {"body": body}
        return _flatten({name: value for name, value in body.items() if name not in TIMES})
    lines = text.splitlines()
    if path.suffix == ".jsonl":
        lines = [_without_times(json.loads(line)) for line in lines]
    if path.parent.name.endswith("sizes"):  # in the order in which threads finished
        lines = sorted(lines, key=json.dumps)
    return {f"line {number}": line for number, line in enumerate(lines, 1)}


def _without_times(line):
    if not isinstance(line, dict):
        return line
    return {name: value for name, value in line.items() if not name.startswith(ABOUT_MACHINE)}


def _flatten(body, prefix=""):
    found = {}
    for name, value in body.items():
        path = f"{prefix}{name}"
        nested = isinstance(value, dict) and value
        found |= _flatten(value, f"{path}.") if nested else {path: value}
    return found


def _common_options(there, here):
    """Both manifests without options that only one of the commits knows."""
    common = there.keys() & here.keys()
    return (
        {name: side[name] for name in side if name in common or not name.startswith("meta.config.")}
        for side in (there, here)
    )


def _equal(there, here):
    if isinstance(there, np.ndarray) and isinstance(here, np.ndarray):
        same = (there.dtype, there.shape) == (here.dtype, here.shape)
        return same and there.tobytes() == here.tobytes()
    if isinstance(there, dict) and isinstance(here, dict):
        here = {name: here[name] for name in there if name in here}
    return type(there) is type(here) and _canonical(there) == _canonical(here)


def _canonical(value):
    """A form in which NaN equals NaN and 1 does not equal 1.0."""
    return value if isinstance(value, bytes | None) else json.dumps(value, sort_keys=True)


def _show(there, here, path):
    values = (there.get(path), here.get(path))
    is_array = all(isinstance(value, np.ndarray) for value in values)
    if is_array and values[0].shape == values[1].shape:
        gap = np.abs(np.subtract(*(value.astype(np.float64) for value in values))).max(initial=0)
        return f"largest difference {gap:.3g}"
    return " and ".join(repr(value)[:60] for value in values)
