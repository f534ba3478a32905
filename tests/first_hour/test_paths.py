"""Fault 2: a path means the same however it is written and wherever it is read."""

import os
import shutil

import pytest

FORMS = {
    "relative": (".", "runs/sft"),
    "slash": (".", "runs/sft/"),
    "dots": ("data", "../runs/sft"),
    "checkpoints": (".", "runs/sft/checkpoints"),
    "step": ("data", "../runs/sft/checkpoints/00000004/"),
    "absolute": ("data", "{folder}/runs/sft"),
    "home": ("data", "~/runs/sft"),
}


@pytest.mark.parametrize("form", FORMS)
def test_export_finds_a_checkpoint_and_the_model_it_started_from(hour, form, tmp_path):
    hour.sft()
    place, path = FORMS[form]
    path = path.format(folder=hour.folder)
    out = os.path.relpath(tmp_path / "hf", hour.folder / place)
    text = hour.run("export", f"--checkpoint={path}", f"--out={out}", cwd=hour.folder / place)
    assert "00000004 written to " in text
    assert (tmp_path / "hf" / "tokenizer.json").exists()


def test_evaluate_and_ask_take_relative_paths(hour, tmp_path):
    hour.sft()
    flags = [
        "--config=../tiny.py",
        "--workdir=../runs/evaluated",
        "--config.model.init_from=",
        "--config.data.records=eval.jsonl",
        "--config.data.rows=4",
        "--config.evaluate.max_new_tokens=4",
    ]
    text = hour.run(
        "evaluate",
        *flags,
        "--config.evaluate.checkpoint=../runs/none",
        cwd=hour.folder / "data",
        code=2,
    )
    assert "no checkpoint there" in text
    flags.append("--config.evaluate.checkpoint=../runs/sft/")
    broken = hour.run(
        "evaluate", *flags, "--config.data.row_tokens=64", cwd=hour.folder / "data", code=2
    )
    assert "records" in broken.splitlines()[-1] or "records are bad" in broken
    text = hour.run("evaluate", *flags, cwd=hour.folder / "data")  # in the same folder
    assert "runs/evaluated/results.json" in text
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
