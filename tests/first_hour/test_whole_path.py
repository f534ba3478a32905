"""The README's own lines, in order, from a wheel, in a folder with clips and a model alone."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from compiler_flags import QUICK
from first_hour_place import FirstHour
from tiny_run import ROOT
from wheel import build_wheel, interpreters

MODEL = [
    "--config.model.dtype=float32",
    "--config.model.remat=none",
    "--config.data.rows=4",
    "--config.data.row_tokens=1024",
    "--config.data.max_buckets=1",
    "--config.train.accumulate=1",
    "--config.media.max_pixels=12544",
    "--config.media.min_pixels=3136",
]
REWARDS = "--config.rewards=(('accuracy', 1.0), ('format', 1.0), ('mine:brevity', 0.5))"
DRAWS = ["--config.rollout.num_rollouts=2", "--config.rollout.max_new_tokens=8"]


class Walk(FirstHour):
    """A user's folder where only the wheel is installed."""

    def __init__(self, folder, python):
        super().__init__(folder)
        target = ["install", "--no-deps", "--target", folder / "site", build_wheel(folder)]
        subprocess.run([sys.executable, "-m", "pip", "-q", *target], check=True)
        self.python = python

    def environment(self, **more):
        own = {"PYTHONPATH": str(self.folder / "site"), "XLA_FLAGS": QUICK}
        return super().environment(**more) | own

    def start(self, *arguments, cwd, **more):
        words = [self.python, "-P", "-m", "videorft_jax.cli", *map(str, arguments)]
        return self._start(words, cwd, more)

    def walk(self, line, *flags):
        """One line of the README, with more flags; what it said, which names the next command."""
        text = self.run(*line.split(), *flags, cwd=self.folder)
        assert "; next: videorft " in text.splitlines()[-1], text
        return text

    def dry_run(self, launcher, *words):
        """What a launcher would do, as it says; nothing is reached."""
        command = [ROOT / "launch" / launcher, "run", *words, "--dry_run", "--", "sft"]
        flags = ["--config=sft_7b", "--workdir=runs/pod"]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=self.folder)
        return done.returncode, done.stdout, done.stderr

    def begin(self, line, *flags):
        return self.start(*line.split(), *flags, cwd=self.folder)


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters())
def test_the_readme_from_a_wheel(tmp_path, python):
    walk = Walk(tmp_path, python)
    (tmp_path / "mine.py").write_text(
        "def brevity(prompts, completions, **kwargs):\n"
        "    return [1.0 / (1 + len(text)) for text in completions]\n"
    )
    try:
        _walk(walk)
    finally:
        walk.end_all()


def _walk(walk):
    assert " recipes in recipes; next: videorft sft" in walk.walk("init recipes")
    walk.walk("validate --data data/sft.jsonl --data_root data")
    cached = ["--data", "data/rl.jsonl", "--data_root", "data", "--out", "cached"]
    walk.walk("cache", *cached)
    sft = "sft --config=sft_7b --workdir=runs/sft --config.model.init_from=model"
    steps = ["--config.data.records=data/sft.jsonl", "--config.train.max_steps=6", *MODEL]
    steps += ["--config.checkpoint.every=2", "--config.data.epochs=3"]
    _stop(walk, walk.begin(sft, *steps), 2, signal.SIGKILL, -signal.SIGKILL)
    _stop(walk, walk.begin(sft, *steps), 4, signal.SIGINT, 0)
    assert re.search("restored step [456]", walk.walk(sft, *steps))
    walk.walk("export --checkpoint=runs/sft --out=runs/sft/hf")
    grpo = "grpo --config=recipes/grpo_7b.py --workdir=runs/grpo"
    grpo += " --config.model.init_from=runs/sft/hf --config.data.records=data/rl.jsonl"
    walk.walk(grpo, REWARDS, *MODEL, *DRAWS, "--config.train.max_steps=2")
    checkpoint = "--config.evaluate.checkpoint=runs/grpo"
    evaluate = "evaluate --config=evaluate_7b --workdir=runs/grpo/eval"
    evaluate += " --config.evaluate.other_media=True --config.data.records=data/eval.jsonl"
    walk.walk(evaluate, checkpoint, *MODEL, "--config.evaluate.max_new_tokens=8")
    ablate = "ablate --config=recipes/ablate_rewards.py --workdir=runs/ablate"
    ablate += " --config.model.init_from=runs/sft/hf --config.data.records=data/rl.jsonl"
    grid = "--config.ablate.variants=(('a', ()), ('b', (('grpo.beta', 0.0),)))"
    held_out = ["--config.ablate.records=data/eval.jsonl", "--config.ablate.seeds=(0,)"]
    few = ["--config.train.max_steps=1", "--config.evaluate.max_new_tokens=8"]
    walk.walk(ablate, grid, *held_out, REWARDS, *MODEL, *DRAWS, *few)
    clip = next((walk.folder / "data").rglob("*.mp4")).relative_to(walk.folder)
    ask = f"ask --model runs/sft/hf --video {clip} --dtype float32 --max_new_tokens 4"
    walk.walk(ask, "--question=What happens first?")
    walk.walk("plan --config=grpo_7b --topology=H100:8")
    for launcher, *words in (
        ("tpu_pod.sh", "--name=pod", "--zone=z"), ("gpu_node.sh", "--hosts=a,b")
    ):  # fmt: skip
        code, _, said = walk.dry_run(launcher, *words)
        assert code == 2, said
        assert "--workdir=runs/pod: workers do not start in this folder; give an absolute" in said
    code, said, _ = walk.dry_run("gpu_node.sh")
    assert code == 0
    assert f"cd {walk.folder} " in said
    assert "--workdir=runs/pod" in said
    absolute = ["--", "sft", "--config=sft_7b", f"--workdir={walk.folder}/runs/pod"]
    pod = [ROOT / "launch/tpu_pod.sh", "run", "--name=pod", "--zone=z", "--dry_run", *absolute]
    said = subprocess.run(pod, capture_output=True, text=True)
    assert said.stdout.count("--distributed'") == 2, said


def _stop(walk, process, step, number, code):
    """Sends a signal once `step` steps were logged."""
    path, end = walk.folder / "runs/sft/metrics.jsonl", time.monotonic() + 900
    for _ in itertools.count():
        lines = path.read_text().count("\n") if path.exists() else 0
        if lines >= step:
            break
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, number)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == code, text
