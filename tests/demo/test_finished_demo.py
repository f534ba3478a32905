"""The finished demo: whatever folder is asked, from wherever, all held-out answers are right."""

import json
import os
import pathlib

import held_out
import jax
import pytest
import tiny_run

import videorft_jax as vr
from videorft_jax import cli

NUM = 40
FOLDERS = ("grpo", "grpo/checkpoints/00000300", "grpo/checkpoints", "grpo/hf")
KEPT_IN = "VIDEORFT_DEMO"  # a work directory of the demo, which is gone on with


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The work directory of a demo that has ended; it takes six minutes unless it is kept."""
    folder = tmp_path_factory.mktemp("finished")
    workdir = pathlib.Path(os.environ.get(KEPT_IN) or folder / "demo")
    command = ("demo", f"--config={tiny_run.ROOT / 'configs/demo.py'}", f"--workdir={workdir}")
    # It compiles as for a user: the tests' quick programs would train for an hour.
    code, text = tiny_run.finish(tiny_run.start(folder / "cache", *command, flags=""), 3600.0)
    assert code == 0, text[-3000:]
    return workdir


@pytest.fixture
def kept_programs(tmp_path_factory):
    """Programs are compiled once for all calls of the command."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def count_right(texts, rows):
    records = [{"problem_type": row["problem_type"], "solution": row["solution"]} for row in rows]
    return int(vr.score(texts, records, mode="repo", rewards=("accuracy",))["accuracy"].sum())


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_load_answers_all(demo, folder, tmp_path, monkeypatch):
    """From another working directory, by a relative and by an absolute path."""
    monkeypatch.chdir(tmp_path)
    chats, rows = held_out.read_chats(demo, NUM), held_out.read_answers(demo, "after_grpo")[:NUM]
    for path in (demo / folder, os.path.relpath(demo / folder)):
        model = vr.load(path, dtype="float32")
        out = model.generate(chats, num_rollouts=1, max_new_tokens=64, temperature=0.0)
        texts = [own[0] for own in out.texts]
        assert count_right(texts, rows) == NUM
        assert texts == [row["completion"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["grpo", "grpo/hf"])
def test_ask_answers_all(demo, folder, tmp_path, monkeypatch, capsys, kept_programs):
    """The command as it is by default, in bfloat16, in the folder above the run's."""
    monkeypatch.chdir(demo.parent)
    chats, rows = held_out.read_chats(demo, NUM), held_out.read_answers(demo, "after_grpo")[:NUM]
    texts = []
    for chat in chats:
        assert cli.main(held_out.ask_arguments(os.path.relpath(demo / folder), chat)) == 0
        texts.append(capsys.readouterr().out.strip())
    assert count_right(texts, rows) == NUM
    assert json.loads((demo / "results.json").read_text())["accuracy"]["after_grpo"]["all"][0] > 0.9
