"""README and docs: the picture is what its script draws, and paths and options they name exist."""

import json
import pathlib
import re
import runpy

import pytest
import test_layering
from option_names import OPTIONS

import videorft_jax
from videorft_jax.data.records.formats import FORMATS, convert_row, detect_format
from videorft_jax.data.records.records import parse_row

ROOT = pathlib.Path(__file__).parent.parent
ROOTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*ROOTS, *sorted((ROOT / "docs").rglob("*.md"))]
BENCHMARKS = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
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


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("configs/*.*")), ids=lambda path: path.name)
def test_files_that_recipes_name_exist(recipe):
    for name in re.findall(r"\b(?:videorft_jax|configs|docs)/[\w/]+\.\w+", recipe.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_are_named_exist(page):
    if page == HISTORY:
        return
    known = {*OPTIONS, "rewards", "seed", "compile_cache", "name"}
    for name in re.findall(r"--config\.([\w.]+)", page.read_text()):
        assert name in known or any(option.startswith(f"{name}.") for option in known), name


def test_a_row_of_every_format_is_shown_and_read():
    page, forms = (ROOT / "docs/how_to/own_data.md").read_text(), set()
    for number, text in enumerate(re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)):
        row, where = json.loads(text), f"row {number}"
        form = detect_format(row, where)
        record = parse_row(convert_row(row, form, where, number), where)
        assert record.media
        forms.add(form)
    assert forms == set(FORMATS) - {"auto"}


def test_the_floor_plan_shows_every_room_from_the_top():
    """As the test of imports has them from the bottom; rooms of one row may stand in any order."""
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", row.split("|")[1]) for row in table.splitlines()]
    heights = {room: number for number, room in enumerate(test_layering.FLOORS)}
    shown = [room for row in rows for room in sorted(row, key=heights.get, reverse=True)]
    assert shown == [room for room in reversed(test_layering.FLOORS) if room != "__init__"]


def test_every_public_name_is_on_the_page_of_the_api():
    page = (ROOT / "docs/api.md").read_text()
    described = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert set(videorft_jax.__all__) - described == set()
    assert set(re.findall(r"`vr\.(\w+)`", page)) == set(videorft_jax.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_benchmarks_are_shown_with_the_flags_that_they_need(page):
    """Figures name the command that printed them."""
    if page == HISTORY:
        return
    shown = re.findall(r"`[^`\n]*?\b(\w+)\.py\b([^`\n]*)`", page.read_text())
    for name, line in ((name, line) for name, line in shown if name in BENCHMARKS):
        flags = set(re.findall(r"--(\w+)", line))
        known = re.findall(r'add(?:_argument)?\("--(\w+)"(.*?)\)$', BENCHMARKS[name], re.M)
        assert flags <= {flag for flag, _ in known}, name
        if flags:  # A bare name speaks of the file.
            assert {flag for flag, rest in known if "required=True" in rest} <= flags, name


def test_compiled_programs_are_counted_alike():
    table = (ROOT / "launch/PLANS.md").read_text()
    (done, total) = re.search(r"\*\*(\d+) of (\d+) programs are compiled", table).groups()
    (said,) = re.findall(r"All (\d+) programs of the recipes are", (ROOT / "README.md").read_text())
    assert said == done == total
    assert re.findall(r"\d+ TPU programs", (ROOT / "CONTRIBUTING.md").read_text()) == []


def test_the_fifteen_questions_are_answered_in_turn():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    numbers = re.findall(r"^### (\d+)\. .+\n\n\S", page, flags=re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 16)]
    answers = re.split(r"^### ", page.partition("\n## Messages about")[0], flags=re.MULTILINE)[1:]
    without = [
        text for text in answers if not re.search(r"^videorft |^launch/|`videorft ", text, re.M)
    ]
    assert without == []
