"""The number that a benchmark is known by, which is seldom the mean over its rows."""

import collections
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_DIRECTIONS = "object_rel_direction"

Row = Mapping[str, Any]  # score (a number), question_type, categories


def micro(rows: Sequence[Row]) -> float:
    """Returns the mean over all rows."""
    return statistics.fmean(row["score"] for row in rows)


def macro(rows: Sequence[Row], name: str) -> float:
    """Returns the plain mean of the means of a category's values."""
    return statistics.fmean(by_category(rows, name).values())


def by_category(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Returns the mean of each value of a category; a row with a list of values counts in each."""
    found = collections.defaultdict(list)
    for row in rows:
        values = row["categories"].get(name, "")
        for value in values if isinstance(values, list) else [values]:
            found[str(value)].append(row["score"])
    return {value: statistics.fmean(own) for value, own in sorted(found.items())}


def vsi_bench(rows: Sequence[Row]) -> float:
    """VSI-Bench takes the mean of eight types, the three directions together as one."""
    means = by_category(rows, "question_type")
    directions = [means.pop(name) for name in list(means) if name.startswith(_DIRECTIONS)]
    if directions:
        means[_DIRECTIONS] = statistics.fmean(directions)
    return statistics.fmean(means.values())


# What says where a question of Video-MME-v2 stands, and makes no category.
PLACES = {"group", "group_place", "group_structure"}
# Worth of the longest right beginning of a logic group, by the numbers of questions in its steps.
_BEGINNINGS = {
    (1, 1, 1, 1): (0, 1 / 16, 4 / 16, 9 / 16, 1),
    (1, 2, 1): (0, 1 / 12, 4 / 12, 7 / 12, 1),
    (2, 1, 1): (0, 0.1, 0.2, 0.5, 1),
}


def group_score(scores: Sequence[float | None], group_type: str, structure: Any) -> float:
    """Returns what one group of four answers of Video-MME-v2 is worth, in [0, 1].

    scores: of the questions in their order, None where one has none. Relevance groups give the
    square of the share of the others that is right. Logic groups give the worth of the longest
    right beginning along `structure`, such as [1, [2, 3], 4], whose steps hold questions (from 1)
    that count in either order.
    """
    right = [score is not None and score >= 1 for score in scores]
    if group_type != "logic":
        return (sum(right) / sum(score is not None for score in scores)) ** 2
    structure = json.loads(structure) if isinstance(structure, str) and structure else structure
    steps = [step if isinstance(step, list) else [step] for step in structure or ()]
    steps = steps or [[number + 1] for number in range(len(right))]
    right += [False] * (sum(map(len, steps)) - len(right))  # A question without a score is wrong.
    length = 0
    for step in steps:
        own = sum(right[number - 1] for number in step)
        length += own
        if own < len(step):
            break
    shape = tuple(map(len, steps))
    worth = _BEGINNINGS.get(shape)
    return worth[length] if worth else (length / len(right)) ** 2


def videomme_v2(rows: Sequence[Row]) -> float:
    """Video-MME-v2 takes the mean worth of its groups."""
    return statistics.fmean(worth for worth, _ in _groups(rows))


def _has_groups(rows, benchmark):
    return benchmark == "videomme-v2" and all("group" in row["categories"] for row in rows)


def _groups(rows):
    """(worth, categories) of each group and rollout, whose questions stand in order."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["categories"].get("group", ""), row.get("rollout", 0)].append(row)
    for own in groups.values():
        about = own[0]["categories"]
        # A question without a score has no row, and the later ones keep their places.
        places = [int(row["categories"].get("group_place", n)) for n, row in enumerate(own, 1)]
        scores = [None] * max(places)
        for place, row in zip(places, own, strict=True):
            scores[place - 1] = row["score"]
        kind, structure = about.get("group_type", ""), about.get("group_structure") or ()
        yield group_score(scores, kind, structure), about


def breakdown(rows: Sequence[Row], benchmark: str) -> dict[str, dict[str, float]]:
    """Returns the mean of each value of each category; in Video-MME-v2 it is that of the worths of
    groups, and spans also have the share above three bounds of IoU."""
    names = {name for row in rows for name in row["categories"]} - PLACES
    if _has_groups(rows, benchmark):
        rows = [{"score": worth, "categories": about} for worth, about in _groups(rows)]
    found = {name: by_category(rows, name) for name in sorted(names)}
    if all(row.get("question_type") == "temporal grounding" for row in rows):
        found["recall"] = {
            f"IoU >= {least}": statistics.fmean(row["score"] >= least for row in rows)
            for least in (0.3, 0.5, 0.7)
        }
    return found


def videorft(rows: Sequence[Row]) -> float:
    """The paper takes the mean of accuracy and of regression's score where there are both."""
    parts = collections.defaultdict(list)
    for row in rows:
        parts[row["question_type"] == "regression"].append(row["score"])
    return statistics.fmean(statistics.fmean(own) for own in parts.values())


def headline(rows: Sequence[Row], benchmark: str, scorer: str) -> tuple[float, str]:
    """Returns (the number, how it is made) of rows that have a score."""
    if scorer == "videorft":
        chosen = [row for row in rows if row["question_type"] == "multiple choice"]
        if benchmark == "mmvu" and 0 < len(chosen) < len(rows):
            return micro(chosen), "accuracy of multiple choice, all that the paper asks"
        return videorft(rows), "mean of accuracy and MRA"
    rules: dict[str, tuple[Callable[[Sequence[Row]], float], str]] = {
        "vsibench": (vsi_bench, "mean of the question types"),
        "mlvu": (lambda own: macro(own, "task_type"), "mean of the tasks"),
        "videomme-v2": (videomme_v2, "mean of the groups"),
        "charades_sta": (micro, "mean IoU"),
    }
    if benchmark == "videomme-v2" and not _has_groups(rows, benchmark):
        benchmark = ""  # The rows are of a record file of that name.
    rule, name = rules.get(benchmark, (micro, "mean of the rows"))
    return rule(rows), name
