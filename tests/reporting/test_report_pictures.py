"""The pictures of README and documentation are what the program shows today.

They are drawn anew by
`VIDEORFT_PICTURES=1 python -m pytest -m slow tests/reporting/test_report_pictures.py`.
"""

import contextlib
import os
import pathlib
import re

import numpy as np
import pytest
from browser import take_picture
from PIL import Image
from shown_run import CONTRACT, write_shown_run
from tiny_run import ROOT

from videorft_jax.data.media.video import read_video
from videorft_jax.reporting.report import ReportOptions, write_report
from videorft_jax.reporting.sheet import draw_sheet

FOLDER = ROOT / "docs/pictures"
PAGES = {"report.png": ("", False), "gallery.png": ("sort=spread", True)}  # address, is dark
MOST_BYTES = 300 * 1024


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("pictures")):  # The page shows short paths.
        yield write_shown_run(pathlib.Path("runs"))


def test_pictures_are_small_and_used():
    shown = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
    for path in FOLDER.glob("*.png"):
        assert path.stat().st_size < MOST_BYTES, path.name
        assert re.search(rf"!\[[^\]]+\]\([\w./]*pictures/{path.name}\)", shown), path.name


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_pages_of_a_report(run, tmp_path, name):
    address, is_dark = PAGES[name]
    page = tmp_path / "page.html"
    write_report([run], page, ReportOptions())
    top = 985 if address else 0  # where the gallery begins
    take_picture(page, tmp_path / name, hash_=address, size=(1280, top + 1000), dark=is_dark)
    part = Image.open(tmp_path / name).convert("RGB").crop((0, top, 1280, top + 1000))
    part.quantize(128).save(tmp_path / name, optimize=True)
    assert_is_kept(tmp_path / name)


@pytest.mark.slow
def test_the_frames_that_ask_shows(run, tmp_path):
    clip = sorted((run.parent / "data/clips/rl").glob("*.mp4"))[2]
    found = read_video(str(clip), CONTRACT)
    (tmp_path / "seen.png").write_bytes(draw_sheet([("clip.mp4", found.frames, found.timestamps)]))
    assert_is_kept(tmp_path / "seen.png")


def assert_is_kept(made: pathlib.Path):
    """The picture in the documentation shows the same; letters may be drawn a little otherwise."""
    kept = FOLDER / made.name
    if os.environ.get("VIDEORFT_PICTURES"):
        kept.write_bytes(made.read_bytes())
    small = [
        np.asarray(Image.open(path).convert("RGB").resize((64, 50)), np.int16)
        for path in (made, kept)
    ]
    assert np.abs(small[0] - small[1]).mean() < 4
