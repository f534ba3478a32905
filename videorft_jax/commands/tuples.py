"""The form of every option that is a tuple, which is checked when a config is read.

A command line gives tuples as text in which a comma is soon forgotten: `(("format", 1.0))` is the
pair alone and no tuple of pairs.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def check_tuples(config: ConfigDict) -> None:
    """Raises ValueError for the first option of the config that has not its form."""
    for path, (holds, example) in FORMS.items():
        value: Any = config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, ConfigDict) else None
        if value is not None and not (isinstance(value, tuple | list) and holds(value)):
            raise ValueError(f"{config.name}: {path} is {value!r}; write {example}")


def _are_names(value):
    return all(isinstance(name, str) for name in value)


def _are_weights(value):
    return _are_pairs(value) and all(_is_number(number) for _, number in value)


def _are_numbers(value):
    return all(isinstance(number, int) and not isinstance(number, bool) for number in value)


def _are_variants(value):
    return _are_pairs(value) and all(
        isinstance(changes, tuple | list) and _are_pairs(changes) for _, changes in value
    )


def _are_pairs(value):
    """Whether each is a pair that begins with a name."""
    return all(
        isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    )


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


# Option -> (whether a tuple has its form, an example).
FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rewards": (_are_weights, "(('accuracy', 1.0), ('format', 1.0)), of one (('format', 1.0),)"),
    "reward.gated": (_are_names, "('semantic',)"),
    "reward.gates": (_are_weights, "(('regression', 0.5),)"),
    "train.freeze": (_are_names, "('vision', 'merger') or vision,merger"),
    "lora.targets": (_are_names, "('text/layers/attn/(q|k|v|o)$',)"),
    "limits.roots": (_are_names, "('/data/clips',)"),
    "tools.names": (_are_names, "('frames', 'my_tools:look') or frames,my_tools:look"),
    "ablate.variants": (_are_variants, "(('a', ()), ('b', (('grpo.beta', 0.0),)))"),
    "ablate.seeds": (_are_numbers, "(0, 1)"),
}
