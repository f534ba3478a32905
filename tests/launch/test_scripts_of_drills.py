"""The scripts of drills and long runs start in the environment that launch/test.sh makes."""

import os
import subprocess

import pytest
from tiny_run import ROOT

SCRIPTS = ("drill", "soak")


def start(name, **variables):
    """`bash launch/NAME.sh --help` with these variables, and without those of the tests."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "VENV")}
    return subprocess.run(
        ["bash", str(ROOT / f"launch/{name}.sh"), "--help"],
        env=env | variables, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_environment_that_is_not_there_is_one_line(name, tmp_path):
    done = start(name, VENV=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"launch/{name}.sh: no {tmp_path}/none/bin/python; ")
    assert "bash launch/test.sh" in line


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("variable", ["VENV", "PYTHON"])
def test_the_environment_is_the_one_that_is_named(name, variable, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "python").chmod(0o755)
    values = {"VENV": str(tmp_path), "PYTHON": str(folder / "python")}
    done = start(name, **{variable: values[variable]})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"tests/drills/{name}.py --help\n"
