"""Qwen3-VL through the commands: SFT, export, three kinds of GRPO, evaluate."""

import json
import shutil

import pytest
import tiny_run
import transformers

import videorft_jax as vr
from videorft_jax.data.records.source import RecordSource

# Differs between the completions of a random model, which are never right.
LETTERS = "tests.support.user_rewards:count_letters"
MEDIA = {"patch_size": 16, "min_pixels": 64 * 64, "max_pixels": 64 * 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A work folder in which SFT has run and its weights are exported."""
    folder = tmp_path_factory.mktemp("run")
    files = tiny_run.make_data(folder / "data", num_sft=24, num_rl=8, num_eval=4)
    tiny_run.make_model(folder / "model", files["sft"], model_type="qwen3_vl")
    options = make_options(folder / "model", files["sft"], data__rows=8)
    options["checkpoint.every"] = 1
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


def run_grpo(folder, files, recipe, changes, name):
    options = make_options(folder / "hf", files["rl"], **changes)
    options |= {"rollout.num_rollouts": 4, "rollout.max_new_tokens": 12}
    rewards = {LETTERS: 1.0, "accuracy": 1.0, "format": 1.0}
    if "reward__siglip" in changes:
        rewards["semantic"] = 0.5
    options |= {"rewards": tuple(rewards.items()), "checkpoint.every": 1}
    run(folder, name, recipe, options, "grpo")


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
    """Recorded log-probabilities are those that the update computes; one of the runs is rewarded
    for what a SigLIP sees in a clip."""
    folder, files = place
    name = f"grpo_{request.node.callspec.id}"
    if name == "grpo_frozen_tower":
        tiny_run.make_siglip(folder / "siglip", files["sft"])
        changes = changes | {
            "reward__siglip": str(folder / "siglip"), "reward__frames": 4, "reward__gated": (),
            "reward__text_rule": "repo",
        }  # fmt: skip
    run_grpo(folder, files, recipe, changes, name)
    lines = tiny_run.metrics(folder / name)
    assert len(lines) == 2
    assert all(abs(line["sampler_gap"]) < 1e-3 for line in lines)
    assert all(line["grad_norm"] > 1e-2 for line in lines)
    if name == "grpo_frozen_tower":
        semantic = [(line["rewards/semantic/mean"], line["rewards/semantic/std"]) for line in lines]
        assert all(0 < mean <= 1 and std > 0 for mean, std in semantic)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo_all"])
def test_a_restart_changes_no_bit(place, stage, request):
    """What goes on from step 1 ends in the arrays of the run that was never stopped."""
    folder, files = place
    if stage == "grpo_all" and not (folder / stage).exists():
        run_grpo(folder, files, "grpo_qwen3vl_8b", {}, stage)
    again = folder / f"{stage}_again"
    shutil.copytree(folder / stage, again)
    shutil.rmtree(again / "checkpoints" / "00000002")
    command = stage.removesuffix("_all")
    arguments = (command, f"--config={folder / (stage + '.py')}", f"--workdir={again}")
    code, text = tiny_run.finish(tiny_run.start(folder / "cache", *arguments))
    assert code == 0, text
    assert "restored step 1" in text
    whole, resumed = (tiny_run.read_arrays(run, 2) for run in (folder / stage, again))
    assert whole.keys() == resumed.keys()
    assert [path for path in whole if whole[path].tobytes() != resumed[path].tobytes()] == []


@pytest.mark.slow
def test_ask_says_what_generate_gives(place):
    folder, files = place
    record = RecordSource(files["eval"])[0]
    clip = folder / "data" / record.path
    arguments = ("ask", f"--model={folder / 'hf'}", f"--video={clip}", "--question=What is it?")
    code, text = tiny_run.finish(
        tiny_run.start(folder / "cache", *arguments, "--dtype=float32", "--max_new_tokens=12")
    )
    assert code == 0, text
    model = vr.load(folder / "hf", dtype="float32")
    content = [{"type": "video", "video": str(clip)}, {"type": "text", "text": "What is it?"}]
    assert model.system  # The run was trained behind it, so that the question is asked behind it.
    chat = [{"role": "system", "content": model.system}, {"role": "user", "content": content}]
    out = model.generate([chat], num_rollouts=1, max_new_tokens=12, temperature=0.0)
    # The last line says what comes next.
    assert text.splitlines()[-2].strip() == out.texts[0][0].strip().splitlines()[-1]


@pytest.mark.slow
def test_evaluate_scores_every_record(place):
    folder, files = place
    options = make_options(folder / "hf", files["eval"])
    options = {k: v for k, v in options.items() if not k.startswith(("train", "optim"))}
    options |= {"evaluate.max_new_tokens": 8, "rollout.num_buckets": 1}
    run(folder, "evaluate", "evaluate_7b", options)
    lines = (folder / "evaluate" / "completions.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["index"] for line in lines}) == list(range(4))
