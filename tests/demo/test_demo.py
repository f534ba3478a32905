"""The demo: its recipe, its report, and a small one from end to end, killed on the way."""

import json
import os
import sys
import types

import held_out
import numpy as np
import pytest
from option_names import OPTIONS
from tiny_run import ROOT, finish, load_recipe, start, wait_for

from videorft_jax import api, cli
from videorft_jax.commands import flags, options_help
from videorft_jax.demo import report as demo_report
from videorft_jax.demo.scenes import WorldConfig
from videorft_jax.training.restore import find_checkpoint

STAGES = ("before", "after_sft", "after_grpo", "after_more_sft", "blank")
SMOKE = f"--config={ROOT / 'configs/demo.py'}:smoke"


def load_demo(*arguments):
    load_recipe("demo")
    return sys.modules["demo"].get_config(*arguments)


@pytest.mark.parametrize("size", ["full", "smoke", "qwen3vl", "qwen3vl_smoke"])
def test_recipe_holds_whole_stages_and_a_world(size):
    config = load_demo(size)
    given = [f"--config={ROOT}/configs/demo.py{'' if size == 'full' else ':' + size}"]
    read, _ = flags.parse(given, "videorft demo", "videorft demo", writes=False)
    assert read.to_dict() == config.to_dict()  # The command line takes every size.
    WorldConfig(**config.world.to_dict())
    for stage in (config.sft, config.grpo):
        assert {name for name, _ in options_help.flatten(stage, "")} == {f".{n}" for n in OPTIONS}
    assert config.clips.sft < config.clips.rl or size.endswith("smoke")
    planned = config.grpo.data.rows * config.grpo.train.max_steps
    assert planned <= config.clips.rl or size.endswith("smoke")  # every clip of GRPO is fresh


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="demo.py:tiny"):
        load_demo("tiny")


def row(index, score):
    return {
        "index": index, "rollout": 0, "problem_id": index, "problem_type": "numerical",
        "path": f"{index}.mp4", "score": score, "outcome": "scored", "reason": "",
        "completion_tokens": 3, "stopped": True, "finite": True,
    }  # fmt: skip


