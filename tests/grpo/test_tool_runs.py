"""GRPO with frames on demand through the real commands, on a model that has learnt to call."""

import json
import sys

import pytest
from tiny_run import ROOT, TinyCommands, metrics, read_arrays

from videorft_jax.demo.moments import write_moments
from videorft_jax.training.export import export

RECIPE = """import sys
sys.path[:0] = [{benchmarks!r}]
import look_again

def get_config():
    config = look_again.with_tools(look_again.make_recipe({kind!r}, {kind!r}, 0))
    config.update_from_flattened_dict({changes!r})
    return config
"""


def write_recipe(folder, name, kind, **changes):
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    text = RECIPE.format(benchmarks=str(ROOT / "benchmarks"), kind=kind, changes=changes)
    (folder / f"{name}.py").write_text(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Commands in a folder where SFT has taught a model to call."""
    sys.path.append(str(ROOT / "benchmarks"))
    import look_again

    folder = tmp_path_factory.mktemp("tools")
    made = TinyCommands(folder)
    made.files = write_moments(folder / "clips", {"sft": 24, "rl": 6, "eval": 4}, 6)
    look_again.write_model(made.files, folder / "model", 0)
    write_recipe(
        folder, "sft", "sft", model__init_from=str(folder / "model"),
        data__records=made.files["sft"],
    )  # fmt: skip
    made.run("sft", "sft", config="sft.py")
    export(str(folder / "sft"), str(folder / "sft/hf"))
    common = {"model__init_from": str(folder / "sft/hf"), "data__rows": 4}
    write_recipe(
        folder, "grpo", "grpo", data__records=made.files["rl"], train__max_steps=2,
        checkpoint__every=1, checkpoint__keep_last=4, rollout__num_rollouts=4,
        validate__records=made.files["eval"], validate__every=2, validate__max_new_tokens=32,
        **common,
    )  # fmt: skip
    write_recipe(
        folder, "evaluate", "grpo", data__records=made.files["eval"], data__epochs=1,
        evaluate__max_new_tokens=32, evaluate__temperature=0.0, train__max_steps=0, **common,
    )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def whole(place):
    return place.run("grpo", "whole", config="grpo.py")[0]


def read_completions(workdir):
    return [json.loads(line) for line in (workdir / "completions.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_sampler_and_trainer_agree_and_calls_are_told(whole):
    lines, told = metrics(whole), read_completions(whole)
    assert len(told) == 2 * 4 * 4
    for line in lines:
        own = [call for one in told if one["step"] == line["step"] for call in one["calls"]]
        assert line["rollout/calls"] == len(own) > 4
        assert line["rollout/calls_failed"] == sum(bool(call["fault"]) for call in own)
        assert line["sampler_gap"] < 1e-3
        assert line["grad_norm"] > 0
    good = next(one for one in told if one["calls"] and not one["calls"][0]["fault"])
    call = good["calls"][0]
    assert call["turn"].endswith(call["call"])
    assert good["completion"].startswith(call["turn"])
    assert call["result"] == "[2 x 2 x 2 tokens]"
    assert call["result_tokens"] > 8


@pytest.mark.slow
def test_a_restart_changes_no_bit(place, whole):
    place.run("grpo", "parts", "--config.train.max_steps=1", config="grpo.py")
    parts = place.run("grpo", "parts", config="grpo.py")[0]
    found, expected = read_arrays(parts, 2), read_arrays(whole, 2)
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].tobytes() == expected[path].tobytes(), path
    assert read_completions(parts) == read_completions(whole)


@pytest.mark.slow
def test_validation_prints_what_evaluation_does(place, whole):
    """Both answer with calls, by one code."""
    flag = f"--config.evaluate.checkpoint={whole}"
    found = place.run("evaluate", "answers", flag, config="evaluate.py")[0]
    results = json.loads((found / "results.json").read_text())["results"]
    (line,) = [line for line in metrics(whole) if "validate/accuracy" in line]
    assert line["validate/accuracy"] == results["accuracy"]
    assert sum(bool(row["calls"]) for row in read_completions(found)) > 12
