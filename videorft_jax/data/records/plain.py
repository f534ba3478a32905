"""Plain dicts where a record is wanted: rows of any format, as far as rewards need them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from videorft_jax.data.records.formats import SIGNS, convert_row, detect_format
from videorft_jax.data.records.records import label_options, parse_row

# While a row is checked, these stand in for fields that it may lack, as rewards do not read them.
SHOWN = {"data_type": "video", "path": "?"}
ASKED = {"problem": "?"}


def as_record(record: Any, index: int = 0) -> Any:
    """A record from a plain dict; anything else, a Record among them, is returned as it is.

    The dict is a row of any format that files may have. Its question and its media may be absent,
    and are then empty texts; `index` names the row in messages and stands in for its id. Raises
    RecordError, a ValueError, as the row of a file does.
    """
    if not isinstance(record, Mapping):
        return record
    where, row = f"record {index}", dict(record)
    if any(sign in row for sign in SIGNS.values()):
        row = convert_row(row, detect_format(row, where), where, index)
    if not row.get("media"):
        row.pop("media", None)
    absent = {} if "media" in row or "path" in row else dict(SHOWN)
    if "messages" not in row and "problem" not in row:
        absent |= ASKED
    given = {name: row.get(name, value) for name, value in absent.items()}
    found = parse_row({"problem_id": index} | row | given, where)
    return dataclasses.replace(found, **{name: row.get(name, "") for name in absent})


def order_options(options: Sequence[str]) -> list[str]:
    """The options by the letters that a prompt shows them under, in the order of the letters: those
    of "C. green", "A. red", "B. blue" are A. red, B. blue and C. green."""
    return [f"{letter}. {text}" for letter, text in sorted(label_options(options))]
