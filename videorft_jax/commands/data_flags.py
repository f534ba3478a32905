"""The flags that commands about records share: where records and media are, and what a clip may
cost."""

import argparse
import dataclasses

from videorft_jax.data.media.contract import Limits
from videorft_jax.data.records.formats import FORMATS


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, help="record file, Hugging Face folder, or tfds:NAME")
    add("--data_root", help="folder of the media; default: the file's own")
    add("--format", choices=FORMATS, default="auto", help="of the records")
    add("--limit", action="append", default=[], metavar="NAME=VALUE",
        help="as the option limits.NAME of a run, such as max_seconds=36000")  # fmt: skip
    add("--root", action="append", default=[], help="folder beside it where links may lead")


def make_limits(flags: argparse.Namespace) -> Limits:
    """The limits of the flags. Raises ValueError for a name or number that cannot be."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Limits)}
    del kinds["roots"]
    values = {}
    for given in flags.limit:
        name, _, value = given.partition("=")
        if name not in kinds:
            raise ValueError(f"--limit {given}: choose one of {', '.join(kinds)}")
        try:
            values[name] = kinds[name](float(value))
        except (ValueError, OverflowError):
            raise ValueError(f"--limit {given}: give a number, as {name}=100") from None
        if not values[name] > 0:
            raise ValueError(f"--limit {given}: give a number above 0")
    return Limits(**values, roots=tuple(flags.root))
