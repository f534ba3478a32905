"""The command line of the commands that take a recipe: its file, overrides, a work directory.

Flags live in their own `FlagValues`, so that mains can be called from programs and tests. Nothing
here loads JAX before the command line has been read, so that `--help` answers at once.
"""

import ast
import contextlib
import logging
import os
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from videorft_jax.commands import options_help, recipes, tuples

FLAGS = (
    ("config", "STRING", "recipe: the name of one that ships, such as sft_7b, or a Python file"),
    ("workdir", "STRING", "folder where everything is written; of sft and grpo also gs://..."),
    ("distributed", "BOOL", "one of several processes, found as the platform says (TPU, SLURM)"),
    ("coordinator", "STRING", "host:port of process 0, where the platform does not say"),
    ("num_processes", "INTEGER", "how many there are"),
    ("process_id", "INTEGER", "which this one is, from 0"),
    ("profile", "INTEGER", "step of sft or grpo whose trace and timeline go to WORKDIR/profile"),
    ("allow_changes", "BOOL", "go on from a checkpoint that was made with other options"),
    ("help", "BOOL", "show this text and every option; --help=options shows the options alone"),
)
_WITH_VALUE = {f"--{name}" for name, kind, _ in FLAGS if kind != "BOOL"}


def parse(
    argv: list[str], command: str, examples: str, *, remote: bool = False, writes: bool = True
) -> tuple[ConfigDict, str]:
    """The locked config and the work directory of `--config=FILE --workdir=DIR --config.a.b=1`.

    `--coordinator`, `--num_processes` and `--process_id` start JAX's multi-process runtime before
    anything else touches a device; `--distributed` does it from what the platform says of itself
    (Cloud TPU, SLURM). `remote` allows a work directory in a bucket such as gs://bucket/run; a
    command that `writes` nothing needs none and keeps no compiled programs.

    Raises ValueError, one line, for anything it cannot use, and SystemExit after printing help.
    """
    if wants_help(argv):
        print(format_help(argv, examples))
        raise SystemExit(0)
    argv = _join_values(argv)
    if not remote and any(argument.startswith("--profile") for argument in argv):
        raise ValueError("--profile shows a step of training; give it to sft or grpo")
    _check_config(argv, examples, command)
    values = _read(argv, command)
    wanted = ("config", "workdir") if writes else ("config",)
    missing = [name for name in wanted if values[name].value in (None, "")]
    if missing:
        flag = " and ".join(f"--{name}" for name in missing)
        raise ValueError(f"{flag} missing; write {_first(examples)}")
    if writes and "://" in values.workdir and not remote:
        raise ValueError(f"--workdir={values.workdir}: lines are appended; give a local folder")
    from videorft_jax.checkpoints.save_errors import silence_threads
    from videorft_jax.training import compile_cache, compiler_memory  # loads JAX

    tuples.check_tuples(values.config)

    # Another library may have configured the root already.
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    silence_threads()
    compile_cache.forget_folders()
    compiler_memory.give_back_memory()
    _start_processes(values)
    if not writes:
        return values.config, ""
    workdir = values.workdir
    if "://" not in workdir:
        workdir = os.path.abspath(os.path.expanduser(workdir))
    compile_cache.keep_compiled(values.config.compile_cache, workdir)
    return values.config, workdir


def wants_help(argv: list[str]) -> bool:
    """Whether the command line asks for help instead of a run."""
    return any(argument in ("-h", "--help", "--help=options") for argument in argv)


def format_help(argv: list[str], examples: str) -> str:
    """The examples, the flags and every option; with `--help=options` the options alone. Values are
    those of the recipe, or the defaults where none is named."""
    argv = _join_values(argv)
    value = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), "common")
    config = recipes.read(value)
    options = options_help.format_options(config)
    if "--help=options" in argv:
        return options
    given = "of this recipe" if value != "common" else "by default"
    lines = [examples, "", *(f"  --{name:<15}{text}" for name, _, text in FLAGS)]
    return "\n".join([*lines, "", f"options and their values {given}:", options])


def _join_values(argv):
    """`--config FILE` as `--config=FILE`, and so for each flag that takes a value; `-config` as
    `--config`. A flag is no value of another: it follows one whose variable of a shell is empty."""
    joined, taking = [], False
    for argument in argv:
        if taking and not argument.startswith("--"):
            joined[-1] += f"={argument}"
            taking = False
        else:
            joined.append(re.sub(r"^-(?=[a-z])", "--", argument))
            taking = joined[-1] in _WITH_VALUE or _is_bare_option(joined[-1])
    return joined


def _is_bare_option(argument):
    return argument.startswith("--config.") and "=" not in argument


