"""Work directories as runs write them, small and without running anything."""

import json
import pathlib

import numpy as np

from videorft_jax.checkpoints import manifest
from videorft_jax.data.media.contract import MediaContract

TYPES = ("multiple choice", "numerical")
HOSTILE = "</script><script>document.title = 'broken'</script><b>bold</b>"


def grpo_row(step: int, number: int, rollout: int, **changes) -> dict:
    """A line of completions.jsonl. Completion `rollout` of four is right when it is even."""
    right = float(rollout % 2 == 0)
    text = f"<think>frame {rollout} of {number}</think>\n<answer>{'A' if right else 'B'}</answer>"
    row = {
        "step": step,
        "problem_id": number,
        "problem_type": TYPES[number % 2],
        "problem": f"What colour is shape number {number}?",
        "solution": "A",
        "completion": text,
        "length": 20 + rollout,
        "stopped": True,
        "rewards": {"accuracy": right, "format": 1.0, "semantic": 0.25 * rollout},
        "total": right + 1.0 + 0.25 * rollout * right,
        "advantage": 2 * right - 1,
    }
    return row | changes


def write_grpo(
    folder: pathlib.Path, rows: list[dict], records: str = "", contract=None, **config
) -> pathlib.Path:
    """A GRPO run with these completions, metrics of its steps, and the manifest of a checkpoint
    under a media contract, by default that of training."""
    folder.mkdir(parents=True)
    steps = sorted({row["step"] for row in rows})
    lines = [
        {"step": step, "loss": 1 / step, "rewards/accuracy/mean": step / 10, "entropy": 2.0,
         "rewards/total/mean/numerical": 1.0, "perf/tokens_per_s": 5000.0 + step}
        for step in steps
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = (("accuracy", 1.0), ("format", 1.0), ("semantic", 1.0))
    options = {"name": "grpo_tiny", "data": {"records": records, "root": ""}, "rewards": weights}
    meta = {"config": options | config, "media": (contract or MediaContract.train()).to_dict()}
    checkpoint = folder / "checkpoints/00000001"
    checkpoint.mkdir(parents=True)
    manifest.write(checkpoint, {"meta": meta})
    return folder


def write_many(folder: pathlib.Path, num_groups: int, num_rollouts: int) -> pathlib.Path:
    """A GRPO run as large as a real one: sixteen prompts a step, completions of 60 words."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(500)])
    rows = []
    for group in range(num_groups):
        for rollout in range(num_rollouts):
            text = " ".join(rng.choice(words, 60))
            rows.append(
                grpo_row(
                    1 + group // 16, group, rollout,
                    completion=f"<think>{text}</think><answer>A</answer>",
                    total=float(rng.random()),
                )
            )  # fmt: skip
    return write_grpo(folder, rows)
