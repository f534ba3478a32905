"""`videorft init`: copies the recipes into a folder of your own, to edit."""

import argparse
import pathlib
import shutil

from videorft_jax.commands import recipes
from videorft_jax.commands.last_line import print_last_line


def main(argv: list[str]) -> int:
    """videorft init DIR [RECIPE ...]: copies recipes there, by default all of them. They import
    each other by name and find those that you did not copy."""
    parser = argparse.ArgumentParser(
        prog="videorft init", description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("folder", help="folder to write, made if it is not there")
    parser.add_argument("recipes", nargs="*", help=f"among {', '.join(recipes.names())}")
    own = parser.parse_args(argv)
    unknown = sorted(set(own.recipes) - set(recipes.names()))
    if unknown:
        raise ValueError(f"no recipe {unknown[0]!r}; choose among {', '.join(recipes.names())}")
    folder, wanted = pathlib.Path(own.folder), own.recipes or recipes.names()
    there = [name for name in wanted if (folder / f"{name}.py").exists()]
    if there:
        raise ValueError(f"{folder / there[0]}.py: is there already; delete it or name others")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        shutil.copyfile(recipes.shipped() / f"{name}.py", folder / f"{name}.py")
    name = next(name for name in ("sft_7b", *wanted) if name in wanted)
    command = recipes.find_command(name) or "doctor"
    flags = (f"--config={folder / name}.py", f"--workdir=runs/{name}")
    print_last_line(f"{len(wanted)} recipes in {folder}", command, *flags, "...")
    return 0
