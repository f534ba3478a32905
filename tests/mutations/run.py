"""Applies each mutation to a copy of the project and reports how many its tests notice.

    python tests/mutations/run.py              all of them, which takes some minutes
    python tests/mutations/run.py --only 3     one, by its number

The exit code is 1 when fewer than 95 % are caught.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from mutations import MUTATIONS, Mutation

ROOT = pathlib.Path(__file__).parents[2]
LEAST = 0.95


def is_caught(mutation: Mutation, copy: pathlib.Path) -> bool:
    """Whether a test fails in the copy with the mutation applied; the copy is then as before."""
    path = copy / "videorft_jax" / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    try:
        done = subprocess.run(
            command + mutation.tests.split(), cwd=copy, env=environment, capture_output=True
        )
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):
        print(done.stdout.decode()[-2000:])
    return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, help="number of one mutation")
    only = parser.parse_args().only
    numbers = range(len(MUTATIONS)) if only is None else [only]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, "copy")
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        )
        caught = 0
        for number in numbers:
            mutation = MUTATIONS[number]
            found = is_caught(mutation, copy)
            caught += found
            word = "caught" if found else "MISSED"
            print(f"{number:3} {word} {mutation.file}: {mutation.old[:70]!r}", flush=True)
    print(f"{caught} of {len(numbers)} caught, {caught / len(numbers):.1%}")
    return int(caught < LEAST * len(numbers))


if __name__ == "__main__":
    sys.exit(main())
