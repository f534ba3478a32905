"""Every command's help comes without the libraries that take seconds to load."""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tomllib

import pytest

from videorft_jax import cli
from videorft_jax.cli import COMMANDS
from videorft_jax.commands import validate
from videorft_jax.rewards import accuracy

SCRIPT = """
import sys
from videorft_jax import cli
try:
    code = cli.main([sys.argv[1], "--help"])
except SystemExit as end:
    code = end.code or 0
print(code, [name for name in ("jax", "transformers", "torch", "scipy") if name in sys.modules])
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_heavy_library(command):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, command], capture_output=True, text=True, env=os.environ
    )
    *text, last = done.stdout.splitlines()
    assert last == "0 []", done.stderr
    assert any(command in line for line in text)


def test_validate_offers_the_modes_of_the_rewards(capsys):
    for mode in accuracy.MODES:
        assert validate._parse(["--data=x", f"--reward_mode={mode}"]).reward_mode == mode
    with pytest.raises(SystemExit):
        validate._parse(["--data=x", "--reward_mode=other"])
    assert "choose from" in capsys.readouterr().err


@pytest.fixture
def parser_of(monkeypatch):
    """command -> the parser that its main makes; None where its flags are those of recipes."""

    def find(command):
        found = []

        def parse(parser, *_, **__):
            found.append(parser)
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse)
            patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
            with contextlib.suppress(SystemExit):
                cli.main([command, "--help"])
        return found[0] if found else None

    return find


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_apart_from_what_it_says(command, capsys):
    """`videorft serve --checkpoint DIR Answers POST ...` is neither a command nor a sentence."""
    with contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out.removeprefix("usage: ")
    paragraphs = [part for part in text.split("\n\n") if part.startswith(f"videorft {command}")]
    assert paragraphs
    # Behind the name stands a flag or a word, and no list of all flags in brackets.
    assert all(part.removeprefix(f"videorft {command}").lstrip()[:1] != "[" for part in paragraphs)
    lines = [line for part in paragraphs for line in part.replace("\\\n", "").splitlines()]
    assert [line for line in lines if not line.startswith(("videorft ", " "))] == []
    assert "Raises" not in text  # What a program catches, a person sees as a line.
    assert "raises ValueError" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_the_defaults_of_numbers(command, parser_of):
    parser = parser_of(command)
    for action in parser._actions if parser else ():
        if isinstance(action.default, int | float) and action.default:
            assert "default" in (action.help or ""), action.option_strings


def test_init_writes_the_file_of_curate_as_well(tmp_path, capsys):
    """Who has installed a wheel has no configs/curate.toml, which errors and help speak of."""
    assert cli.main(["curate", f"--config={tmp_path}/a.toml", f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    (command,) = re.findall("`videorft (init [^`]+)`", said[0])
    with contextlib.chdir(tmp_path):
        assert cli.main(command.split()) == 0
        assert cli.main(command.split()) == 2
        assert "curate.toml: is there already" in capsys.readouterr().err
        tomllib.loads((tmp_path / "configs/curate.toml").read_text())
        assert cli.main(["init", "all"]) == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} >= {"sft_7b.py", "curate.toml"}
