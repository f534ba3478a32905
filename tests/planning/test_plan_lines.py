"""What is planned by the lines that documents and help show, up to the first program."""

import pathlib
import re
import shlex

import pytest

from videorft_jax.commands import plan
from videorft_jax.planning import machines
from videorft_jax.planning.plan import make_jobs

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "launch/README.md", *(ROOT / "docs").rglob("*.md")]


def find_lines():
    texts = [plan.EXAMPLES, *(page.read_text() for page in PAGES)]
    lines = [
        line.replace("\\\n", " ")
        for text in texts
        for line in re.findall(r"^videorft plan (?:.*\\\n)*.*", text, re.M)
    ]
    return sorted({" ".join(line.split("#")[0].split()[2:]) for line in lines})


LINES = find_lines()


def test_lines_are_found():
    assert len(LINES) >= 7
    assert any("data.records" in line for line in LINES)


@pytest.mark.parametrize("line", [line for line in LINES if "data.records" not in line])
def test_a_line_that_is_shown_is_taken(line, tmp_path):
    """Rows that do not divide over the devices would be refused, as by the run itself."""
    own, config = plan._parse(shlex.split(line))
    options = plan.read_options(config, own.mode)
    (job,) = make_jobs(options, machines.find(own.topology), str(tmp_path), size=own.model)
    assert job.topology.name.startswith(own.topology.split(":")[0].split("-")[0])
