"""The flags that commands about records share: where records and media are, what a clip may cost,
and how it becomes frames."""

import argparse
import dataclasses
import os
import pathlib

from videorft_jax.commands import recipes
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.records.formats import FORMATS
from videorft_jax.models.geometry import WINDOWED_14, Geometry

_PREFIX = "config.media."
THREADS = "decoding threads; default: one a core, at most 16"


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, help="record file, Hugging Face folder, or tfds:NAME")
    add("--data_root", help="folder of the media; default: the file's own")
    add("--format", choices=FORMATS, default="auto", help="of the records")
    add("--limit", action="append", default=[], metavar="NAME=VALUE",
        help="as the option limits.NAME of a run, such as max_seconds=36000")  # fmt: skip
    add("--root", action="append", default=[], help="folder beside it where links may lead")


def at_least_one(text: str) -> int:
    """A count of argparse; it says so of a number below 1."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give at least 1")
    return int(text)


def check_tokenizer(flag: str, folder: str | None) -> None:
    """Raises ValueError where the folder that `flag` names has no tokenizer of ours to read."""
    if folder and not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        raise ValueError(
            f"{flag}={folder}: no tokenizer.json there; give a Hugging Face folder on this disk"
        )


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


def add_contract_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--contract", choices=("train", "evaluate"),
        help="media contract; default: train, and evaluate with --mode=evaluate")  # fmt: skip
    add("--config", help="recipe that says how media are read, a name or a file; its options too, "
        "as --config.media.max_frames=8")  # fmt: skip
    for name in recipes.read("common").media:
        add(f"--{_PREFIX}{name}", help=argparse.SUPPRESS)


def given_media(flags: argparse.Namespace) -> dict[str, str]:
    """The options of a recipe's media that the flags replace, by their names in its section."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in vars(flags).items()
        if name.startswith(_PREFIX) and value is not None
    }


def name_recipe(flags: argparse.Namespace, default: str) -> tuple[str, ...]:
    """The words of a command whose media are those of the flags: its name, its recipe, by default
    that called `default`, its work directory and what replaces the media of the recipe."""
    config = flags.config or default
    stem = pathlib.Path(config.partition(":")[0]).stem
    media = given_media(flags) | ({"preset": "evaluate"} if flags.contract == "evaluate" else {})
    changed = (f"--{_PREFIX}{name}={value}" for name, value in media.items())
    command = recipes.find_command(stem) or recipes.find_command(default)
    return command, f"--config={config}", f"--workdir=runs/{stem}", *changed


def read_contract(flags: argparse.Namespace, geometry: Geometry = WINDOWED_14) -> MediaContract:
    """The media contract of the flags: a preset for `geometry`, or that of a recipe with the given
    options in place of its own. Raises ValueError for a value that cannot be, and for a preset
    beside a recipe."""
    given = given_media(flags)
    if flags.contract and (flags.config or given):
        raise ValueError("--contract names a preset and --config a recipe; give one of them")
    if not flags.config and not given:
        return getattr(MediaContract, flags.contract or "train")(geometry)
    from videorft_jax.training.setup import PRESETS, make_contract  # loads JAX

    config = recipes.read(flags.config or "common")
    for name, value in given.items():
        kind = type(config.media[name])
        try:
            config.media[name] = kind(value)
        except ValueError:
            raise ValueError(
                f"--{_PREFIX}{name}={value}: give a number, as {config.media[name]}"
            ) from None
    if config.media.preset not in PRESETS:
        raise ValueError(f"--{_PREFIX}preset={config.media.preset}: choose one of {PRESETS}")
    return make_contract(config)
