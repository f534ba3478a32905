"""Pass rates: how often a checkpoint answers each question right, and what is chosen by them.

A question that is always or never answered right teaches GRPO nothing, since the answers of its
group do not differ. The sets of VideoRFT and EasyVideoR1 were made by leaving such questions out.

`videorft pass_rate` writes a file of JSON lines. The first line says of which records and weights
the rates are, each other line holds one record: its place in the file of records, its id, the mean
score of its completions (null where none has a score) and their mean length in tokens.
"""

import ast
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FILE = "pass_rates.jsonl"  # in the work directory
ORDERS = ("", "easy_first", "hard_first")
FIELDS = ("pass_rate", "mean_length")
_OPERATORS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which records are read, bool [N], and where each stands in the order of difficulty.

    ranks: float [N], lower is read first; None for the loader's own order.
    """

    chosen: np.ndarray
    ranks: np.ndarray | None


def write_pass_rates(
    path: str | os.PathLike, rows: Sequence[dict[str, Any]], records: str, weights: str
) -> dict[str, int]:
    """Writes the rates of completions, rows as those of `evaluation.runner.evaluate_records`.

    records, weights: digests of the file of records and of the model's folder. Returns counts of
    records: never, sometimes and always right, and without a score.
    """
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["index"], []).append(row)
    counts = dict.fromkeys(("never", "sometimes", "always", "no_score"), 0)
    lines = [{"records": records, "weights": weights, "num_records": len(groups)}]
    for index in sorted(groups):
        own = groups[index]
        scores = [row["score"] for row in own if row["score"] is not None]
        lengths = [row["completion_tokens"] for row in own if row["completion_tokens"] is not None]
        rate = sum(scores) / len(scores) if scores else None
        kind = "no_score" if rate is None else {0: "never", 1: "always"}.get(rate, "sometimes")
        counts[kind] += 1
        line = {"index": index, "problem_id": own[0]["problem_id"], "pass_rate": rate}
        line |= {"mean_length": sum(lengths) / len(lengths) if lengths else None}
        lines.append(line | {"num_completions": len(scores)})
    partial = f"{os.fspath(path)}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    os.replace(partial, path)
    return counts


def select(
    path: str, condition: str, order: str, num_records: int, records: str, weights: str
) -> Selection:
    """The records that fulfil a condition, such as "0 < pass_rate < 1", in an order of difficulty.

    path: the file of pass rates. condition: comparisons of pass_rate and mean_length with numbers,
    joined by and, or, not; empty for all. Records without a rate fulfil none. order: one of ORDERS.
    records, weights: digests that the file must name. Raises ValueError, one line.
    """
    holds = parse_condition(condition) if condition else lambda row: True
    head, rows = _read(path)
    for name, digest, remedy in (
        ("records", records, "other records than data.records"),
        ("weights", weights, "other weights than model.init_from"),
    ):
        if digest and head.get(name) != digest:
            raise ValueError(
                f"data.pass_rates={path}: was made of {remedy}; run videorft pass_rate with those "
                "of this run, or say data.other_pass_rates=True for rates of other weights"
            )
    if sorted(row["index"] for row in rows) != list(range(num_records)):
        raise ValueError(
            f"data.pass_rates={path}: has {len(rows)} of {num_records} records; run videorft "
            "pass_rate to its end"
        )
    rates = np.full(num_records, np.nan)
    chosen = np.zeros(num_records, bool)
    for row in rows:
        if row["pass_rate"] is not None:
            rates[row["index"]] = row["pass_rate"]
            chosen[row["index"]] = holds(row)
    if not condition:
        chosen[:] = True
    if not chosen.any():
        raise ValueError(
            f"data.filter={condition!r}: no record of {num_records} fulfils it; see {path}"
        )
    if not order:
        return Selection(chosen, None)
    ranks = -rates if order == "easy_first" else rates
    return Selection(chosen, np.where(np.isnan(ranks), math.inf, ranks))


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            head, *rows = [json.loads(line) for line in file]
        if not isinstance(head, dict) or {"records", "weights"} - head.keys():
            raise ValueError("no first line")
        for row in rows:
            _ = int(row["index"]), row["pass_rate"], row["mean_length"]
    except OSError as error:
        raise ValueError(f"data.pass_rates={path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"data.pass_rates={path}: is no whole file of pass rates; make one by videorft "
            "pass_rate"
        ) from None
    return head, rows


def parse_condition(text: str) -> Callable[[dict[str, Any]], bool]:
    """A function that tells whether a row of the file fulfils `text`.

    Raises ValueError for anything but comparisons of the FIELDS with numbers.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"data.filter={text!r}: cannot be read; compare {' and '.join(FIELDS)} with numbers, "
            'such as "0 < pass_rate < 1 and mean_length < 500"'
        ) from None
    return lambda row: _holds(tree, row)


def _check(node):
    """Raises ValueError for a node that `_holds` cannot decide."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand)
    elif isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
        sides = [node.left, *node.comparators]
        if not all(_is_number(side) or _is_field(side) for side in sides):
            raise ValueError
        if not any(map(_is_field, sides)):
            raise ValueError
    else:
        raise ValueError


def _is_number(node):
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _is_field(node):
    return isinstance(node, ast.Name) and node.id in FIELDS


def _holds(node, row):
    if isinstance(node, ast.BoolOp):
        join = all if isinstance(node.op, ast.And) else any
        return join(_holds(value, row) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return not _holds(node.operand, row)
    sides = (node.left, *node.comparators)
    values = [row[side.id] if isinstance(side, ast.Name) else side.value for side in sides]
    return all(
        _OPERATORS[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:], strict=False)
    )
