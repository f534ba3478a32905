"""`videorft doctor`: what is wrong with this installation, this machine, or the inputs of a run."""

import argparse
import os
from collections.abc import Iterator

from videorft_jax.commands import recipes
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.doctor import installation, machine
from videorft_jax.doctor.findings import FAILURE, WARNING, Finding, format_findings, ok

EXAMPLES = """videorft doctor
videorft doctor --config=configs/grpo_7b.py --workdir=runs/grpo_7b --config.model.init_from=DIR
    (--config.section.option=value as for the runs themselves)"""


def main(argv: list[str]) -> int:
    """Looks at Python, packages, decoders, devices, disk, memory and the compile cache, then lets a
    tiny model work for a minute. With --config it also looks at the inputs of that run. Exit code 1
    when something will not work."""
    parser = argparse.ArgumentParser(
        "videorft doctor", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("--config", help="recipe whose inputs are looked at")
    parser.add_argument(
        "--workdir", default="", type=os.path.expanduser, help="work directory of the run to come"
    )
    parser.add_argument("--quick", action="store_true", help="leave out the tiny model")
    own, rest = parser.parse_known_args(argv)
    if rest and not own.config:
        raise ValueError(f"{rest[0]}: give --config=FILE with options of a config")
    config = broken = None
    if own.config:
        given = [f"--config={own.config}", *rest]
        try:
            config = _read_config(given)
        except (ImportError, RuntimeError) as error:  # An installation may be too broken for it.
            broken = error
    levels = []
    for finding in _look(config, own.workdir, own.quick, broken):
        print(format_findings([finding]), flush=True)
        levels.append(finding.level)
    _print_last(levels, own, config, argv)
    return 1 if FAILURE in levels else 0


def _read_config(given):
    from videorft_jax.commands import flags

    return flags.parse(given, "videorft doctor", EXAMPLES, writes=False)[0]


def _print_last(levels, own, config, argv):
    """Names the run that may start, or what is to be done before it."""
    found = f"{levels.count(FAILURE)} failures, {levels.count(WARNING)} warnings"
    if FAILURE in levels:
        print_last_line(f"{found}; mend what has failed", "doctor", *argv)
    elif config is None:
        print_last_line(found, "demo", "--config=demo", "--workdir=runs/demo")
    else:
        command = recipes.find_command(config.name) or "sft"
        flags = (f"--config={own.config}", f"--workdir={own.workdir or 'DIR'}")
        print_last_line(found, command, *flags, "...")


def _look(config, workdir, quick, broken) -> Iterator[Finding]:
    """Every finding, as soon as it is there; the slow checks come last. broken: the error of an
    installation that cannot even read a config."""
    yield installation.check_python()
    yield installation.check_versions()
    yield installation.check_requirements()
    yield installation.check_decoders()
    yield machine.check_memory(*machine.read_memory())
    yield machine.check_disk(workdir or os.getcwd())
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    yield machine.check_compile_cache((config and config.compile_cache) or cache)
    devices, hardware = installation.ask_devices(), installation.find_hardware()
    findings = installation.check_devices(devices, hardware)
    yield from findings
    if hardware == "cpu":
        yield machine.check_huge_pages()
    try:
        if config is not None:
            yield from _look_at_inputs(config, workdir)
    except ImportError as error:
        broken = error
    if broken is not None:
        text = f"inputs: they were not looked at ({' '.join(str(broken).split())})"
        yield Finding(FAILURE, text, "mend the installation first, as the lines above say")
    if not quick and not any(finding.level == FAILURE for finding in findings):
        from videorft_jax.doctor.self_test import run_self_test

        yield run_self_test()


def _look_at_inputs(config, workdir) -> Iterator[Finding]:
    if "world" in config:
        yield ok("inputs: the demo makes its own")
        return
    from videorft_jax.doctor import inputs
    from videorft_jax.training.setup import make_contract

    model, contract = config.model, make_contract(config)
    yield inputs.check_model(model.init_from, contract, model.strip_prefix, model.adapter)
    yield from inputs.check_records(config.data.records, config.data.root, contract)
    if "semantic" in dict(map(tuple, config.rewards)):
        yield inputs.check_siglip(config.reward.siglip)
    if workdir:
        yield inputs.check_checkpoints(workdir)
