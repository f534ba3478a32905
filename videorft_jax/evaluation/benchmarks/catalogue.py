"""All benchmarks by name, and what of them is on a disk."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from videorft_jax.evaluation.benchmarks import long_video, reasoning, temporal
from videorft_jax.evaluation.benchmarks.records_file import ENDINGS, records_task
from videorft_jax.evaluation.benchmarks.task import Item, Task
from videorft_jax.evaluation.scoring.robust import gold_label, options_of
from videorft_jax.evaluation.scoring.rows import Row

TASKS: dict[str, Task] = {
    task.name: task for task in (*reasoning.TASKS, *temporal.TASKS, *long_video.TASKS)
}


def find_task(name: str) -> Task:
    """The benchmark of that name, or in the record file of that name. Raises ValueError for a name
    that is no benchmark's."""
    if pathlib.Path(name).suffix in ENDINGS:
        return records_task(name)
    if name not in TASKS:
        raise ValueError(
            f"benchmarks: no {name!r}; choose among {', '.join(TASKS)}, or name a record file"
        )
    return TASKS[name]


def load_items(task: Task, data_root: str | pathlib.Path) -> tuple[pathlib.Path, list[Item]]:
    """The benchmark's folder and its questions. Raises ValueError, one line, where its files are
    missing, saying which and where to get them, and where they have other fields than its release.
    """
    folder = _find_folder(task, data_root)
    if folder is None:
        raise ValueError(
            f"{task.title}: no {' or '.join(task.files)} in {data_root}/{task.folders[0]}; get "
            f"{task.source} ({task.licence})"
        )
    try:
        items = list(map(_check_gold, task.read(folder)))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        fault = f"without {error}" if isinstance(error, KeyError) else f"of another form ({error})"
        raise ValueError(
            f"{task.title}: {folder} has rows {fault}: another split or version; get {task.source}"
        ) from None
    if not items:
        raise ValueError(f"{task.title}: the files in {folder} hold no question; get {task.source}")
    return folder, items


def _check_gold(item):
    """The item, with its problem where no option is the gold one and nothing else is wrong."""
    row = Row("", item.kind, item.gold, "", item.options, item.question)
    if item.problem or item.kind != "multiple choice" or gold_label(row, *options_of(row)):
        return item
    problem = f"its gold answer {item.gold!r} is no candidate"
    return dataclasses.replace(item, problem=problem)


def _find_folder(task, data_root):
    """The benchmark's folder, which is not that of another one."""
    others = {name for other in TASKS.values() for name in other.folders} - {*task.folders}
    return task.find_folder(data_root, others)


def find_missing(folder: pathlib.Path, items: Iterable[Item]) -> list[str]:
    """The media that the questions want and that the folder lacks, each once, in order."""
    paths = dict.fromkeys(str(part["path"]) for item in items for part in item.media)
    return [path for path in paths if not (folder / path).exists()]


def find_outside(folder: pathlib.Path, items: Iterable[Item]) -> str:
    """What tells that links lead out of the folder, where an evaluation does not follow them, ""
    for nothing."""
    paths = dict.fromkeys(str(part["path"]) for item in items for part in item.media)
    places = {path: (folder / path).resolve() for path in paths if (folder / path).exists()}
    outside = [x for x in places if not places[x].is_relative_to(folder.resolve())]
    if not outside:
        return ""
    return (
        f"{len(outside)} files lie outside of the folder, such as {outside[0]}; name the folder "
        f"that holds them, {places[outside[0]].parent}, in limits.roots"
    )


def find_other_version(task: Task, items: Sequence[Item]) -> str:
    """What tells that the files are of another split or version, "" for nothing."""
    if task.num_rows and len(items) != task.num_rows:
        return f"{len(items)} rows, its release has {task.num_rows}: another split or version"
    return ""


def count_problems(items: Iterable[Item]) -> str:
    """Says how many gold answers are no candidate, so that no answer is right, and how many
    questions repeat a candidate, of which the first counts; "" where there are none."""
    faults = [item.problem for item in items if item.problem]
    lost = sum(fault.endswith("is no candidate") for fault in faults)
    counts = {"gold answers are no candidate": lost, "repeat a candidate": len(faults) - lost}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def describe(task: Task, data_root: str | pathlib.Path) -> dict[str, Any]:
    """What of a benchmark is on the disk.

    `rows` counts the questions in its files, `found` the media that are there; `missing` names the
    files that are not, and `problems` says, a line each, what else is wrong.
    """
    try:
        folder, items = load_items(task, data_root)
    except ValueError as error:
        files = [f"{task.folders[0]}/{pattern}" for pattern in task.files]
        is_absent = _find_folder(task, data_root) is None
        return {
            "name": task.name,
            "rows": 0,
            "found": 0,
            "missing": files if is_absent else [],
            "problems": [str(error)],
        }
    missing = find_missing(folder, items)
    paths = {str(part["path"]) for item in items for part in item.media}
    problems = [f"{item.id}: {item.problem}" for item in items if item.problem]
    if other := find_other_version(task, items):
        problems.append(other)
    if len({item.id for item in items}) < len(items):
        problems.append("ids are repeated")
    if outside := find_outside(folder, items):
        problems.append(outside)
    return {
        "name": task.name,
        "rows": len(items),
        "found": len(paths) - len(missing),
        "missing": missing,
        "problems": problems,
    }
