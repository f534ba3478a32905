"""A run of GRPO as the pictures of the documentation show it, without running anything."""

import json
import os
import pathlib

import numpy as np
from written_runs import grpo_row, write_grpo

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.scenes import WorldConfig

STEPS, GROUPS, ROLLOUTS = 60, 4, 4  # groups are kept of every sixth step
WORLD = WorldConfig(
    size=(112, 112), num_frames=8, questions=("last_colour",), shape_size=0.3, travel=(0.3, 0.5),
    shapes=("square", "bar", "post"), max_shapes=2, still_every=0, background=(123, 117, 104),
)  # fmt: skip
CONTRACT = MediaContract(fps=4.0, max_frames=8, min_pixels=784, max_pixels=12544)


def write_shown_run(folder: pathlib.Path) -> pathlib.Path:
    """The work directory of a run whose answers become right, beside its clips."""
    file = write_dataset(folder / "data", 1, STEPS * GROUPS // 6, 1, seed=0, world=WORLD)["rl"]
    source, rng, rows = RecordSource(file), np.random.default_rng(0), []
    for number in range(len(source)):
        step = 1 + 6 * (number // GROUPS)
        rows += _group(source[number], step, rng)
    shown = os.path.relpath(file)  # The page shows where the records lie.
    run = write_grpo(folder / "grpo_tiny", rows, shown, CONTRACT, train={"max_steps": STEPS})
    lines = [json.dumps(_metrics(step, rng)) + "\n" for step in range(1, STEPS + 1)]
    (run / "metrics.jsonl").write_text("".join(lines))
    return run


def _right(step):
    """The share of right answers at a step."""
    return 0.3 + 0.65 / (1 + np.exp(-(step - 25) / 7))


def _group(record, step, rng):
    truth = record.solution.removeprefix("<answer>").removesuffix("</answer>")
    letters, made = "ABCD", []
    for _ in range(ROLLOUTS):
        is_right = rng.random() < _right(step)
        wrong = letters.replace(truth, "")
        letter = truth if is_right else wrong[rng.integers(3)]
        colour = record.options[letters.index(letter)].removeprefix(f"{letter}. ")
        text = f"<think>Two shapes are seen. The one that comes last is {colour}.</think>\n"
        semantic = round(float(0.3 + 0.2 * is_right + 0.05 * rng.random()), 3)
        rewards = {"accuracy": float(is_right), "format": 1.0, "semantic": semantic}
        made.append((text + f"<answer>{letter}</answer>", rewards, 1 + is_right * (1 + semantic)))
    totals = np.array([total for *_, total in made])
    advantages = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
    return [
        grpo_row(
            step, record.problem_id, rollout, problem_type=record.problem_type,
            problem=record.problem, solution=truth, completion=text, rewards=rewards, length=26,
            total=float(total), advantage=round(float(advantages[rollout]), 3),
        )
        for rollout, (text, rewards, total) in enumerate(made)
    ]  # fmt: skip


def _metrics(step, rng):
    right, noise = float(_right(step)), float(rng.normal(0, 0.03))
    semantic = 0.3 + 0.2 * right + noise / 3
    return {
        "step": step, "loss": 0.002 * step / STEPS + noise / 90,
        "rewards/accuracy/mean": right + noise, "rewards/format/mean": 0.9 + 0.1 * right,
        "rewards/semantic/mean": semantic, "rewards/total/mean/multiple choice": 1 + 2 * right,
        "groups/all_right": right**4, "groups/all_wrong": (1 - right) ** 4,
        "entropy": 0.9 - 0.5 * right + noise, "kl": 0.05 * right + abs(noise) / 40,
        "rollout/length/mean": 26 + 4 * noise, "grad_norm": 0.6 + 3 * abs(noise),
        "perf/tokens_per_s": 5200 + 900 * noise,
    }  # fmt: skip
