"""`videorft pass_rate`, and training on what its rates choose, by the real commands."""

import dataclasses
import json
import shutil
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
from tiny_run import (
    TinyCommands,
    make_data,
    make_model,
    metrics,
    sft_config,
    sft_options,
    write_config,
)

from videorft_jax.commands import pass_rate as command
from videorft_jax.commands.evaluate import make_engine
from videorft_jax.models.folder_digest import digest_weights
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.rollout.sampling import SamplingConfig
from videorft_jax.training.setup import make_train_options


class Place(TinyCommands):
    def __init__(self, folder):
        super().__init__(folder)
        self.files = make_data(folder / "data", num_sft=12, num_rl=0, num_eval=0)
        make_model(folder / "model", self.files["sft"])
        options = sft_options(
            folder / "model", self.files["sft"], data__rows=4, train__max_steps=0,
            rollout__num_rollouts=2, rollout__max_new_tokens=8,
        )  # fmt: skip
        write_config(folder / "tiny.py", "sft_7b", options)


@pytest.mark.slow
def test_rates_choose_what_is_trained_on(tmp_path):
    place = Place(tmp_path)
    workdir, text = place.run("pass_rate", "rates")
    path = workdir / "pass_rates.jsonl"
    assert f"--config.data.pass_rates={path}" in text.splitlines()[-1]
    head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    drawn = [json.loads(line) for line in (workdir / "completions.jsonl").read_text().splitlines()]
    assert (len(rows), len(drawn)) == (12, 24)
    for row in rows:
        own = [one["score"] for one in drawn if one["index"] == row["index"]]
        assert row["pass_rate"] == np.mean(own)
    again, _ = place.run("pass_rate", "rates")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [head, *rows]

    # A random model is never right, so rates are made up from here on.
    for row in rows:
        row["pass_rate"] = row["index"] / 12
    path.write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))
    flags = [f"--config.data.pass_rates={path}", "--config.data.filter=pass_rate > 0.3"]
    trained, text = place.run("sft", "run", *flags, "--config.data.order=hard_first")
    assert "8 of 12 records are chosen by pass rate" in text
    assert len(metrics(trained)) >= 1
    _, text = place.run("evaluate", "asked", *flags, code=2)
    assert "an evaluation reads all records" in text.splitlines()[-1]
    other = f"--config.data.records={place.files['sft']}.jsonl"
    shutil.copy(place.files["sft"], f"{place.files['sft']}.jsonl")
    with open(f"{place.files['sft']}.jsonl", "a") as file:
        file.write("\n")
    _, text = place.run("sft", "others", *flags, other, code=2)
    assert "other records than data.records" in text.splitlines()[-1]


def test_completions_are_drawn_as_grpo_draws_them(monkeypatch):
    """By every option of sampling that a rollout has."""
    changes = {"top_p": 0.9, "top_k": 3, "min_p": 0.1, "temperature": 0.7, "num_rollouts": 5}
    config = sft_config("", "", **{f"rollout__{name}": value for name, value in changes.items()})
    taken = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(command, "evaluate", taken)
    with pytest.raises(InterruptedError):
        command.pass_rate(config, "")
    tokenizer = MagicMock(convert_tokens_to_ids=Mock(return_value=301))
    engine = make_engine(taken.call_args.args[0], parse_config(tiny_values()), tokenizer, None)
    for field in dataclasses.fields(SamplingConfig):
        if field.name in config.rollout:
            assert getattr(engine.sampling, field.name) == config.rollout[field.name]
            changes.pop(field.name, None)
    assert not changes


def test_weights_are_told_apart_wherever_they_lie(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    data = rng.integers(0, 256, 5 << 20, np.uint8).tobytes()
    (tmp_path / "a/model.safetensors").write_bytes(data)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/config.json").write_text("{}")
    assert digest_weights(tmp_path / "a") == digest_weights(tmp_path / "b", "")
    assert digest_weights(tmp_path / "a") != digest_weights(tmp_path / "a", tmp_path / "b")
    moved = bytes(byte ^ 1 for byte in data)
    for content in (moved, data[:-1]):
        (tmp_path / "b/model.safetensors").write_bytes(content)
        assert digest_weights(tmp_path / "a") != digest_weights(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"data__filter": "pass_rate < 1"}, "choose by pass rates"),
        ({"data__order": "easy_first"}, "choose by pass rates"),
        ({"data__pass_rates": "rates"}, "data.pass_rates is not used"),
        ({"data__pass_rates": "rates", "data__order": "random"}, "data.order is 'random'"),
        ({"data__pass_rates": "rates", "data__filter": "pass > 1"}, "cannot be read"),
    ],
)
def test_options_that_cannot_work(options, line):
    with pytest.raises(ValueError, match=line):
        make_train_options(sft_config("model", "records.jsonl", **options))
