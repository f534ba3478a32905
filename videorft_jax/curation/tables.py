"""Columns of a JSONL file: every row is given all of them, each with one type.

Readers of tables, such as the viewer of the Hugging Face hub, take the columns of the first rows
for those of all. Rows of records differ, since fields may be left out and extra ones be anything.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable

# Types are called as Hugging Face calls them; LIST is a list of strings.
LIST = "list"
_KINDS = {bool: "bool", int: "int64", float: "float64", str: "string"}


def unify(path: pathlib.Path, read: Callable[[], Iterable[dict]]) -> dict[str, str]:
    """Writes a file of JSON objects so that all rows have the same columns and types, and returns
    column -> type. A column of several types becomes text, other values as JSON. read: gives the
    rows, which it may read from the file itself; it is called twice."""
    columns: dict[str, str] = {}
    for row in read():
        for name, value in row.items():
            kind, before = _kind(value), columns.get(name, "")
            columns[name] = _join(before, kind) if before and kind else before or kind
    columns = {name: kind or "string" for name, kind in columns.items()}
    partial = path.with_name(f"{path.name}.unified")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in read():
            whole = {name: _convert(row.get(name), kind) for name, kind in columns.items()}
            file.write(json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(partial, path)
    return columns


def _kind(value: object) -> str:
    """The type of a value, "" for null."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return LIST
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "string"
    return _KINDS.get(type(value), "string")


def _join(one: str, other: str) -> str:
    if one == other:
        return one
    return "float64" if {one, other} == {"int64", "float64"} else "string"


def _convert(value: object, kind: str) -> object:
    if value is None:
        return None
    if kind == "string" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if kind == "float64" and isinstance(value, int) else value
