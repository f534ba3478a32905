"""The commands that README and documentation show: those in fences, and those between backticks."""

import pathlib
import re
import shlex
from typing import NamedTuple

from tiny_run import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "launch/README.md", "docs/**/*.md")
# Fences that hold no commands.
OTHER_FENCES = ("json", "python", "toml")
STARTS = ("videorft ", "pip install", "bash ", "launch/", "python", "vllm ", "lmms-eval ", "xpk ",
          "export ", "mkdir ", "source ", "echo ", "PYTHONPATH", "docker ")  # fmt: skip


class Shown(NamedTuple):
    """A command line as a page shows it, without comments; `fenced`: it stands in a block."""

    page: str
    line: str
    fenced: bool

    @property
    def words(self) -> list[str]:
        """The words behind `videorft`, or those that a launcher passes on to it, up to a pipe or
        redirection. "..." stands for what the reader fills in."""
        start = " -- " if self.line.startswith("launch/") else "videorft "
        line = re.split(r" (?:\||>|&&) ", self.line.partition(start)[2])[0]
        if self.line.startswith("xpk "):
            line = line.removesuffix('"')  # It closes --command="videorft ...".
        return [word for word in shlex.split(line) if word != "..."]


def read_commands() -> list[Shown]:
    """All of them, in the order of pages and lines."""
    found = []
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            found += _read_page(page)
    return found


def _read_page(page: pathlib.Path):
    name, text = page.relative_to(ROOT).as_posix(), page.read_text()
    fences = re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    for _, language, body in fences:
        if language in OTHER_FENCES:
            continue
        for line in re.sub(r"\\\n\s*", "", body).splitlines():
            line = re.sub(r"\s+# .*", "", line).strip()
            if line.startswith(STARTS):
                yield Shown(name, line, True)
    plain = re.sub(r"^( *)```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"`(videorft [^`]+)`", plain):
        yield Shown(name, " ".join(line.split()), False)
