"""The floor plan: which room may import which, and what no file may contain."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "videorft_jax"
ROOT = PACKAGE.parent

# A room imports only rooms that stand before it in this list, its own, and the exceptions below.
FLOORS = (
    "ops",
    "parallel",
    "checkpoints",
    "data",
    "losses",
    "models",
    "rewards",
    "metrics",
    "rollout",
    "training",
    "grpo",
    "planning",
    "evaluation",
    "api",
    "serving",
    "curation",
    "reporting",
    "demo",
    "doctor",
    "commands",
    "cli",
    "__init__",
)
# These rooms stand by themselves: each may import the rooms or modules named here and no others.
CLOSED = {
    "ops": set(),
    "parallel": set(),
    "checkpoints": set(),
    "data": {"models.geometry"},  # the numbers of a family, which import nothing
    "losses": {"ops"},
    "models": {"data.batch", "ops", "models.geometry"},
    # A dict is read as a file's row is, and the semantic reward says where its towers lie.
    "rewards": {"models.siglip", "ops", "data.records.plain", "parallel.sharding"},
}
CONFIG_READERS = ("commands/", "training/setup.py")  # the only readers of a ConfigDict
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(path):
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def files():
    return sorted(PACKAGE.rglob("*.py"))


def ours(path):
    """The dotted names that `path` imports of this package, without the package's name."""
    names = (name for name in imports(path) if name.startswith("videorft_jax."))
    return [name.removeprefix("videorft_jax.") for name in names]


@pytest.mark.parametrize("path", files(), ids=place)
def test_imports_point_down(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports(path):
        assert name.split(".")[0] not in {"torch", "tensorflow"}, name
        if room == "data":
            assert name.split(".")[0] not in {"jax", "flax"}, name
    for name in ours(path):
        target = name.split(".")[0]
        if target == room:
            continue
        if room in CLOSED:
            assert any(f"{name}.".startswith(f"{a}.") for a in CLOSED[room]), f"{room} has {name}"
        else:
            assert FLOORS.index(target) < FLOORS.index(room), f"{room} imports {name}"


def find_file(name):
    """The file that `from videorft_jax... import ...` of a dotted name reads."""
    parts = name.split(".")
    for length in (len(parts), len(parts) - 1):
        for end in (".py", "/__init__.py"):
            file = PACKAGE.joinpath(*parts[:length]).as_posix() + end
            if pathlib.Path(file).is_file() and length:
                return pathlib.Path(file)
    raise AssertionError(name)


def test_no_files_import_each_other():
    graph = {path: {find_file(name) for name in ours(path)} - {path} for path in files()}
    done, active = set(), []

    def visit(path):
        assert path not in active, " -> ".join(place(p) for p in [*active, path])
        if path not in done:
            active.append(path)
            for target in graph[path]:
                visit(target)
            active.pop()
            done.add(path)

    for path in graph:
        visit(path)


@pytest.mark.parametrize("path", files(), ids=place)
def test_a_config_is_read_at_the_door(path):
    """Below `commands/` and `training/setup.py` nothing reads `config.section.option`."""
    if place(path).startswith(CONFIG_READERS):
        return
    sections = set(common_sections())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            section, owner = node.value.attr, node.value.value
            owner = getattr(owner, "id", getattr(owner, "attr", ""))
            read = f"{place(path)}:{node.lineno}: {owner}.{section}.{node.attr}"
            assert not (owner == "config" and section in sections), read
    assert not any(name.startswith("ml_collections") for name in imports(path)), place(path)


def common_sections():
    """The names of the sections in `configs/common.py`."""
    for node in ast.walk(ast.parse((ROOT / "configs" / "common.py").read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield node.targets[0].attr


@pytest.mark.parametrize("path", files(), ids=place)
def test_no_family_is_known_outside_its_folder(path):
    """Only the registry of families names the folders."""
    for family in FAMILIES:
        if not place(path).startswith((f"models/{family}/", "models/family.py")):
            assert family not in path.read_text(), place(path)


@pytest.mark.parametrize(
    "path",
    [
        *files(),
        *sorted((ROOT / "tests").rglob("*.py")),
        *sorted((ROOT / "benchmarks").glob("*.py")),
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_files_stay_small(path):
    assert path.name != "utils.py"
    assert len(path.read_text().splitlines()) <= 400


def test_the_package_root_is_a_hall():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_few_functions_are_long():
    long = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{place(path)}:{node.name}")
    assert len(long) <= 5, long


def test_what_runs_on_an_accelerator_needs_no_loader():
    """Rollout, rewards and updates run where neither a decoder nor a loader is installed."""
    rooms = (
        "rollout.engine",
        "grpo.update",
        "rewards.combine",
        "rewards.semantic",
        "models.siglip.hf_folder",
        "metrics.flops",
    )
    names = ", ".join(f"videorft_jax.{room}" for room in rooms)
    blocked = "import sys; sys.modules |= dict.fromkeys(['av', 'grain', 'ml_collections'])"
    code = f"{blocked}; import {names}, videorft_jax.data.batch.layout"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
