"""`validate`, `cache` and `inspect` read clips by a recipe's own media."""

import argparse
import json
import pathlib
import shlex

import pytest

from videorft_jax.commands import cache, init, validate
from videorft_jax.commands.data_flags import add_contract_flags, read_contract
from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.loader.cache import read_contract as read_cached
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.demo.dataset import WorldConfig, write_dataset
from videorft_jax.models.geometry import PLAIN_16


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_contract_flags(parser)
    return read_contract(parser.parse_args(arguments))


def test_a_recipe_gives_its_media():
    assert parse() == MediaContract.train()
    assert parse("--contract=evaluate") == MediaContract.evaluate()
    assert parse("--config=sft_7b") == MediaContract.train()
    assert parse("--config=evaluate_7b").max_frames == MediaContract.evaluate().max_frames
    assert parse("--config=grpo_qwen3vl_8b") == MediaContract.train(PLAIN_16)
    found = parse("--config=sft_7b", "--config.media.max_frames=18", "--config.media.fps=1.5")
    assert (found.max_frames, found.fps) == (18, 1.5)
    assert found == parse("--config.media.max_frames=18", "--config.media.fps=1.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contract=train", "--config=sft_7b"), "give one of them"),
        (("--config=sft_8b",), "no recipe of that name"),
        (("--config.media.max_frames=many",), "--config.media.max_frames=many: give a number"),
        (("--config.media.patch_size=15",), "15"),
        (("--config.media.preset=test",), "test"),
    ],
)
def test_what_is_no_contract_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    world = WorldConfig(size=(56, 56), num_frames=12, still_every=4)
    return write_dataset(tmp_path_factory.mktemp("clips"), 4, 0, 0, seed=0, world=world)["sft"]


MEDIA = ("--config=sft_7b", "--config.media.min_frames=2", "--config.media.max_frames=4")


def test_the_cache_is_that_of_a_run_with_the_recipe(records, tmp_path, capsys):
    folder = tmp_path / "cache"
    assert cache.main([f"--data={records}", f"--out={folder}", *MEDIA]) == 0
    contract = parse(*MEDIA)
    assert read_cached(str(folder)) == contract
    assert len(FrameCache(folder, contract)) == 4
    last = capsys.readouterr().out.splitlines()[-1]
    assert "; next: videorft sft" in last
    assert f"--config.data.cache={folder}" in last


def test_validate_checks_by_the_recipe_and_says_what_comes_next(records, tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = [f"--data={records}", f"--json={path}", f"--answers={tmp_path / 'sizes'}"]
    assert validate.main([*arguments, *MEDIA]) == 0
    report = json.loads(path.read_text())
    assert report["media_contract"]["digest"] == parse(*MEDIA).digest
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"checked sizes kept in {tmp_path / 'sizes'}; next: videorft sft")
    assert validate.main([*arguments, "--config=sft_8b"]) == 2


def test_evaluation_without_a_recipe_reads_clips_as_its_recipe_does(records, tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = [f"--data={records}", f"--json={path}", f"--answers={tmp_path / 'sizes'}"]
    validate.main([*arguments, "--mode=evaluate"])
    found = json.loads(path.read_text())["media_contract"]["digest"]
    assert found == parse("--config=evaluate_7b").digest != parse().digest
    assert "; next: videorft evaluate --config=evaluate_7b" in capsys.readouterr().out


def test_validate_refuses_what_a_run_of_the_recipe_refuses(records, tmp_path, capsys):
    """A prompt of 1,500 words fits 4,096 tokens of SFT and not the 2,048 of a prompt of GRPO."""
    rows = [json.loads(line) for line in pathlib.Path(records).read_text().splitlines()]
    rows[1]["problem"] = "colour " * 1500
    file, path = tmp_path / "long.jsonl", tmp_path / "report.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [f"--data={file}", f"--json={path}", f"--data_root={pathlib.Path(records).parent}"]

    def check(*more):
        code = validate.main([*arguments, *MEDIA[1:], *more])
        report = json.loads(path.read_text())
        last = capsys.readouterr().out.splitlines()[-1]
        return code, report["mode"], report["why"], last.partition("next: ")[2]

    code, mode, why, after = check("--config=grpo_qwen3vl_8b", "--config.media.patch_size=14")
    assert (code, mode, why) == (1, "grpo", "by the recipe's name")
    assert after.startswith("videorft grpo --config=grpo_qwen3vl_8b --workdir=runs/grpo_qwen3vl_8b")
    code, mode, why, after = check("--config=sft_7b")
    assert (code, mode) == (0, "sft")
    assert check("--config=sft_7b", "--row_tokens=2048")[0] == 1
    assert check("--config=grpo_7b", "--row_tokens=8192")[0] == 0
    code, mode, why, after = check("--config=grpo_7b", "--mode=sft")
    assert (code, mode, why) == (1, "sft", "asked for")
    assert after.startswith("videorft sft --config=sft_7b")
    assert check()[0] == 0


@pytest.mark.parametrize(
    ("media", "words"),
    [
        ((), ["sft", "--config=sft_7b", "--workdir=runs/sft_7b"]),
        (("--patch_size=16",), ["sft", "--config=sft_qwen3vl_8b", "--workdir=runs/sft_qwen3vl_8b"]),
        (("--config=grpo_qwen3vl_8b",), ["grpo", "--config=grpo_qwen3vl_8b"]),
        (("--contract=evaluate",), ["sft", "--config=sft_7b", "--config.media.preset=evaluate"]),
        (MEDIA, ["sft", *MEDIA]),
    ],
)
def test_what_comes_next_reads_the_cache(records, tmp_path, capsys, media, words):
    """The next command has the media of the cache, else a run would refuse it."""
    folder = tmp_path / "cache"
    assert cache.main([f"--data={records}", f"--out={folder}", *media]) == 0
    last = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("; next: videorft ")[2])
    assert last[0] == words[0]
    assert set(words) < set(last)
    own = [word for word in last if word.startswith(("--config=", "--config.media."))]
    assert parse(*own) == read_cached(str(folder))


def test_patches_of_a_recipe_are_not_those_of_a_flag(records, tmp_path):
    for recipe in ("--config=sft_7b", "--config.media.max_frames=8"):
        with pytest.raises(ValueError, match="give --config.media.patch_size=16, or leave the rec"):
            cache.main([f"--data={records}", f"--out={tmp_path}", "--patch_size=16", recipe])


def test_validate_names_the_recipe_that_it_was_given(records, tmp_path, capsys):
    arguments = [f"--data={records}", f"--answers={tmp_path / 'sizes'}"]
    assert validate.main([*arguments, "--config=grpo_qwen3vl_8b"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "videorft grpo --config=grpo_qwen3vl_8b --workdir=runs/grpo_qwen3vl_8b" in last


def test_a_recipe_of_grpo_on_the_demo_is_one_of_grpo(tmp_path, capsys):
    assert init.main([str(tmp_path / "own"), "demo_grpo"]) == 0
    assert "; next: videorft grpo --config=" in capsys.readouterr().out
