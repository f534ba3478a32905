"""`videorft benchmarks`: the benchmarks that can be evaluated, and what of them is on this disk."""

import argparse
import json
import os

from videorft_jax.commands.last_line import print_last_line
from videorft_jax.evaluation.benchmarks.catalogue import TASKS, describe

EXAMPLES = """videorft benchmarks
videorft benchmarks --data_root=benchmarks
videorft benchmarks --data_root=benchmarks --json"""
_SHOWN = 3  # missing files and problems of a benchmark


def main(argv: list[str]) -> int:
    """Lists each benchmark: rows, the files it wants and where to get them, its licence, and with a
    data root what is found there, what is missing and what is wrong."""
    parser = argparse.ArgumentParser(
        prog="videorft benchmarks", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--data_root", type=os.path.expanduser, help="folder that holds a folder for each benchmark"
    )
    parser.add_argument("--json", action="store_true", help="print a list for programs")
    own = parser.parse_args(argv)
    if own.data_root and not os.path.isdir(own.data_root):
        raise ValueError(f"--data_root={own.data_root}: no such folder")
    found = {name: describe(task, own.data_root) for name, task in TASKS.items() if own.data_root}
    if own.json:
        whole = found or {
            name: {"name": name, "rows": task.num_rows, "found": 0, "missing": [], "problems": []}
            for name, task in TASKS.items()
        }
        print(json.dumps(list(whole.values()), indent=1))
    for name, task in {} if own.json else TASKS.items():
        print(f"{name:<16}{task.num_rows:>6} rows  {task.title}")
        print(f"    get     {task.source} ({task.licence})")
        print(f"    files   {' or '.join(task.files)} in {' or '.join(task.folders)}")
        if found:
            _print_found(found[name])
    _print_last(found, own)
    return 0


def _print_last(found, own):
    """What can be evaluated of that which is there, or how to look for it."""
    whole = [name for name, item in found.items() if item["rows"] and not item["missing"]]
    written = f"{len(whole)} of {len(TASKS)} benchmarks are whole in {own.data_root}"
    following: tuple[str, ...] = ("evaluate", "--config=evaluate_7b", "--workdir=runs/base")
    following += (f"--benchmarks={','.join(whole)}", f"--data_root={own.data_root}", "...")
    if not whole:
        following = ("benchmarks", f"--data_root={own.data_root or 'DIR'}")
        written = written if own.data_root else f"{len(TASKS)} benchmarks, none looked for"
    print_last_line(written, *following, to_stderr=own.json)


def _print_found(own):
    missing, problems = own["missing"], own["problems"]
    print(f"    here    {own['rows']} rows, {own['found']} clips, {len(missing)} files missing")
    for text in [f"missing {path}" for path in missing[:_SHOWN]] + problems[:_SHOWN]:
        print(f"            {text}")
    hidden = max(0, len(missing) - _SHOWN) + max(0, len(problems) - _SHOWN)
    if hidden:
        print(f"            and {hidden} more; --json lists them all")
