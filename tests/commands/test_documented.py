"""Every command of README and documentation is one that its own parser takes, and those that a tiny
model can run are run."""

import argparse
import logging
import re

import pytest
from documented import read_commands
from tiny_run import ROOT

from videorft_jax import cli
from videorft_jax.commands import flags
from videorft_jax.commands.catalogue import COMMANDS
from videorft_jax.commands.completion import find_flags

SHOWN = read_commands()
OURS = [each for each in SHOWN if re.match(r"videorft |echo |launch/|xpk ", each.line)]
OURS = [each for each in OURS if each.words]
# Commands of others: what a line begins with, and why no test runs it.
OTHERS = {
    "bash launch/demo.sh": "test_empty_environment runs the demo from a wheel",
    "bash launch/test.sh": "it runs these tests",
    "launch/": "test_launch and test_launched_runs run them against stubs of gcloud and ssh",
    "pip install": "test_empty_environment installs the wheel; lmms_eval pins another PyAV",
    "lmms-eval": "test_lmms_eval_run runs it where lmms_eval is installed",
    "vllm serve": "vLLM needs a GPU",
    "export GLIBC_TUNABLES": "a variable of the shell",
    "mkdir": "a command of the shell",
}


class Parsed(Exception):
    """The command line has been read; nothing after it runs."""


@pytest.fixture
def parse(monkeypatch):
    """Calls a command that ends as soon as its command line has been understood."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments, **more):
        real(self, *arguments, **more)
        raise Parsed

    def started(_):
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(flags, "_start_processes", started)
    monkeypatch.chdir(ROOT)
    root, absl = logging.getLogger(), logging.getLogger("absl")
    handlers, levels = list(root.handlers), (root.level, absl.level)
    yield cli.main
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    absl.setLevel(levels[1])


def test_every_command_is_shown_somewhere():
    shown = {each.words[0] for each in OURS}
    assert set(COMMANDS) - shown == set()


def test_what_others_run_is_excused_by_name():
    others = [each.line for each in SHOWN if each not in OURS or each.line.startswith("launch/")]
    assert [line for line in others if not line.startswith((*OTHERS, "echo "))] == []
    assert [name for name in OTHERS if not any(line.startswith(name) for line in others)] == []


@pytest.mark.parametrize("shown", OURS, ids=lambda shown: f"{shown.page}: {shown.line[:60]}")
def test_the_parser_of_the_command_takes_it(parse, shown):
    """A command in a sentence may leave flags out; those that it has are the command's."""
    command, *given = [re.sub("=N$", "=1", word) for word in shown.words]
    given = [re.sub("^--config=recipes/", "--config=configs/", word) for word in given]  # init's
    assert command in COMMANDS
    names = {word.partition("=")[0] for word in given if word.startswith("--")} - {"--help"}
    known = {flag.rstrip("=") for flag in find_flags(command)}
    assert {name for name in names - known if not name.startswith("--config.")} == set()
    if "..." in shown.line or not shown.fenced and not {"--config", "--workdir"} <= names:
        return
    with pytest.raises(Parsed):
        parse([command, *given])
