"""Applies each mutation to a copy of the project and reports how many its tests notice.

    python tests/mutations/run.py              all of them, which takes some minutes
    python tests/mutations/run.py --only 3     one, by its number
    python tests/mutations/run.py --attacks    defences taken away, all of which must be caught

The exit code is 1 when fewer than 95 % are caught.
"""

import argparse
import os
import pathlib
import shutil
import sys
import tempfile

import jax  # noqa: F401, read once for all forks, as the next two
import pytest
import torch  # noqa: F401
import transformers  # noqa: F401
from attacks import ATTACKS
from mutations import MUTATIONS, Mutation

ROOT = pathlib.Path(__file__).parents[2]
LEAST = 0.95


def is_caught(mutation: Mutation, copy: pathlib.Path) -> bool:
    """Whether a test fails in the copy with the mutation applied; the copy is then as before."""
    path = copy / "videorft_jax" / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        code = run_tests(mutation.tests.split(), copy)
    finally:
        path.write_text(text)
    if code not in (0, 1):
        raise SystemExit(f"pytest gave exit code {code} for {mutation.tests}")
    return code == 1


def run_tests(arguments: list[str], copy: pathlib.Path) -> int:
    """The exit code of pytest in a fork of this process, which has read the large libraries."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, help="number of one mutation")
    parser.add_argument("--attacks", action="store_true", help="those of attacks.py instead")
    given = parser.parse_args()
    only, mutations = given.only, MUTATIONS
    if given.attacks:
        mutations = [attack.mutation for attack in ATTACKS]
    os.environ |= {"JAX_PLATFORMS": "cpu"}
    sys.dont_write_bytecode = True
    sys.path = [path for path in sys.path if pathlib.Path(path or ".").resolve() != ROOT]
    numbers = range(len(mutations)) if only is None else [only]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, "copy")
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        )
        caught = 0
        for number in numbers:
            mutation = mutations[number]
            found = is_caught(mutation, copy)
            caught += found
            word = "caught" if found else "MISSED"
            print(f"{number:3} {word} {mutation.file}: {mutation.old[:70]!r}", flush=True)
    print(f"{caught} of {len(numbers)} caught, {caught / len(numbers):.1%}")
    return int(caught < (1.0 if given.attacks else LEAST) * len(numbers))


if __name__ == "__main__":
    sys.exit(main())
