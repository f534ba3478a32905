"""How a completion calls a tool: the tag with which a turn ends, read from the text of the turn.

A call is the last thing that a turn says, such as `<frames start=1.5 end=3 n=4>`: the name of the
tool and its arguments, each a name, `=` and a value, which stands in quotes where it has spaces. A
turn that ends with the name of a tool behind `<` and is no such tag is a malformed call, which the
model is told of.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

_ARGUMENT = re.compile(r"""\s+([A-Za-z_]\w*)=("[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)""")
_CLOSE = re.compile(r"\s*/?>")


class Call(NamedTuple):
    """One call of a completion. `fault` says what is wrong with its form; it is empty where the
    arguments could be read."""

    name: str
    arguments: dict[str, str]
    text: str
    fault: str = ""


def find_call(turn: str, names: Collection[str]) -> Call | None:
    """The call that the text of a turn ends with, None where it ends with none of `names`.

    For example, "I look again. <frames start=2 end=3 n=4>" calls frames with the arguments
    {"start": "2", "end": "3", "n": "4"}.
    """
    text = turn.rstrip()
    start = text.rfind("<")
    opened = re.match(r"<([A-Za-z_]\w*)(?=[\s/>]|$)", text[start:]) if start >= 0 else None
    if opened is None or opened[1] not in names:
        return None
    call, name = text[start:], opened[1]
    arguments, place = {}, opened.end()
    while part := _ARGUMENT.match(call, place):
        if part[1] in arguments:
            return Call(name, {}, call, f"{part[1]} is given twice")
        arguments[part[1]], place = part[2].strip("\"'"), part.end()
    end = _CLOSE.match(call, place)
    if end is None and ">" in call[place:-1]:  # Something was said behind the tag.
        return None
    if end is None:
        return Call(name, {}, call, f"{call[place:].strip() or 'the end'!r} cannot be read")
    return None if call[end.end() :] else Call(name, arguments, call)


def read_number(call: Call, name: str) -> float:
    """The number that an argument gives. Raises ValueError where it gives none."""
    if name not in call.arguments:
        raise ValueError(f"{name} is missing")
    try:
        value = float(call.arguments[name])
    except ValueError:
        raise ValueError(f"{name} is no number") from None
    if not abs(value) < 1e9:
        raise ValueError(f"{name} is out of range")
    return value
