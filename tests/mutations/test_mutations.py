"""The list of mutations fits the code: `python tests/mutations/run.py` tries them."""

import collections
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from attacks import ATTACKS  # noqa: E402, beside this file
from mutations import MUTATIONS  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
ALL = [*MUTATIONS, *(attack.mutation for attack in ATTACKS)]


def test_every_mutation_stands_once_in_its_file():
    wrong = {}
    for number, mutation in enumerate(ALL):
        text = (ROOT / "videorft_jax" / mutation.file).read_text()
        if text.count(mutation.old) != 1 or mutation.old == mutation.new:
            wrong[number] = (mutation.file, mutation.old, text.count(mutation.old))
    assert not wrong
    assert len(MUTATIONS) >= 60
    repeated = collections.Counter(mutation[:3] for mutation in ALL)
    assert max(repeated.values()) == 1


def test_every_named_test_file_is_there():
    for mutation in ALL:
        for path in re.findall(r"\S+\.py", mutation.tests):
            assert (ROOT / path).is_file(), path
