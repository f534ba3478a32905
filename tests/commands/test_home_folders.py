"""A shell leaves `--out=~/x` as it is, so that every command writes out the home folder itself."""

import argparse
import importlib
import json
import pathlib

import pytest

from videorft_jax import commands
from videorft_jax.commands import convert
from videorft_jax.commands.catalogue import COMMANDS

WRITTEN = ("--out", "--workdir", "--export_batch")  # where a command writes
# Those that read their flags themselves. `commands.flags` reads those of the others, and
# `checkpoints.bucket` the work directory of a plan.
READERS = [
    name for name in COMMANDS
    if "import argparse" in pathlib.Path(commands.__path__[0], f"{name}.py").read_text()
    and name != "plan"
]  # fmt: skip


class Parsed(Exception):
    """Ends a command once it has said which flags it has."""


@pytest.mark.parametrize("command", READERS)
def test_places_that_are_written_may_lie_in_the_home_folder(command, monkeypatch, tmp_path):
    flags = []

    def keep(self, *_, **__):
        flags.extend(
            action for action in self._actions if set(WRITTEN) & set(action.option_strings)
        )
        raise Parsed

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, keep)
    monkeypatch.setenv("HOME", str(tmp_path))
    module = importlib.import_module(f"videorft_jax.commands.{command}")
    with pytest.raises(Parsed):
        module.main(["--x"])
    for flag in flags:
        assert flag.type is not None, flag.option_strings
        assert flag.type("~/x") == str(tmp_path / "x")


def test_rows_are_written_into_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    row = {"conversations": [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"image": "a.png"}) + "\n")
    (tmp_path / "mine").mkdir()
    assert convert.main(["--data=rows.jsonl", "--out=~/mine/made.jsonl"]) == 0
    assert (tmp_path / "mine" / "made.jsonl").is_file()
    assert not (tmp_path / "~").exists()