def _first(examples):
    """The first example, whose lines end in backslashes, as one line."""
    lines = []
    for line in examples.splitlines():
        lines.append(line.strip().rstrip("\\").strip())
        if not line.endswith("\\"):
            break
    return " ".join(lines)


def _check_config(argv, examples, command):
    """Raises ValueError for options without a recipe and for names that the recipe does not have,
    in better words than the libraries have."""
    if bare := _WITH_VALUE.intersection(argv):
        raise ValueError(_lacks_value(min(bare)))
    options = [argument for argument in argv if argument.startswith("--config.")]
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if len(given) > 1:
        raise ValueError(f"--config is given {len(given)} times; give one recipe")
    value = next(iter(given), None)
    if value is None:
        if options:
            raise ValueError(f"{options[0]} without a recipe; write {_first(examples)}")
        return
    config = recipes.read(value)
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={value}: get_config() returns no ConfigDict; see configs/")
    values = dict(options_help.flatten(config, "config"))
    known = [name.removeprefix("config.") for name in values]
    _check_kind(value, config, known, command)
    for option in options:
        written = option.split("=", 1)[0].removeprefix("--config.")
        name = re.sub(r"\[\d+\]", "", written)
        if name not in known:
            raise ValueError(options_help.suggest(name, known))
        if name != written:
            raise ValueError(f"--config.{written}: give the whole option, --config.{name}=VALUE")
        if _is_bare_option(option) and not isinstance(values[f"config.{name}"], bool):
            raise ValueError(_lacks_value(option))


def _lacks_value(flag):
    return f"{flag} has no value; write {flag}=VALUE"


def _check_kind(value, config, known, command):
    """Raises ValueError for a recipe of another command, for one that lacks options, and for one
    that sets options which there are not, as a recipe of another release does."""
    is_demo = command == "videorft demo"
    if command == "videorft doctor" and "world" in config:
        return
    wanted = options_help.flatten(recipes.read("demo" if is_demo else "common"), "config")
    missing = [path for path, _ in wanted if path.removeprefix("config.") not in known]
    if 0 < len(missing) < len(wanted) / 2:
        shown = "; ".join(f"{path} = {dict(wanted)[path]!r}" for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"--config={value}: written for an earlier release? It lacks options; add `{shown}`"
            f"{more} to it, or copy the recipes anew with `videorft init`"
        )
    if missing:
        start = "--config=demo" if is_demo else "one that ships, see `videorft init --help`"
        raise ValueError(
            f"--config={value}: is no recipe of {command}, as it lacks {missing[0]}; take {start}"
        )
    names = [path.removeprefix("config.") for path, _ in wanted]
    # The demo's model section holds keys of a config.json, which its family checks.
    free = ("model.",) if is_demo else ()
    unknown = [name for name in known if name not in names and not name.startswith(free)]
    if unknown:
        hint = options_help.suggest(unknown[0], names)
        raise ValueError(f"--config={value}: written for another release? {hint}")


def _read(argv, command):
    """The flags of `argv`, the config locked."""
    values = flags.FlagValues()
    for name, kind, text in FLAGS[1:]:
        default = False if kind == "BOOL" else None
        getattr(flags, f"DEFINE_{kind.lower()}")(name, default, text, flag_values=values)
    found = [_found(argument) for argument in argv]
    whole = [command, *found]
    config_flags.DEFINE_config_file("config", None, FLAGS[0][2], values, sys_argv=whole)
    path = next((a.split("=", 1)[1] for a in found if a.startswith("--config=")), "")
    with recipes.importable(path.partition(":")[0]):
        try:
            rest = values(whole)[1:]
            if rest:
                raise ValueError(f"{rest[0]!r} is no flag; write --name=value")
            if values.config is not None:
                values.config.lock()
        except (flags.Error, AttributeError, TypeError, KeyError, OSError) as error:
            text = str(error)
            with contextlib.suppress(ValueError, SyntaxError):  # str() of a KeyError is quoted
                text = str(ast.literal_eval(text))
            raise ValueError(" ".join(text.split())) from None
    return values


def _found(argument):
    if argument == "--allow_changes":
        return "--config.train.allow_changes=True"
    if argument.startswith("--profile="):
        return f"--config.log.{argument[2:]}"
    return f"--config={recipes.find(argument[9:])}" if argument[:9] == "--config=" else argument


def _start_processes(values):
    given = (values.coordinator, values.num_processes, values.process_id)
    if not values.distributed and given == (None, None, None):
        return
    import jax

    if values.distributed:
        jax.distributed.initialize()
    elif None in given:
        raise ValueError("give all of --coordinator, --num_processes and --process_id")
    else:
        jax.distributed.initialize(*given, cluster_detection_method="deactivate")
