"""What is installed is pinned by hashes, and the linter refuses what runs data as code."""

import json
import re
import subprocess
import sys

from tiny_run import ROOT

DANGEROUS = """import pickle
import subprocess
pickle.loads(b"")
eval("1")
exec("1")
subprocess.run("ls", shell=True)
"""


def test_both_commands_of_the_readme_install_the_lock_with_its_hashes():
    readme = (ROOT / "README.md").read_text()
    for name in ("demo.sh", "test.sh"):
        assert f"launch/{name}" in readme
        installs = re.findall(r"pip install .*", (ROOT / "launch" / name).read_text())
        assert installs[0] == "pip install --quiet --no-deps --require-hashes -r requirements.lock"
        own = [line for line in installs[1:] if "-e" not in line.split()]
        assert own == [], "only this package itself follows the lock"


def test_every_line_of_the_lock_has_a_version_and_a_hash():
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) > 50
    for line in lines:
        assert re.match(r"[\w.\[\]-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_the_linter_refuses_pickles_eval_exec_and_shells(tmp_path):
    (tmp_path / "bad.py").write_text(DANGEROUS)
    words = [sys.executable, "-m", "ruff", "check", f"--config={ROOT / 'pyproject.toml'}"]
    done = subprocess.run(
        [*words, "--output-format=json", "--no-cache", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    found = {row["code"] for row in json.loads(done.stdout)}
    assert {"S301", "S307", "S102", "S602"} <= found
