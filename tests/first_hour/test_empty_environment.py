"""Fault 11: an environment with nothing but what pip installs with the wheel runs the demo."""

import os
import pathlib
import subprocess

import pytest
from wheel import build_wheel, interpreters


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters())
def test_pip_install_then_the_demo(tmp_path, python):
    wheel, home = build_wheel(tmp_path), tmp_path / "home"
    home.mkdir()
    subprocess.run([python, "-m", "venv", tmp_path / "empty"], check=True)
    pip = [tmp_path / "empty/bin/python", "-m", "pip", "install", "-q"]
    done = subprocess.run([*pip, wheel], capture_output=True, text=True)
    if "No matching distribution found" in done.stderr:
        pytest.skip("no index of packages can be reached from here")
    assert done.returncode == 0, done.stderr
    program = tmp_path / "empty/bin/videorft"
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "JAX_PLATFORMS": "cpu"}
    run = [program, "demo", "--config=demo:smoke", "--workdir=runs/demo"]
    done = subprocess.run(run, cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "; next: videorft ask " in done.stdout.splitlines()[-1]
    assert {"report.md", "report.html"} <= {path.name for path in (home / "runs/demo").iterdir()}
    (metadata,) = pathlib.Path(tmp_path / "empty").rglob("videorft_jax-*.dist-info/METADATA")
    assert "pip install '.[gpu]'" in metadata.read_text()  # the README lies in it
