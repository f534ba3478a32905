"""README and docs: the picture is what its script draws, and paths and options they name exist."""

import pathlib
import re
import runpy

import pytest
from option_names import OPTIONS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = ROOT / "docs" / "results" / "demo_recipes.md"  # tells of options as they were then


def test_the_picture_is_what_its_script_draws():
    script = ROOT / "docs" / "pictures" / "way_of_a_video.py"
    assert runpy.run_path(str(script))["draw"]() == script.with_suffix(".svg").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    """`grpo/update.py` is a file of the package, `configs/common.py` one of the repository."""
    if page == HISTORY:
        return
    for name in re.findall(r"`([\w./]+/[\w./]*\.(?:py|sh|md|json|txt))`", page.read_text()):
        if not name.startswith(("models/NAME", "runs/")):
            assert (ROOT / name).exists() or (ROOT / "videorft_jax" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_are_named_exist(page):
    if page == HISTORY:
        return
    known = {*OPTIONS, "rewards", "seed", "compile_cache", "name"}
    for name in re.findall(r"--config\.([\w.]+)", page.read_text()):
        assert name in known or any(option.startswith(f"{name}.") for option in known), name
