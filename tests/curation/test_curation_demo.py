"""The whole of curation on the demo: its own trained model is every expert. Quality is not the
point: the model is tiny, its world is small, and it has seen that world's lessons."""

import json
import re

import curation_expert as expert
import pytest
import tiny_run
from curation_run import curate, files

from videorft_jax.commands import validate
from videorft_jax.commands.grpo import grpo
from videorft_jax.commands.sft import sft
from videorft_jax.curation.store import Store
from videorft_jax.data.records.source import RecordSource

pytestmark = pytest.mark.slow
NUM_POOL, STEPS = 24, 200


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curation")
    clips = expert.make_place(folder, num_lessons=96, num_pool=NUM_POOL)
    run = expert.train(folder, expert.write_lessons(folder, clips["sft"]), steps=STEPS)
    end = f'kind = "local"\ncheckpoint = "{run}"\ndtype = "float32"'
    config = expert.write_config(folder / "local.toml", folder, clips["rl"], end)
    result = curate(config, folder / "local")
    return folder, clips["rl"], run, result


def keys(folder):
    with Store(folder / "store.sqlite") as store:
        return {key for (key,) in store.rows("SELECT key FROM response")}


def test_25_the_demos_model_fills_both_sets_and_the_card_says_how(place):
    folder, _, _, result = place
    counts = result.counts
    assert result.exit_code == 0
    assert (counts.pool, counts.asked, counts.described_clips) == (NUM_POOL,) * 3
    assert counts.ended["describe"] == 0  # every description has the schema's form
    assert counts.accepted >= NUM_POOL // 4
    card = (folder / "local" / "README.md").read_text()
    for name, number in (
        ("clips described", NUM_POOL), ("questions asked", NUM_POOL),
        ("right by the strict rules", counts.right), ("accepted", counts.accepted),
    ):  # fmt: skip
        assert re.search(rf"^\| {name} \| {number} \|$", card, re.MULTILINE)
    assert "are not known to allow training on them" in card


def test_25_a_server_of_the_same_model_gives_the_same_files(place):
    folder, clips, run, _ = place
    name = ["serve", f"--checkpoint={run}", "--name=expert", "--dtype=float32", "--port=0"]
    server = tiny_run.start(folder / "compiled", *name, "--max_prompt=4096", flags="")
    try:
        lines = iter(server.stdout.readline, "")
        url = next(m[1] for m in (re.search(r"at (http://\S+/v1)", line) for line in lines) if m)
        end = f'base_urls = ["{url}"]'
        config = expert.write_config(folder / "http.toml", folder, clips, end)
        assert curate(config, folder / "http").exit_code == 0
    finally:
        server.terminate()
        server.communicate()
    assert keys(folder / "http") == keys(folder / "local")
    assert files(folder / "http") == files(folder / "local")


def test_22_both_sets_train_the_demos_model(place):
    folder, clips, run, result = place
    root = folder / "clips"
    for name, number in (("VideoRFT-CoT", result.counts.accepted), ("VideoRFT-RL", NUM_POOL)):
        path = folder / "local" / f"{name}.jsonl"
        assert len(RecordSource(path, root)) == number
        assert validate.main([f"--data={path}", f"--data_root={root}", "--row_tokens=512"]) == 0
    for command, name in ((sft, "VideoRFT-CoT"), (grpo, "VideoRFT-RL")):
        demo = expert.load_demo()
        config = demo.sft if command is sft else demo.grpo
        config.model.init_from = str(folder / "model")
        config.data.records = str(folder / "local" / f"{name}.jsonl")
        config.data.root = str(root)
        config.data.rows, config.data.row_tokens = 8, 512
        config.rewards, config.reward.gated = (("accuracy", 1.0), ("format", 1.0)), ()
        config.train.max_steps = 1
        workdir = folder / f"step of {name}"
        command(config, str(workdir))
        (row,) = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        assert row["step"] == 1
        assert row["skipped"] == 0
        if command is sft:
            assert row["grad_norm"] > 0
        else:  # The model is random, and right by chance alone.
            assert 0 <= row["rewards/accuracy/mean"] <= 1