def test_report_compares_stages_clip_by_clip():
    rng = np.random.default_rng(0)
    scores = {name: rng.integers(0, 2, 60).astype(float) for name in STAGES}
    scores["after_grpo"] = np.ones(60)
    rows = {name: [row(i, s) for i, s in enumerate(own)] for name, own in scores.items()}
    kinds = ["colour", "first", "count"] * 20
    found = demo_report.compare(rows, kinds)
    for name, own in scores.items():
        assert found["accuracy"][name]["all"][0] == pytest.approx(own.mean())
        for place, kind in enumerate(kinds[:3]):
            assert found["accuracy"][name][kind][0] == pytest.approx(own[place::3].mean())
    mean, low, high = found["differences"]["GRPO - SFT"]
    gain = 1 - scores["after_sft"]
    assert mean == pytest.approx(gain.mean())
    half = 1.96 * gain.std() / np.sqrt(60)
    assert (mean - low, high - mean) == pytest.approx((half, half), abs=0.02)
    text = demo_report.format_report(
        found
        | {"seed": 3, "sampled": [0.25, 0.5]}
        | {"seconds": dict.fromkeys(("clips", "siglip", "sft", "grpo"), 2.0)},
        "runs/demo",
    )
    assert f"| after GRPO | 1.000 [{found['accuracy']['after_grpo']['all'][1]:.3f}, 1.000]" in text
    assert "GRPO beats the SFT" in text
    assert "all stages 8" in text


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A run killed in SFT, one stopped in GRPO, one that ends, and one with nothing to do."""
    folder = tmp_path_factory.mktemp("demo")
    workdir, cache = folder / "run", folder / "cache"
    command = ("demo", SMOKE, f"--workdir={workdir}")
    first = start(cache, *command)
    wait_for(lambda: (workdir / "sft/checkpoints/00000002").exists(), first)
    first.kill()
    first.communicate()
    second = start(cache, *command)
    wait_for(lambda: (workdir / "grpo/checkpoints/00000002").exists(), second)
    second.terminate()
    stopped = finish(second)
    times = {path.name: path.read_text() for path in (workdir / "done").iterdir()}
    ended, again = (finish(start(cache, *command)) for _ in range(2))
    return types.SimpleNamespace(
        workdir=workdir, stopped=stopped, times=times, ended=ended, again=again
    )


def test_every_stage_runs_and_reports(smoke):
    code, text = smoke.ended
    assert code == 0, text
    results = json.loads((smoke.workdir / "results.json").read_text())
    assert set(results["accuracy"]) == set(STAGES)
    for name in STAGES:
        lines = (smoke.workdir / "evaluations" / name / "completions.jsonl").read_text()
        rows = [json.loads(line) for line in lines.splitlines()]
        assert [row["index"] for row in rows] == list(range(30))
        mean = np.mean([row["score"] for row in rows])
        assert results["accuracy"][name]["all"][0] == pytest.approx(mean)
    blank = json.loads((smoke.workdir / "evaluations/blank/results.json").read_text())
    assert blank["settings"]["evaluate"]["blank"] is True
    assert str(smoke.workdir / "grpo/hf") in text
    for page in ("report.html", "answers.html"):
        assert str(smoke.workdir / page) in text
        assert "groups-0-0" in (smoke.workdir / page).read_text()
    assert (smoke.workdir / "report.md").read_text() in text
    # The command that follows asks under the system prompt of training.
    assert f"ask --model={smoke.workdir}/grpo --video=CLIP" in text.splitlines()[-1]
    assert find_checkpoint(str(smoke.workdir / "grpo")).system == "Think, then answer."


def test_grpo_sees_every_reward_and_fresh_clips(smoke):
    lines = (smoke.workdir / "grpo/completions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    assert all(set(row["rewards"]) == {"accuracy", "format", "semantic"} for row in rows)
    records = (smoke.workdir / "clips/rl.jsonl").read_text().splitlines()
    assert len({row["problem_id"] for row in rows}) == 16  # 4 steps of 4 prompts
    assert not any(json.loads(record)["process"] for record in records)  # no chain is given away


def test_stopped_and_killed_stages_go_on(smoke):
    code, text = smoke.stopped
    assert code == 0, text
    assert "the same command goes on from there" in text
    assert "grpo" not in smoke.times
    assert "sft: done before" in smoke.ended[1]
    now = {path.name: path.read_text() for path in (smoke.workdir / "done").iterdir()}
    assert smoke.times.items() <= now.items()
    for name, steps in (("sft", 6), ("grpo", 4)):
        lines = (smoke.workdir / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))


def test_second_run_only_repeats_the_report(smoke):
    code, text = smoke.again
    assert code == 0, text
    assert text.count(": done before") == 11
    assert (smoke.workdir / "report.md").read_text() in text


def test_control_spends_the_time_that_grpo_spent(smoke):
    def seconds(name):
        lines = (smoke.workdir / name / "metrics.jsonl").read_text().splitlines()
        return np.array([json.loads(line)["perf/step_s"] for line in lines])

    expected = max(1, round(np.median(seconds("grpo")) * 4 / np.median(seconds("sft"))))
    assert len(seconds("more_sft")) == expected


def test_run_export_and_command_answer_as_the_evaluation(smoke, tmp_path, monkeypatch, capsys):
    """The media contract travels: all 30 texts are the same, from another working directory."""
    monkeypatch.chdir(tmp_path)
    found = json.loads((smoke.workdir / "evaluations/after_grpo/results.json").read_text())
    limit = found["settings"]["evaluate"]["max_new_tokens"]
    rows = held_out.read_answers(smoke.workdir, "after_grpo")
    chats = held_out.read_chats(smoke.workdir, len(rows))
    expected = [row["completion"] for row in rows]
    assert len(set(expected)) > 3  # The clips matter.
    for folder in ("grpo", "grpo/hf"):
        model = api.load(os.path.relpath(smoke.workdir / folder), dtype="float32")
        out = model.generate(chats, num_rollouts=1, max_new_tokens=limit, temperature=0.0)
        assert [texts[0] for texts in out.texts] == expected
    command = held_out.ask_arguments(smoke.workdir / "grpo", chats[0], limit)
    assert cli.main([*command, "--dtype=float32"]) == 0
    assert capsys.readouterr().out == expected[0].rstrip("\ufffd") + "\n"


def test_export_is_the_model_that_grpo_left(smoke):
    model = api.load(str(smoke.workdir / "grpo/hf"), dtype="float32")
    before = api.load(str(smoke.workdir / "model"), dtype="float32")
    clip = smoke.workdir / "clips/clips/eval/000000.mp4"
    chat = [
        {
            "role": "user",
            "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": "Count."}],
        }
    ]
    batch = model.prepare([chat])  # Each folder has a media contract of its own.
    logits = [np.asarray(m.forward(batch)) for m in (model, before)]
    assert np.isfinite(logits[0]).all()
    assert not np.allclose(*logits)
