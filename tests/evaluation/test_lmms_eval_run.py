"""lmms-eval itself, in an environment of its own, runs an exported model through the plug-in, and
through its client of servers, which asks `videorft serve`."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import videorft_jax as vr
from videorft_jax.evaluation.lmms_eval import bare_answer

ROOT = pathlib.Path(__file__).parents[2]
NUM, LENGTH, FRAMES = 8, 24, 4
OURS = """
import json, sys, videorft_jax as vr
folder, rows, length = sys.argv[1], map(json.loads, open(sys.argv[2])), int(sys.argv[3])
model, keys, before = vr.load(folder, dtype=None), {}, []
if sys.argv[4:]:  # As `serve` answers: so many frames, behind the system turn of the training.
    keys, before = {"nframes": int(sys.argv[4])}, [{"role": "system", "content": model.system}]
chats = [[*before, {"role": "user", "content": [{"type": "video", "video": row["video"]} | keys,
          {"type": "text", "text": row["question"]}]}] for row in rows]
out = model.generate(chats, num_rollouts=1, max_new_tokens=length, temperature=0.0)
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


PLAIN = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(Python with lmms-eval, the demo's model, rows of clips and questions, variables)."""
    folder = tmp_path_factory.mktemp("lmms")
    python = make_environment(folder / "environment")
    demo = pathlib.Path(os.environ.get("DEMO_WORKDIR") or folder / "demo")
    if not demo.exists():
        config = f"--config={ROOT / 'configs/demo.py'}:smoke"
        run(sys.executable, "-m", "videorft_jax.cli", "demo", config, f"--workdir={demo}")
    clips = demo / "clips"
    records = [json.loads(line) for line in (clips / "eval.jsonl").read_text().splitlines()[:NUM]]
    rows = [{"video": str(clips / own["path"]), "question": own["problem"]} for own in records]
    offline = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return python, demo / "grpo/hf", rows, offline


def generate(model, rows, folder, *frames):
    """What `vr.load(...).generate` says, by a process of its own."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return json.loads(run(sys.executable, "-c", OURS, model, path, LENGTH, *frames, **PLAIN))


def write_task(folder, rows, answers):
    """A local task, in which every other answer is right; the accuracy that ours have."""
    golds = [text if place % 2 else f"not {text}" for place, text in enumerate(answers)]
    scored = [
        {"question_type": "open-ended", "gold": gold, "output": text}
        for gold, text in zip(golds, answers, strict=True)
    ]
    lines = [row | {"gold": gold} for row, gold in zip(rows, golds, strict=True)]
    path = folder / "golds.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tasks").mkdir()
    (folder / "tasks/directions.yaml").write_text(TASK.format(rows=path, length=LENGTH))
    (folder / "tasks/utils.py").write_text(UTILS)
    return sum(vr.score_outputs(scored)) / len(rows)


def run_task(python, folder, variables, *flags):
    """The accuracy that lmms-eval finds."""
    run(
        python, "-m", "lmms_eval", *flags, "--tasks", "directions", "--include_path",
        folder / "tasks", "--output_path", folder / "out", "--log_samples", **PLAIN | variables,
    )  # fmt: skip
    (results,) = (folder / "out").rglob("*_results.json")
    found = json.loads(results.read_text())["results"]["directions"]
    return next(value for name, value in found.items() if name.startswith("acc,"))


@pytest.mark.slow
def test_lmms_eval_reproduces_our_accuracy(place, tmp_path):
    """The demo's model answers a local task. Its own answer is the truth of every other question,
    so that an accuracy of one half shows that answers agree one by one."""
    python, model, rows, offline = place
    outputs = generate(model, rows, tmp_path)
    ours = write_task(tmp_path, rows, [bare_answer(text) for text in outputs])
    raw = tmp_path / "raw.jsonl"
    accuracy = run_task(
        python, tmp_path, offline, "--model", "videorft_jax", "--batch_size", 4,
        "--model_args", f"pretrained={model},raw_file={raw}",
    )  # fmt: skip
    said = [json.loads(line) for line in raw.read_text().splitlines()]
    assert [row["output"] for row in sorted(said, key=lambda row: row["id"])] == outputs
    assert ours == 0.5
    assert accuracy == ours


@pytest.mark.slow
def test_its_client_of_servers_gets_our_accuracy_from_serve(place, tmp_path):
    """The model `openai` of lmms-eval hands on whole clips by their URL, four requests at a time,
    and asks for twice the frames that the clips have. Whole texts are compared, so that one half
    shows that they agree one by one."""
    python, model, rows, offline = place
    outputs = generate(model, rows, tmp_path, FRAMES)
    assert len(set(outputs)) > 2
    ours = write_task(tmp_path, rows, [text.strip() for text in outputs])
    server = subprocess.Popen(
        [sys.executable, "-m", "videorft_jax.cli", "serve", "--checkpoint", str(model),
         "--dtype", "float32", "--root", os.path.dirname(rows[0]["video"]), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env=os.environ | PLAIN,
    )  # fmt: skip
    try:
        url = next(line for line in server.stdout if line.startswith("serving")).split()[-1]
        settings = {"model_version": "videorft", "base_url": url, "api_key": "none"}
        settings |= {"pass_video_url": True, "max_frames_num": 2 * FRAMES, "num_concurrent": 4}
        accuracy = run_task(
            python, tmp_path, offline, "--model", "openai", "--reasoning_tags", "none",
            "--model_args", ",".join(f"{name}={value}" for name, value in settings.items()),
        )  # fmt: skip
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    assert ours == 0.5
    assert accuracy == ours
