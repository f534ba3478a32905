"""Marks tests whose oracle is the text of a program, which each version of jax writes otherwise.

They hold for the version that requirements.lock names, which `launch/test.sh` installs; with
another version they are skipped and say so.
"""

import importlib.metadata
import pathlib
import re

import pytest

_LOCK = pathlib.Path(__file__).parents[2] / "requirements.lock"
_LOCKED = re.search(r"^jax==(\S+)", _LOCK.read_text(), re.MULTILINE)[1]
_HERE = importlib.metadata.version("jax")

text_of_locked_jax = pytest.mark.skipif(
    _HERE != _LOCKED,
    reason=f"the text expected is of jax {_LOCKED}, as requirements.lock says; here is {_HERE}",
)
