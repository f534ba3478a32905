"""A source that still lives when its program ends closes its file without a word."""

import json
import os
import subprocess
import sys

PROGRAM = """import sys
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.run import Curation
from videorft_jax.data.records.source import RecordSource
source = RecordSource(sys.argv[1])
print(source[0].problem)
"""


def test_a_source_at_the_end_of_a_program_says_nothing(tmp_path):
    row = {"problem_id": 0, "problem": "What moves?", "data_type": "image", "solution": "a ball",
           "problem_type": "free-form", "path": "a.png"}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "look.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "look.py"), str(tmp_path / "a.jsonl")],
        capture_output=True, text=True, check=True, env=dict(os.environ),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("What moves?\n", "")
