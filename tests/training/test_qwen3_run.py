"""Qwen3-VL through the commands: SFT, export, three kinds of GRPO, evaluate."""

import json

import pytest
import tiny_run
import transformers

MEDIA = {"patch_size": 16, "min_pixels": 64 * 64, "max_pixels": 64 * 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A work folder in which SFT has run and its weights are exported."""
    folder = tmp_path_factory.mktemp("run")
    files = tiny_run.make_data(folder / "data", num_sft=24, num_rl=8, num_eval=4)
    tiny_run.make_model(folder / "model", files["sft"], model_type="qwen3_vl")
    options = make_options(folder / "model", files["sft"], data__rows=8)
    run(folder, "sft", "sft_qwen3vl_8b", options)
    arguments = ("export", f"--checkpoint={folder / 'sft'}", f"--out={folder / 'hf'}")
    code, text = tiny_run.finish(tiny_run.start(folder / "cache", *arguments))
    assert code == 0, text
    return folder, files


def make_options(model, records, **changes):
    media = {f"media__{name}": value for name, value in MEDIA.items()}
    sizes = {"data__row_tokens": 512, "data__rows": 4, "train__max_steps": 2}
    return tiny_run.sft_options(model, records, **media | sizes | changes)


def run(folder, name, recipe, options, command=None):
    tiny_run.write_config(folder / f"{name}.py", recipe, options)
    command = command or name
    arguments = (command, f"--config={folder / (name + '.py')}", f"--workdir={folder / name}")
    code, text = tiny_run.finish(tiny_run.start(folder / "cache", *arguments))
    assert code == 0, text
    return text


@pytest.mark.slow
def test_sft_learns_and_its_export_loads_in_transformers(place):
    folder, _ = place
    first, last = tiny_run.metrics(folder / "sft")
    assert last["loss"] < first["loss"]
    _, found = transformers.AutoModelForImageTextToText.from_pretrained(
        folder / "hf", output_loading_info=True
    )
    assert not any(found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("grpo_qwen3vl_8b", {}),
        ("grpo_qwen3vl_8b", {"train__freeze": ("vision,merger",)}),
        ("grpo_qwen3vl_4b_lora", {"lora__rank": 2, "train__accumulate": 2}),
    ],
    ids=["all", "frozen_tower", "lora"],
)
def test_grpo_samples_what_it_trains(place, recipe, changes, request):
    """Recorded log-probabilities are those that the update computes."""
    folder, files = place
    options = make_options(folder / "hf", files["rl"], **changes)
    options |= {"rollout.num_rollouts": 4, "rollout.max_new_tokens": 12}
    options |= {"rewards": (("accuracy", 1.0), ("format", 1.0)), "checkpoint.every": 1}
    name = f"grpo_{request.node.callspec.id}"
    run(folder, name, recipe, options, "grpo")
    lines = tiny_run.metrics(folder / name)
    assert len(lines) == 2
    assert all(abs(line["sampler_gap"]) < 1e-3 for line in lines)


@pytest.mark.slow
def test_evaluate_scores_every_record(place):
    folder, files = place
    options = make_options(folder / "hf", files["eval"])
    options = {k: v for k, v in options.items() if not k.startswith(("train", "optim"))}
    options |= {"evaluate.max_new_tokens": 8, "rollout.num_buckets": 1}
    run(folder, "evaluate", "evaluate_7b", options)
    lines = (folder / "evaluate" / "completions.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["index"] for line in lines}) == list(range(4))
