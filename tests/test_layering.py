"""Imports point down only: rooms do not know the rooms above or beside them."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "videorft_jax"
MAINS = {"sft", "grpo", "evaluate", "export", "curate", "validate", "plan", "ask", "demo", "ablate"}

# What each room may import of ours; mains may import anything.
ALLOWED = {
    "data": {"data"},
    "sharding": set(),
    "checkpoint": {"manifest"},
    "manifest": set(),
    "mirror": set(),
    "losses": {"reductions", "wanted"},
    "reductions": set(),
    "wanted": set(),
    "model": {"model", "data.batch", "reductions", "wanted"},
    "rewards": {"rewards", "model.siglip"},
    "evaluation": {
        "evaluation",
        "rewards",
        "data",
        "model.vision",
        "rollout",
        "drawing",
        "gathering",
    },
    "flops": {"model.config", "data.batch"},
    "chips": set(),
    "tensorboard": set(),
    "siglip_training": {"model.siglip"},
    "compaction": set(),
    "gathering": set(),
    "scoring": {"model", "losses", "data.batch", "wanted"},
    "planning": {
        "planning",
        "assembly",
        "chips",
        "compaction",
        "data",
        "drawing",
        "flops",
        "losses",
        "model",
        "rewards",
        "scoring",
        "sharding",
        "training",
        "updating",
        "wanted",
        "weights",
    },
    "updating": {"losses", "model", "scoring", "sharding", "training", "weights"},
    "weights": {"model", "training"},
    "sampling": {"model.config"},
    "tracking": {"flops", "tensorboard", "chips"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports(path):
        if room == "data":
            assert name.split(".")[0] not in {"jax", "flax", "torch", "tensorflow"}, name
        assert name.split(".")[0] not in {"torch", "tensorflow"}, name
        if not name.startswith("videorft_jax."):
            continue
        target = name.removeprefix("videorft_jax.")
        above = {"cli", "__init__", "demo", "ablate"}  # the last two are made of other mains
        assert target.split(".")[0] not in MAINS or room in above, name
        if room in ALLOWED:
            fits = any(target == room or f"{target}.".startswith(f"{a}.") for a in ALLOWED[room])
            assert fits, f"{path.name} imports {name}; {room} may import {ALLOWED[room]}"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_stay_small(path):
    assert path.name != "utils.py"
    assert len(path.read_text().splitlines()) <= 400


def test_what_runs_on_an_accelerator_needs_no_loader():
    """Rollout, rewards and updates run where neither a decoder nor a loader is installed."""
    rooms = ("rollout", "updating", "rewards.combine", "rewards.semantic", "model.siglip", "flops")
    names = ", ".join(f"videorft_jax.{room}" for room in rooms)
    blocked = "import sys; sys.modules |= dict.fromkeys(['av', 'grain', 'ml_collections'])"
    code = f"{blocked}; import {names}, videorft_jax.data.batch.layout"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
