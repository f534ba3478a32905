"""The command line that the mains share: a config file, overrides, a work directory.

Flags live in their own `FlagValues`, so that mains can be called from programs and tests.
"""

import ast
import contextlib
import logging
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from videorft_jax.training import compile_cache

FLAGS = (
    ("config", "STRING", "recipe, a Python file such as those in configs/"),
    ("workdir", "STRING", "folder where everything is written; of sft and grpo also gs://..."),
    ("distributed", "BOOL", "one of several processes, found as the platform says (TPU, SLURM)"),
    ("coordinator", "STRING", "host:port of process 0, where the platform does not say"),
    ("num_processes", "INTEGER", "how many there are"),
    ("process_id", "INTEGER", "which this one is, from 0"),
    ("help", "BOOL", "show this text; with --config its options too"),
)


def parse(
    argv: list[str], command: str, examples: str, *, remote: bool = False, writes: bool = True
) -> tuple[ConfigDict, str]:
    """The locked config and the work directory of `--config=FILE --workdir=DIR --config.a.b=1`.

    `--coordinator`, `--num_processes` and `--process_id` start JAX's multi-process runtime before
    anything else touches a device; `--distributed` does it from what the platform says of itself
    (Cloud TPU, SLURM). `remote` allows a work directory in a bucket such as gs://bucket/run; a
    command that `writes` nothing needs none and keeps no compiled programs.
    Raises ValueError, one line, for anything it cannot use.
    """
    values = _read(["--help" if argument == "-h" else argument for argument in argv], command)
    if values.help:
        print(_help(values, examples))
        raise SystemExit(0)
    wanted = ("config", "workdir") if writes else ("config",)
    missing = [name for name in wanted if values[name].value is None]
    if missing:
        flag = " and ".join(f"--{name}" for name in missing)
        raise ValueError(f"{flag} missing; write {examples.splitlines()[0].rstrip(' ' + chr(92))}")
    if writes and "://" in values.workdir and not remote:
        raise ValueError(f"--workdir={values.workdir}: lines are appended; give a local folder")
    # Another library may have configured the root already. Orbax reports every file, and the
    # traces of its threads, to absl; what concerns the user comes as an exception too.
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    compile_cache.forget_folders()
    _start_processes(values)
    if not writes:
        return values.config, ""
    workdir = values.workdir if "://" in values.workdir else os.path.abspath(values.workdir)
    compile_cache.keep_compiled(values.config.compile_cache, workdir)
    return values.config, workdir


def _read(argv, command):
    """The flags of `argv`, the config locked."""
    values = flags.FlagValues()
    for name, kind, text in FLAGS[1:]:
        default = False if kind == "BOOL" else None
        getattr(flags, f"DEFINE_{kind.lower()}")(name, default, text, flag_values=values)
    whole = [command, *argv]
    config_flags.DEFINE_config_file("config", None, FLAGS[0][2], values, sys_argv=whole)
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    if "--config" in argv:
        raise ValueError("--config is followed by a space; write --config=FILE")
    file = path and path.split(":")[0]  # what follows a colon is the recipe's argument
    if path is not None and not os.path.isfile(file):
        raise ValueError(f"--config={path}: no such file; give a recipe, see configs/")
    if path is not None:  # recipes import each other by name
        sys.path.insert(0, str(pathlib.Path(file).resolve().parent))
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
        what = "no such option: " if isinstance(error, KeyError | AttributeError) else ""
        raise ValueError(what + " ".join(text.split())) from None
    finally:
        if path is not None:
            sys.path.pop(0)
    return values


def _help(values, examples):
    lines = [examples, "", *(f"  --{name:<15}{text}" for name, _, text in FLAGS)]
    if values.config is not None:
        lines += ["", "options and their values in this config; configs/common.py explains them:"]
        lines += [f"  --{name}={value}" for name, value in flatten(values.config, "config")]
    return "\n".join(lines)


def flatten(config: ConfigDict, prefix: str) -> list[tuple[str, object]]:
    """(dotted name, value) of every option, sections in alphabetical order."""
    found = []
    for name in sorted(config):
        value, path = config[name], f"{prefix}.{name}"
        found += flatten(value, path) if isinstance(value, ConfigDict) else [(path, value)]
    return found


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
