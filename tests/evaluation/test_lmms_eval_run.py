"""lmms-eval itself, in an environment of its own, runs an exported model through the plug-in."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import videorft_jax as vr
from videorft_jax.evaluation.lmms_eval import bare_answer

ROOT = pathlib.Path(__file__).parents[2]
NUM, LENGTH = 8, 24
OURS = """
import json, sys, videorft_jax as vr
folder, rows, length = sys.argv[1], map(json.loads, open(sys.argv[2])), int(sys.argv[3])
chats = [[{"role": "user", "content": [{"type": "video", "video": row["video"]},
          {"type": "text", "text": row["question"]}]}] for row in rows]
out = vr.load(folder, dtype=None).generate(chats, num_rollouts=1, max_new_tokens=length,
                                           temperature=0.0)
print(json.dumps([text for text, in out.texts]))
"""
TASK = """
task: directions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: gold
process_results: !function utils.process
generation_kwargs: {{max_new_tokens: {length}, do_sample: false}}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
def visual(doc): return [doc["video"]]
def text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def process(doc, results): return {"acc": float(results[0] == doc["gold"])}
"""
# The compiled operators of torchvision do not load beside every build of torch; the two whose
# schemas are read on import are declared.
DECLARED = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def run(*words, **variables):
    """What a command prints; its whole output where it fails."""
    made = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=os.environ | variables
    )
    assert made.returncode == 0, (made.stdout + made.stderr)[-4000:]
    return made.stdout


def make_environment(folder):
    """The Python of an environment with lmms-eval and this package; LMMS_EVAL_PYTHON names one that
    is there."""
    if os.environ.get("LMMS_EVAL_PYTHON"):
        return os.environ["LMMS_EVAL_PYTHON"]
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "-q", "torch==2.13.0", "torchvision")
    run(python, "-m", "pip", "install", "-q", "lmms_eval==0.7.3", "filelock<4")
    run(python, "-m", "pip", "install", "-q", ROOT, "av>=18,<19", "filelock<4")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(DECLARED)
    return python


@pytest.mark.slow
def test_lmms_eval_reproduces_our_accuracy(tmp_path):
    """The demo's model answers a local task. Its own answer is the truth of every other question,
    so that an accuracy of one half shows that answers agree one by one."""
    python = make_environment(tmp_path / "environment")
    demo = pathlib.Path(os.environ.get("DEMO_WORKDIR") or tmp_path / "demo")
    if not demo.exists():
        config = f"--config={ROOT / 'configs/demo.py'}:smoke"
        run(sys.executable, "-m", "videorft_jax.cli", "demo", config, f"--workdir={demo}")
    model, clips = demo / "grpo/hf", demo / "clips"
    records = [json.loads(line) for line in (clips / "eval.jsonl").read_text().splitlines()[:NUM]]
    rows = [{"video": str(clips / own["path"]), "question": own["problem"]} for own in records]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    outputs = json.loads(run(sys.executable, "-c", OURS, model, path, LENGTH, **plain))
    answers = [bare_answer(text) for text in outputs]
    golds = [text if place % 2 else f"not {text}" for place, text in enumerate(answers)]
    scored = [
        {"question_type": "open-ended", "gold": gold, "output": text}
        for gold, text in zip(golds, answers, strict=True)
    ]
    ours = sum(vr.score_outputs(scored)) / NUM
    lines = [row | {"gold": gold} for row, gold in zip(rows, golds, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "directions.yaml").write_text(TASK.format(rows=path, length=LENGTH))
    (tasks / "utils.py").write_text(UTILS)
    raw = tmp_path / "raw.jsonl"
    offline = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    run(
        python, "-m", "lmms_eval", "--model", "videorft_jax",
        "--model_args", f"pretrained={model},raw_file={raw}", "--tasks", "directions",
        "--include_path", tasks, "--batch_size", 4, "--output_path", tmp_path / "out",
        "--log_samples", **plain | offline,
    )  # fmt: skip
    said = [json.loads(line) for line in raw.read_text().splitlines()]
    assert [row["output"] for row in sorted(said, key=lambda row: row["id"])] == outputs
    (results,) = (tmp_path / "out").rglob("*_results.json")
    found = json.loads(results.read_text())["results"]["directions"]
    accuracy = next(value for name, value in found.items() if name.startswith("acc,"))
    assert ours == 0.5
    assert accuracy == ours
