"""`videorft init`: copies the recipes into a folder of your own, to edit."""

import argparse
import pathlib
import shutil

from videorft_jax.commands import recipes
from videorft_jax.commands.last_line import print_last_line

EXAMPLES = """videorft init recipes
videorft init recipes sft_7b grpo_7b
videorft init recipes curate"""


def main(argv: list[str]) -> int:
    """Copies recipes into a folder, by default all of them. They import each other by name and
    find those that you did not copy. `curate` is the file that `videorft curate` reads."""
    shipped = recipes.files()
    parser = argparse.ArgumentParser(
        prog="videorft init", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("folder", help="folder to write, made if it is not there")
    parser.add_argument("recipes", nargs="*", help=f"among {', '.join(shipped)}")
    own = parser.parse_args(argv)
    unknown = sorted(set(own.recipes) - set(shipped))
    if unknown:
        raise ValueError(f"no recipe {unknown[0]!r}; choose among {', '.join(shipped)}")
    folder, wanted = pathlib.Path(own.folder), own.recipes or list(shipped)
    copies = {name: folder / shipped[name].name for name in wanted}
    there = [path for path in copies.values() if path.exists()]
    if there:
        raise ValueError(f"{there[0]}: is there already; delete it or name others")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in copies.items():
        shutil.copyfile(shipped[name], path)
    name = next(name for name in ("sft_7b", *wanted) if name in wanted)
    command = recipes.find_command(name) or "doctor"
    flags = (f"--config={copies[name]}", f"--workdir=runs/{name}")
    print_last_line(f"{len(wanted)} recipes in {folder}", command, *flags, "...")
    return 0
