"""What `--help` prints of every option: its meaning, default and range, section by section.

Meanings are the comments of `configs/common.py`, so that there is one text to keep.
"""

import difflib
import re
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from videorft_jax.commands import recipes
from videorft_jax.training.ranges import RANGES

_LINE = re.compile(r"    config\.([a-z_0-9.]+) = (.*?)(?:  # (.*))?$")
_WIDTH, _LEFT = 100, 44  # columns of a line, and of an option in it
# What other programs call an option of ours.
_OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "batch_size": "data.rows",
    "num_generations": "rollout.num_rollouts",
    "max_completion_length": "rollout.max_new_tokens",
    "max_grad_norm": "optim.clip",
    "gradient_accumulation_steps": "train.accumulate",
    "num_train_epochs": "data.epochs",
    "save_steps": "checkpoint.every",
    "model_name_or_path": "model.init_from",
    "output_dir": "--workdir",
}


class Comments(NamedTuple):
    """meanings: option -> one line. sections: name -> one line, in the order of the file."""

    meanings: dict[str, str]
    sections: dict[str, str]


def read_comments() -> Comments:
    """The comments of `common.py`: of an option the one behind it, else the lines above it."""
    meanings, sections, above = {}, {}, []
    for line in (recipes.shipped() / "common.py").read_text().splitlines():
        if line.startswith("    # "):
            above.append(line.strip().removeprefix("# "))
            continue
        if found := _LINE.match(line):
            name, value, behind = found.groups()
            into = sections if value == "ConfigDict()" else meanings
            into[name] = behind or " ".join(above)
        above = []
    return Comments(meanings, sections)


def flatten(config: ConfigDict, prefix: str) -> list[tuple[str, object]]:
    """(dotted name, value) of every option, sections in alphabetical order."""
    found = []
    for name in sorted(config):
        value, path = config[name], f"{prefix}.{name}"
        found += flatten(value, path) if isinstance(value, ConfigDict) else [(path, value)]
    return found


def format_options(config: ConfigDict) -> str:
    """Every option of `config` with its value there, its range and its meaning."""
    comments = read_comments()
    values = {name.removeprefix("config."): value for name, value in flatten(config, "config")}
    lines = []
    for section in ("", *comments.sections):
        if section:
            lines += ["", f"{section}: {comments.sections[section]}"]
        for name, meaning in comments.meanings.items():
            if name.rpartition(".")[0] == section and name in values:
                lines += _format_option(name, values.pop(name), meaning)
    for name, value in values.items():  # options of a recipe that common.py does not have
        lines += _format_option(name, value, "")
    return "\n".join(lines)


def _format_option(name, value, meaning):
    """The option on the left, its meaning and range on the right, wrapped."""
    allowed = f"[{RANGES[name]}]" if name in RANGES else ""
    texts = textwrap.wrap(f"{meaning} {allowed}".strip(), _WIDTH - _LEFT) or [""]
    head = f"  --config.{name}={value}"
    first = f"{head:<{_LEFT}}{texts[0]}".rstrip()
    if len(head) >= _LEFT - 1:
        first = f"{head}\n{'':<{_LEFT}}{texts[0]}".rstrip()
    return [first, *(f"{'':<{_LEFT}}{text}" for text in texts[1:])]


def suggest(name: str, known: Iterable[str]) -> str:
    """The line that refuses an option `name` and says which one may have been meant."""
    known = list(known)
    last = name.rpartition(".")[2]
    close = [_OTHER_NAMES[last]] if last in _OTHER_NAMES else []
    close = close or difflib.get_close_matches(name, known, 1, 0.75)
    close = close or [path for path in known if path.rpartition(".")[2] == last][:1]
    meant = f"did you mean {close[0]}? " if close else ""
    shown = name if name.isprintable() else repr(name)
    return f"no such option: {shown}; {meant}--help=options lists all of them"
