"""Records of several clips and images through real runs: SFT, GRPO and evaluation.

Each run is the command itself on a tiny random model. What it gives is compared with the same
weights in transformers, fed by transformers' own processor.
"""

import concurrent.futures
import json

import numpy as np
import pytest
import torch
import transformers
from hf_processor import make_processor
from several_media import CHATS, NUM_FRAMES, find_targets, process, write_records
from tiny_run import (
    finish,
    load_recipe,
    make_model,
    make_siglip,
    metrics,
    read_arrays,
    sft_options,
    start,
    write_config,
)

from videorft_jax.models.family import load_config
from videorft_jax.rollout.client_files import generation_values
from videorft_jax.training.setup import make_contract

ANSWER = 6  # tokens of a completion
# The first differs between the completions of a random model, which are never right.
LETTERS = "tests.support.user_rewards:count_letters"
REWARDS = ((LETTERS, 1.0), ("accuracy", 1.0), ("semantic", 0.5), ("order", 0.3))
COMMON = {
    "media__min_frames": NUM_FRAMES, "media__max_frames": NUM_FRAMES,
    "media__max_pixels": 12 * 784, "media__mrope_rule": "hf5", "data__row_tokens": 512,
    "checkpoint__every": 1, "optim__schedule": "constant",
}  # fmt: skip


class Place:
    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        self.records = write_records(self.data)
        make_model(folder / "model", self.records)
        make_siglip(folder / "siglip", self.records)
        changes = {
            "sft": {"data__rows": 4, "data__epochs": 2, "train__max_steps": 0},
            "grpo": {
                "data__rows": 2, "train__max_steps": 2, "rollout__num_rollouts": 4,
                "rollout__max_new_tokens": ANSWER, "rollout__num_buckets": 1,
                "rewards": REWARDS, "reward__text_rule": "repo",
                "reward__siglip": str(folder / "siglip"), "reward__frames": 8,
                "reward__gated": (), "grpo__length_buckets": 1,
            },
            "evaluate": {
                "data__rows": 2, "evaluate__num_rollouts": 1, "rollout__num_buckets": 1,
                "evaluate__max_new_tokens": ANSWER, "evaluate__temperature": 0.0,
            },
        }  # fmt: skip
        for name, own in changes.items():
            options = sft_options(folder / "model", self.records, **COMMON, **own)
            if name == "evaluate":
                options = {k: v for k, v in options.items() if not k.startswith("optim")}
            write_config(folder / f"{name}.py", f"{name}_7b", options)
            self.options = options if name == "sft" else getattr(self, "options", options)
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder / "model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
        self.processor = make_processor(tokenizer, self.contract())

    def contract(self):
        config = load_recipe("sft_7b")
        for path, value in self.options.items():
            *sections, field = path.split(".")
            section = config
            for name in sections:
                section = section[name]
            section[field] = value
        return make_contract(config)

    def run(self, command, name, *flags):
        arguments = [command, f"--config={self.folder / command}.py", *flags]
        process = start(self.folder / "compiled", *arguments, f"--workdir={self.folder / name}")
        code, text = finish(process)
        assert code == 0, text
        return self.folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def runs(place):
    """command -> work directory of its finished run; two run at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        commands = ("grpo", "sft", "evaluate")
        futures = {name: pool.submit(place.run, name, f"whole_{name}") for name in commands}
        return {name: future.result() for name, future in futures.items()}


def loss_of(place):
    """transformers' mean loss over the targets of all chats."""
    total = count = 0
    for chat in CHATS:
        inputs = process(place.processor, place.data, chat)
        ids = inputs["input_ids"]
        targets = find_targets(place.processor, place.data, chat, ids.shape[1])
        labels = torch.where(torch.from_numpy(targets), ids, -100)
        with torch.no_grad():
            loss = place.model(**inputs, labels=labels).loss
        total, count = total + float(loss) * int(targets.sum()), count + int(targets.sum())
    return total / count


def read_completions(workdir):
    return [json.loads(line) for line in (workdir / "completions.jsonl").read_text().splitlines()]


def test_sft_has_the_loss_of_transformers(place, runs):
    lines = metrics(runs["sft"])
    assert len(lines) == 2
    np.testing.assert_allclose(lines[0]["loss"], loss_of(place), rtol=1e-4)
    assert lines[1]["loss"] < lines[0]["loss"]


def test_evaluation_answers_as_transformers_does(place, runs):
    rows = read_completions(runs["evaluate"])
    assert len(rows) == len(CHATS)
    values = generation_values(load_config(place.folder / "model"), place.processor.tokenizer)
    values = transformers.GenerationConfig(**values | {"max_new_tokens": ANSWER})
    for row in rows:
        chat = CHATS[row["index"]][:-1]
        inputs = process(place.processor, place.data, chat, prompt=True)
        with torch.no_grad():
            found = place.model.generate(**inputs, generation_config=values)[0]
        found = found[inputs["input_ids"].shape[1] :]
        text = place.processor.tokenizer.decode(found, skip_special_tokens=True)
        assert row["completion"] == text
        assert row["outcome"] != "quarantined"


def test_grpo_draws_scores_and_trains(runs):
    """Rollout and update are one model on every row, and each reward is a number on each."""
    lines, told = metrics(runs["grpo"]), read_completions(runs["grpo"])
    assert len(told) == len(CHATS) * 4
    assert {x["problem_id"] for x in told} == {f"chat-{i}" for i in range(len(CHATS))}
    for line in lines:
        assert line["sampler_gap"] < 1e-3
        assert line["grad_norm"] > 1e-2  # Completions of a group are rewarded differently.
        assert line["rewards/semantic/std"] > 0
    for x in told:
        assert set(x["rewards"]) == {name for name, _ in REWARDS}
        assert all(np.isfinite(value) for value in x["rewards"].values()), x
        expected = sum(weight * x["rewards"][name] for name, weight in REWARDS)
        np.testing.assert_allclose(x["total"], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_a_restart_changes_no_bit(place, runs, command):
    place.run(command, f"parts_{command}", "--config.train.max_steps=1")
    parts = place.run(command, f"parts_{command}")
    found, expected = read_arrays(parts, 2), read_arrays(runs[command], 2)
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].tobytes() == expected[path].tobytes(), path
