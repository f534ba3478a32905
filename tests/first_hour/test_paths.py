"""Fault 2: a path means the same however it is written and wherever it is read."""

import os
import shutil

import pytest

from videorft_jax import api
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE
from videorft_jax.training import restore

FORMS = {
    "relative": (".", "runs/sft"),
    "slash": (".", "runs/sft/"),
    "dots": ("data", "../runs/sft"),
    "checkpoints": (".", "runs/sft/checkpoints"),
    "step": ("data", "../runs/sft/checkpoints/00000004/"),
    "absolute": ("data", "{folder}/runs/sft"),
    "home": ("data", "~/runs/sft"),
}


@pytest.fixture(scope="module")
def exported(hour, tmp_path_factory):
    """form -> (folder that was to be written, exit code, what was said)."""
    hour.sft()
    outs = {form: tmp_path_factory.mktemp(form) / "hf" for form in FORMS}
    commands = []
    for form, (place, path) in FORMS.items():
        out = os.path.relpath(outs[form], hour.folder / place)
        words = ["export", f"--checkpoint={path.format(folder=hour.folder)}", f"--out={out}"]
        commands.append((hour.folder / place, words))
    found = hour.batch(commands)
    return {
        form: (outs[form], code, *said) for form, (code, *said) in zip(FORMS, found, strict=True)
    }


@pytest.mark.parametrize("form", FORMS)
def test_export_finds_a_checkpoint_and_the_model_it_started_from(exported, form):
    out, code, said, err = exported[form]
    assert code == 0, err
    assert "00000004 written to " in said
    assert (out / "tokenizer.json").exists()


class Found(Exception):
    """Ends a load where it is known which checkpoint is loaded."""


@pytest.mark.parametrize("form", FORMS)
def test_ask_serve_and_evaluate_find_the_same_checkpoint(hour, form, monkeypatch):
    """`ask` and `serve` find a run by `vr.load`, `evaluate` and `ablate` by `find_checkpoint`."""
    hour.sft()
    place, path = FORMS[form]
    monkeypatch.chdir(hour.folder / place)
    monkeypatch.setenv("HOME", str(hour.folder))
    path, find_checkpoint = path.format(folder=hour.folder), restore.find_checkpoint

    def stop(folder):
        raise Found(find_checkpoint(folder))

    wanted = (str(hour.folder / "runs/sft"), 4)
    assert find_checkpoint(path)[:2] == wanted
    assert find_checkpoint(path).system == DEFAULT_TEMPLATE.system
    monkeypatch.setattr(restore, "find_checkpoint", stop)
    with pytest.raises(Found) as found:
        api.load(path)
    assert found.value.args[0][:2] == wanted


def test_evaluate_and_ask_take_relative_paths(hour):
    """Nothing was written before what could fail was checked: the third command goes through."""
    hour.evaluated()
    assert "no checkpoint there" in hour.said["none"]
    assert "records are bad" in hour.said["bad"]
    assert "runs/evaluated/results.json" in hour.said["evaluated"]
    clip = next((hour.folder / "data").rglob("*.mp4"))
    question = ["--question=Which colour?", "--max_new_tokens=4", "--dtype=float32"]
    where = os.path.relpath(clip, hour.folder / "data")
    hour.run(
        "ask", "--model=../runs/sft/checkpoints", f"--video={where}", *question,
        cwd=hour.folder / "data",
    )  # fmt: skip


def test_a_model_that_moved_is_asked_for(hour, tmp_path):
    shutil.copytree(hour.folder / "model", tmp_path / "model")
    flag = f"--config.model.init_from={tmp_path / 'model'}"
    records = f"--config.data.records={hour.records['sft']}"
    hour.run("sft", f"--config={hour.folder}/tiny.py", "--workdir=r", flag, records,
             "--config.train.max_steps=1", cwd=tmp_path)  # fmt: skip
    (tmp_path / "model").rename(tmp_path / "moved")
    text = hour.run("export", "--checkpoint=r", "--out=hf", cwd=tmp_path, code=2)
    assert "is not there; give it by --model" in text
    hour.run("export", "--checkpoint=r", "--out=hf", "--model=moved", cwd=tmp_path)
