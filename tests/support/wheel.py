"""The wheel of this checkout, and the interpreters that it is tried with."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from tiny_run import ROOT

SHIPPED = ("videorft_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def copy_shipped(source: pathlib.Path) -> None:
    """Copies the files that ship into a new folder."""
    source.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)


def build_wheel(folder: pathlib.Path) -> pathlib.Path:
    """The wheel, built from a copy of the files that ship."""
    source = folder / "source"
    copy_shipped(source)
    build = ["wheel", source, "--no-deps", "--no-build-isolation", "-w", folder / "dist"]
    subprocess.run([sys.executable, "-m", "pip", "-q", *build], check=True)
    shutil.rmtree(source)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def interpreters():
    """This Python and those of VIDEORFT_PYTHONS, which have the dependencies."""
    found = {sys.executable: f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for path in os.environ.get("VIDEORFT_PYTHONS", "").split(os.pathsep):
        if path:
            found[path] = os.path.basename(os.path.dirname(os.path.dirname(path)))
    return [pytest.param(path, id=name) for path, name in found.items()]
