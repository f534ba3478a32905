"""Where the recipes are: those that ship with the package, and files of the user's own."""

import contextlib
import os
import pathlib
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import videorft_jax


def shipped() -> pathlib.Path:
    """The folder of the recipes: `recipes` in an installed package, `configs` in a checkout."""
    package = pathlib.Path(videorft_jax.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The names by which `--config=NAME` finds a recipe from any folder."""
    return sorted(path.stem for path in shipped().glob("*.py") if path.stem != "__init__")


def files() -> dict[str, pathlib.Path]:
    """What ships to be copied and edited: the recipes, and the file of `videorft curate`."""
    paths = [*(shipped() / f"{name}.py" for name in names()), *shipped().glob("*.toml")]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def find_command(name: str) -> str:
    """The command that the recipe of this name is for, by its name; empty where it does not say."""
    known = ("sft", "grpo", "evaluate", "ablate", "demo", "curate")
    return next((command for command in known if command in name), "")


def find(value: str) -> str:
    """The file that `--config=value` means, with the argument of the recipe if one follows a colon.

    `value` is the path of a file, else the name of a recipe, `sft_7b` or `configs/sft_7b.py`.
    Raises ValueError when it is neither.
    """
    path, colon, argument = value.partition(":")
    if not os.path.isfile(path):
        name = pathlib.Path(path).stem
        known = path in (name, f"{name}.py", f"configs/{name}.py") and name in names()
        if not known:
            raise ValueError(
                f"--config={value}: no such file, and no recipe of that name; give a file or one "
                f"of {', '.join(names())}"
            )
        path = str(shipped() / f"{name}.py")
    return path + colon + argument


@contextlib.contextmanager
def importable(path: str) -> Iterator[None]:
    """Inside, the recipe at `path` can import those beside it and those that ship, by name."""
    before = list(sys.path)
    sys.path[:] = [str(pathlib.Path(path).resolve().parent), str(shipped()), *before]
    try:
        yield
    finally:
        sys.path[:] = before


def read(value: str) -> Any:
    """What `get_config` of the recipe returns. Raises ValueError for a file that is no recipe."""
    path, _, argument = find(value).partition(":")
    try:
        with importable(path):
            make = runpy.run_path(path).get("get_config")
            if make is None:
                raise ValueError(f"--config={path}: defines no get_config(); see those in configs/")
            return make(argument) if argument else make()
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--config={path}: {type(error).__name__}: {reason}") from None
