"""What is given away: source archive and wheel as an index would check them, recipes of images."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from tiny_run import ROOT
from wheel import build_wheel, copy_shipped

IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SDIST = "from setuptools import build_meta; build_meta.build_sdist('../dist')"


def tool(name):
    return os.path.join(os.path.dirname(sys.executable), name)


def test_hadolint_has_nothing_to_say():
    assert [path.name for path in IMAGES] == ["gpu.Dockerfile", "tpu.Dockerfile"]
    done = subprocess.run([tool("hadolint"), *IMAGES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_installs_what_is_there(path):
    text = path.read_text()
    names = " ".join(re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)).split()
    assert {"requirements.lock", "setup.py", "README.md", "configs", "videorft_jax"} <= set(names)
    assert all((ROOT / name).exists() for name in names)
    (extras,) = re.findall(r'"\.\[(.+)\]"', text)
    known = re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert set(extras.split(",")) <= set(known)
    assert path.stem in extras.split(",")


@pytest.mark.slow
def test_twine_takes_the_archive_and_the_wheel(tmp_path):
    wheel = build_wheel(tmp_path)
    copy_shipped(tmp_path / "source")
    subprocess.run([sys.executable, "-c", SDIST], cwd=tmp_path / "source", check=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    check = [tool("twine"), "check", "--strict", archive, wheel]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    packed = set(zipfile.ZipFile(wheel).namelist())
    for name in ("reporting/assets/page.html", "curation/templates/think.txt", "py.typed"):
        assert f"videorft_jax/{name}" in packed
        assert f"videorft_jax/{name}" in inside
    assert "videorft_jax/recipes/grpo_7b.py" in packed
    assert "configs/grpo_7b.py" in inside
