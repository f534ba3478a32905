"""The world of moments: what its chains teach is, token for token, what a rollout then reads."""

import json

import numpy as np
import pytest
from tiny_run import make_config

from videorft_jax.commands.grpo import read_options
from videorft_jax.data.batch.layout import pack
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.prompts import build_messages, build_target
from videorft_jax.data.records.render import render_text
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.moments import COLOURS, PAIRS, SECONDS, SHOWN, write_moments
from videorft_jax.demo.scenes import PALETTE
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.rollout.calls import find_call
from videorft_jax.rollout.transcript import Transcript, extend_prompts
from videorft_jax.training.run import make_loader, make_tools

OPTIONS = {
    "media.min_frames": 4, "media.max_frames": 4, "media.min_pixels": 3136,
    "media.max_pixels": 3136, "data.row_tokens": 208, "data.rows": 2, "data.multiple": 8,
    "data.max_buckets": 1, "data.threads": 1, "rewards": (("accuracy", 1.0),),
    "tools.names": ("frames",), "tools.max_frames": 4, "tools.max_tokens": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    return write_moments(folder, {"sft": 1, "rl": 1, "eval": 1}, 6)


def read_rows(file):
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load(records, options, mode, tokenizer, folder):
    loader = make_loader(options, mode, tokenizer, str(folder), RecordSource(records))
    return [loader._load(i) for i in range(2)], loader.source


@pytest.mark.parametrize("rule", ["qwen", "hf5"])
def test_a_chain_is_what_a_rollout_reads(files, tmp_path, rule):
    """The same tokens, positions, visual slots and pixels, whether SFT lays out the chat whole or a
    rollout answers the call that the chain makes."""
    config = make_config("grpo_7b", OPTIONS, data__records=files["sft"], media__mrope_rule=rule)
    options = read_options(config).train
    source = RecordSource(files["sft"])
    texts = [render_text(build_messages(source[i])) + build_target(source[i]) for i in range(6)]
    tokenizer = train_tiny_tokenizer(texts, 400)
    chains, source = load(files["sft"], options, "sft", tokenizer, tmp_path / "sft")
    prompts, _ = load(files["sft_single"], options, "grpo", tokenizer, tmp_path / "single")
    tools = make_tools(options, tokenizer, source)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number, (chain, prompt) in enumerate(zip(chains, prompts, strict=True)):
        whole, batch = chain.sample, pack([[prompt.sample]], 96, 2, 1)
        said = [text for role, text in chain.record.turns if role == "assistant"]
        one = Transcript(0, 0, int(prompt.sample.positions[0, -1]) + 1, rule)
        for turn, text in enumerate(said):
            ids = [*tokenizer.encode(text, add_special_tokens=False), end]
            one.add_turn(np.array(ids), np.zeros(len(ids)), np.zeros(len(ids)), True, False)
            if turn + 1 < len(said):
                call = find_call(tools.read(one.last_turn), tools.functions)
                reply = tools.answer(call, number, prompt.record, (56, 56), 1)
                assert not reply.fault
                one.add_reply(reply)
        found = extend_prompts(batch, [one], 160, 2)
        wanted = pack([[whole]], 160, 4, 1)
        for name in wanted._fields:
            if name != "loss_mask":
                assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
        learnt = np.concatenate([np.zeros(len(prompt.sample.tokens), bool), one.is_own])
        np.testing.assert_array_equal(whole.loss_mask, learnt)


def test_a_prompt_shows_none_of_the_moments(files):
    assert not {second for pair in PAIRS for second in pair} & set(SHOWN)
    config = make_config("grpo_7b", OPTIONS, data__records=files["rl"])
    contract = read_options(config).train.contract
    for row in read_rows(files["rl"]):
        clip = load_media(row["media"][0]["path"], files["rl"].rpartition("/")[0], contract)
        assert sorted({int(second) for second in clip.timestamps}) == sorted(SHOWN)


def test_answers_are_the_colours_of_the_clip(files):
    root = files["eval"].rpartition("/")[0]
    config = make_config("grpo_7b", OPTIONS, data__records=files["eval"], media__max_frames=20)
    config.media.min_frames = 20
    contract = read_options(config).train.contract
    for row in read_rows(files["eval"]):
        clip = load_media(row["media"][0]["path"], root, contract)
        assert len(clip.frames) == 2 * SECONDS
        moments = [int(w) for w in row["messages"][0]["content"].rstrip("?").split() if w.isdigit()]
        middle = clip.frames[:, 28, 28].astype(int)
        names = [
            min(COLOURS, key=lambda c: np.abs(middle[2 * second] - PALETTE[c]).sum())
            for second in moments
        ]
        assert row["messages"][-1]["content"] == f"<answer>{' '.join(names)}</answer>"
