"""The notebooks: their form, and each of them from top to bottom on the demo's model."""

import ast
import importlib
import inspect
import os
import time

import pytest
from notebook import read_cells, run_notebook
from PIL import Image
from tiny_run import ROOT, finish, start

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_S = 300


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    cells = read_cells(path)
    assert len(cells) < 15
    assert cells[0]["cell_type"] == "markdown"
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert max(map(len, "".join(cell["source"]).splitlines())) <= 110


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_calls_of_the_package_fit_its_functions(path):
    """What is called exists and takes as many arguments under these names; nothing is run."""
    ours, calls = {}, 0
    for cell in read_cells(path):
        tree = ast.parse("".join(cell["source"]) if cell["cell_type"] == "code" else "")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                ours |= _imported(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (function := _find(node.func, ours)):
                names = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(function).bind_partial(*node.args, **names)
                calls += 1
    assert calls


def _imported(node):
    """Name -> what an import statement brings of the package."""
    found = {}
    module = getattr(node, "module", None)
    for each in node.names:
        origin = f"{module}.{each.name}" if module else each.name
        if origin.startswith("videorft_jax"):
            value = getattr(importlib.import_module(module), each.name, None) if module else None
            found[each.asname or each.name] = value or importlib.import_module(origin)
    return found


def _find(node, ours):
    """The function of the package that an expression such as `losses.grpo_loss` names, or None."""
    if isinstance(node, ast.Name):
        return ours.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _find(node.value, ours)) is not None:
        return getattr(owner, node.attr)
    return None


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The work directory of the smoke demo; VIDEORFT_DEMO names one that is there already."""
    if known := os.environ.get("VIDEORFT_DEMO"):
        return known
    folder = tmp_path_factory.mktemp("demo")
    config = f"--config={ROOT / 'configs/demo.py'}:smoke"
    code, text = finish(start(folder / "cache", "demo", config, f"--workdir={folder / 'run'}"))
    assert code == 0, text
    return str(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, demo, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEORFT_DEMO", demo)
    monkeypatch.chdir(ROOT)
    started = time.monotonic()
    pictures = run_notebook(path, tmp_path)
    assert time.monotonic() - started < LONGEST_S
    assert pictures
    for picture in pictures:
        extremes = Image.open(picture).convert("L").getextrema()
        assert extremes[0] < extremes[1]  # it is not blank
