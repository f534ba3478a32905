"""The JSON object of a file beside a model's weights, and what kinds of values its keys have."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object of a file. Raises ValueError, one line, for what is none, and OSError."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download the file again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: no JSON object; download the file again")
    return values


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number from 1 on."""
    return is_whole(value) and value > 0


def is_positive(value: Any) -> bool:
    """Whether a JSON value is a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def is_flag(value: Any) -> bool:
    """Whether a JSON value is true or false, or null for the one that goes without saying."""
    return value is None or isinstance(value, bool)


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether a JSON value is a list whose items are all of a kind."""
    return isinstance(value, list) and all(map(holds, value))


def check_kind(values: dict, key: str, holds: Callable[[Any], bool], what: str, place: str) -> None:
    """Raises ValueError, one line, where a key is there and its value is of another kind than
    `what` says. `place` is written before the key, as in "a/config.json: text_config."."""
    if key in values and not holds(values[key]):
        shown = repr(values[key])[:40]
        raise ValueError(f"{place}{key} is {shown}, no {what}; correct the file")
