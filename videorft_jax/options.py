"""The command line that the mains share: a config file, overrides, a work directory.

Flags live in their own `FlagValues`, so that mains can be called from programs and tests.
"""

import logging
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags


def parse(argv: list[str], command: str, examples: str) -> tuple[ConfigDict, str]:
    """The locked config and the work directory of `--config=FILE --workdir=DIR --config.a.b=1`.

    `--coordinator`, `--num_processes` and `--process_id` start JAX's multi-process runtime before
    anything else touches a device; `--distributed` does it from what the platform says of itself
    (Cloud TPU, SLURM). Raises ValueError, one line, for anything it cannot use.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Recipe, see configs/.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Where everything is written.", flag_values=values)
    flags.DEFINE_bool("distributed", False, "One of several processes.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many there are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which this one is.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this text.", short_name="h", flag_values=values)
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    if path is not None:  # recipes import each other by name
        sys.path.insert(0, str(pathlib.Path(path).resolve().parent))
    try:
        if {"--help", "-h"} & set(argv):
            print(f"{examples}\n\n{values.get_help()}")
            raise SystemExit(0)
        rest = values([command, *argv])[1:]
        if rest:
            raise ValueError(f"{rest[0]!r} is no flag; write --name=value")
        if values.config is None or not values.workdir:
            raise ValueError(f"give --config=FILE and --workdir=DIR, as in\n{examples}")
        values.config.lock()
    except (flags.Error, AttributeError, TypeError, KeyError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        if path is not None:
            sys.path.pop(0)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file
    _start_processes(values)
    return values.config, values.workdir


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


def describe_environment() -> str:
    """One line: processes, devices, platform."""
    import jax

    kind = jax.devices()[0].device_kind
    host = f"process {jax.process_index()} of {jax.process_count()}, pid {os.getpid()}"
    return f"{jax.device_count()} x {kind}, {host}"
