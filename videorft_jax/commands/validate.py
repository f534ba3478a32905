"""`videorft validate`: everything that is wrong with a data set, before it is trained on."""

import argparse
import functools
import json
import logging
import os
import sys

from videorft_jax.commands import recipes
from videorft_jax.commands.data_flags import (
    THREADS,
    add_contract_flags,
    add_data_flags,
    at_least_one,
    check_tokenizer,
    given_media,
    make_limits,
    name_recipe,
    read_contract,
)
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.commands.output_file import check_output

EXAMPLES = """videorft validate --data FILE.jsonl --data_root DIR
videorft validate --data FILE.jsonl --config=grpo_7b --config.media.max_frames=8"""


def main(argv: list[str] | None = None) -> int:
    """Checks every record and its media, and predicts the shapes of a run. Returns 0 when all is
    good, 1 when records are bad, 2 when it cannot run."""
    flags = _parse(argv)
    # These load transformers and SciPy, which --help does without.
    from videorft_jax.data.progress import Bar
    from videorft_jax.data.records.opening import open_records
    from videorft_jax.data.validate import ValidateOptions, guess_mode, validate
    from videorft_jax.data.validate_report import print_report
    from videorft_jax.rewards import accuracy

    logging.basicConfig(level=logging.WARNING)
    try:
        if flags.json and (os.path.isdir(flags.json) or not os.path.exists(flags.json)):
            check_output(flags.json, "--json")  # A device such as /dev/stdout may stand there.
        check_tokenizer("--tokenizer", flags.tokenizer)
        source = open_records(flags.data, flags.data_root, flags.format)
        recipe = recipes.read(flags.config) if flags.config else None
        stage = flags.mode or _stage_of(recipe)
        why = "asked for" if flags.mode else "by the recipe's name"
        mode, why = (stage, why) if stage else guess_mode(source)
        if mode == "evaluate" and not (flags.contract or flags.config or given_media(flags)):
            flags.contract = "evaluate"  # Clips are read as the recipes of evaluation read them.
        options = ValidateOptions(
            mode=mode,
            sizes_dir=flags.answers or f"{flags.data}.sizes",
            limits=make_limits(flags),
            contract=read_contract(flags),
            allowed=None if flags.allow_extra == [] else tuple(flags.allow_extra or ()),
            **{name: getattr(flags, name) for name in SHARED},
            **_read_shapes(flags, recipe),
        )
        check = functools.partial(accuracy.find_unreadable, mode=flags.reward_mode)
        is_grpo = mode == "grpo"
        report = validate(source, options, Bar(len(source)), check if is_grpo else None)
        report |= {"why": why}
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        line = str(error)
        if isinstance(error, OSError) and error.filename:
            line = f"{error.filename}: {error.strerror}; see that it can be read and written"
        print(f"videorft validate: {line}", file=sys.stderr)
        return 2
    print_report(report, flags.faults)
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
        print(f"report written to {os.path.abspath(flags.json)}")
    following = _name_next(flags, recipe, mode, report["num_good"])
    print_last_line(f"checked sizes kept in {options.sizes_dir}", *following, "...")
    return 1 if report["faults"] or report["unused_fields"] else 0


SHARED = ("tokenizer", "quick", "isolate", "threads")
MODES = ("sft", "grpo", "evaluate")
# What a recipe says of its prompts and rows, and what holds without a recipe.
SHAPES = {
    "template_file": None, "rows": 8, "row_tokens": 8192, "max_buckets": 4, "multiple": 128,
}  # fmt: skip


def _name_next(flags, recipe, mode, num_good):
    """The words of the next command: the run, or this one where no run has anything to read before
    the file is mended."""
    if not num_good:
        named = [f"--config={flags.config}"] if recipe else []
        return "validate", f"--data={flags.data}", *named
    if recipe and _stage_of(recipe) != mode:
        flags = argparse.Namespace(**vars(flags) | {"config": None})
    return *name_recipe(flags, f"{mode}_7b"), f"--config.data.records={flags.data}"


def _stage_of(recipe):
    """The mode that a recipe is for, by its name; None where there is no such mode."""
    command = recipes.find_command(recipe.get("name", "")) if recipe else ""
    return command if command in MODES else None


def _read_shapes(flags, recipe):
    """The values of SHAPES: those of the flags, else of the recipe, else the usual ones."""
    data = recipe.get("data", {}) if recipe else {}
    usual = {name: data.get(name, value) or None for name, value in SHAPES.items()}
    given = {name: getattr(flags, name) for name in SHAPES}
    return usual | {name: value for name, value in given.items() if value is not None}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="videorft validate", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add_data_flags(parser)
    add = parser.add_argument
    add("--mode", choices=MODES,
        help="default: by the recipe's name, else sft if rows have reasoning")  # fmt: skip
    add(
        "--reward_mode",
        choices=("repo", "paper", "strict"),
        default="strict",
        help="rules that read truths; default: %(default)s",
    )
    add_contract_flags(parser)
    add("--tokenizer", help="local folder; without it text tokens are estimated")
    add("--template_file", help="prompt template, .json or .toml")
    for name, text in (
        ("rows", "rows of a batch"),
        ("row_tokens", "tokens of a packed row, most of a prompt"),
        ("max_buckets", "most shapes to compile"),
        ("multiple", "row lengths are multiples of this"),
    ):
        add(f"--{name}", type=at_least_one,
            help=f"{text}; default: the recipe's, else {SHAPES[name]}")  # fmt: skip
    add("--quick", action="store_true", help="look at packets only, decode nothing")
    add("--isolate", action="store_true", help="decode in killable processes")
    add("--threads", type=at_least_one, default=min(16, os.cpu_count() or 1), help=THREADS)
    add("--answers", help="folder that remembers what was checked; default: FILE.sizes")
    add("--allow_extra", nargs="*", metavar="FIELD", help="fields for user rewards; none: all")
    add(
        "--faults", type=int, default=100, help="most faults that are printed; default: %(default)s"
    )
    add("--json", help="write the report here")
    return parser.parse_args(argv)
