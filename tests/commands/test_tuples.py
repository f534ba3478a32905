"""Options that are tuples are refused in one line where an element is of another kind."""

import pytest
from tiny_run import load_recipe

from videorft_jax.commands import flags, options_help
from videorft_jax.commands.tuples import check_tuples


def find_tuples():
    values = options_help.flatten(load_recipe("common"), "config")
    return [name for name, value in values if isinstance(value, tuple)]


@pytest.mark.parametrize("name", find_tuples())
def test_no_tuple_holds_something_else(name):
    """No option is a tuple of functions of Python."""
    config = load_recipe("common")
    *sections, last = name.split(".")[1:]
    target = config
    for section in sections:
        target = target[section]
    target[last] = (print,)
    with pytest.raises(ValueError, match=rf"{name.removeprefix('config.')} is \(.*; write"):
        check_tuples(config)


def test_numbers_are_no_tools():
    argv = ["--config=sft_7b", "--config.tools.names=(1,)"]
    with pytest.raises(ValueError, match=r"tools\.names is \(1,\); write \('frames'"):
        flags.parse(argv, "videorft sft", "", writes=False)
