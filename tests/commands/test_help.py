"""Every command's help comes without the libraries that take seconds to load."""

import os
import subprocess
import sys

import pytest

from videorft_jax.cli import COMMANDS
from videorft_jax.commands import validate
from videorft_jax.rewards import accuracy

SCRIPT = """
import sys
from videorft_jax import cli
try:
    code = cli.main([sys.argv[1], "--help"])
except SystemExit as end:
    code = end.code or 0
print(code, [name for name in ("jax", "transformers", "torch", "scipy") if name in sys.modules])
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_heavy_library(command):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, command], capture_output=True, text=True, env=os.environ
    )
    *text, last = done.stdout.splitlines()
    assert last == "0 []", done.stderr
    assert any(command in line for line in text)


def test_validate_offers_the_modes_of_the_rewards(capsys):
    for mode in accuracy.MODES:
        assert validate._parse(["--data=x", f"--reward_mode={mode}"]).reward_mode == mode
    with pytest.raises(SystemExit):
        validate._parse(["--data=x", "--reward_mode=other"])
    assert "choose from" in capsys.readouterr().err
