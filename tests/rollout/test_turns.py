"""Completions that call tools: against transformers, against the training path, and themselves.

A random model calls nothing by itself, so what a turn says is read off its tokens by a rule of the
test. One id in six ends a turn.
"""

import dataclasses
import json

import av
import hf_twin as hf
import jax
import numpy as np
import pytest
import torch
from clips import encode
from tiny_run import make_config

from videorft_jax.commands.grpo import read_options
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.render import render_text
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.tiny_tokenizer import find_control_ids, train_tiny_tokenizer
from videorft_jax.grpo.experience import Experience
from videorft_jax.grpo.logprobs import score_completions
from videorft_jax.grpo.turn_rows import fit_turns, make_turn_rows
from videorft_jax.models import family
from videorft_jax.parallel import sharding
from videorft_jax.rollout.calls import find_call
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import SamplingConfig
from videorft_jax.rollout.turns import TurnEngine
from videorft_jax.training.run import make_loader, make_tools

R, C, END, FRAMES = 4, 14, 3, 4
SPANS = [(0.0, 1.0, 4), (0.5, 1.9, 2), (1.0, 2.0, 4)]  # start, end and frames of each call
CALLS = [f"I look. <frames start={a} end={b} n={n}>" for a, b, n in SPANS]
OPTIONS = {
    "model.dtype": "float32", "model.remat": "none", "media.min_frames": FRAMES,
    "media.max_frames": FRAMES, "media.min_pixels": 56 * 84, "media.max_pixels": 56 * 84,
    "media.mrope_rule": "hf5", "data.rows": 2, "data.row_tokens": 256, "data.multiple": 16,
    "data.max_buckets": 1, "data.threads": 2, "rollout.num_rollouts": R,
    "rollout.max_new_tokens": C, "rollout.temperature": 0.9,
    "rewards": (("accuracy", 1.0),), "tools.names": ("frames", "user_tools:note"),
    "tools.max_turns": 3, "tools.max_frames": 4, "tools.max_tokens": 96, "tools.timeout_s": 20.0,
}  # fmt: skip


class Place:
    """Two questions about a clip of 2 seconds, a random model, and what its rollouts draw."""

    def __init__(self, folder):
        (folder / "a.mp4").write_bytes(encode(num=50, size=(84, 56)))
        rows = [
            {"problem_id": i, "problem": text, "data_type": "video", "path": "a.mp4",
             "problem_type": "free-form", "solution": "red", "process": "I look."}
            for i, text in enumerate(["What is it?", "Which colour has the square there?"])
        ]  # fmt: skip
        records = folder / "records.jsonl"
        records.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = RecordSource(records)
        texts = [render_text(build_messages(source[i])) for i in range(2)]
        self.tokenizer = train_tiny_tokenizer(texts, 320)
        ids = find_control_ids(self.tokenizer)
        small = {"vision_depth": 1, "vision_fullatt_block_indexes": [0]}
        self.twin = hf.make_twin(folder / "twin", seed=5, vocab_size=320, **ids, **small)
        config = make_config("grpo_7b", OPTIONS, data__records=str(records))
        self.options = read_options(config)
        loader = make_loader(self.options.train, "grpo", self.tokenizer, str(folder), source)
        with loader.steps(0) as items:
            self.item = next(items)
        self.folder, self.source, self.bucket = folder, source, loader.buckets[0]
        self.sampling = SamplingConfig(
            num_rollouts=R, max_new_tokens=C, temperature=0.9, stop_ids=(END,), pad_id=0,
            num_real_tokens=6,
        )  # fmt: skip
        self.plain = self.make_engine()
        self.params = self.plain.prepare(self.twin.params)
        self.engine = self.make_turns(self.plain)
        self.uids = np.array([row[0] for row in self.item.indices])

    def make_engine(self, mesh=None):
        return RolloutEngine(self.twin.config, self.sampling, mesh, dtype="float32", num_buckets=1)

    def make_turns(self, engine, read=None):
        tools = make_tools(self.options.train, self.tokenizer, self.source)
        tools.read = read or (lambda tokens: CALLS[int(tokens[0]) % len(CALLS)])
        return TurnEngine(engine, tools)

    def draw(self, engine, seed=0, **changes):
        """A rollout of both prompts."""
        args = {"step": 3} | changes
        return engine.rollout(self.params, self.item.batch, self.uids, self.item, seed=seed, **args)

    def rows(self, rollout):
        """The rows of an update on a rollout."""
        batch = self.item.batch
        part = Experience(
            self.item, batch, rollout, None, np.ones((2, R), np.float32), None, None, None
        )
        rows = make_turn_rows(part, np.ones((2, R), bool))
        longest = int(rows.groups.lengths.max())
        return fit_turns(rows, longest, batch.patches.shape[1], self.options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("turns"))


@pytest.fixture(scope="module")
def rollout(place):
    return place.draw(place.engine)


def ours(place, params, groups):
    model = family.bind(place.twin.config, params)
    return score_completions(model, groups, temperature=0.9)[0]


def hf_logprobs(place, rollout, row, number):
    """transformers' log-probabilities of every token behind the prompt, from frames that are
    decoded here by PyAV alone, and positions that are transformers' own."""
    batch, turns = place.item.batch, rollout.turns
    prompt = batch.tokens[row, : (batch.segment_ids[row] > 0).sum()]
    own = turns.tokens[row, number, : turns.lengths[row, number]]
    spans = [(0.0, 2.0, FRAMES)]
    for call in rollout.calls[row][number]:
        spans += [SPANS[CALLS.index("I look. " + call["call"])]]
    clips = []
    for start, end, count in spans:
        frames, _ = read_all(place.folder / "a.mp4")
        first, last = int(np.ceil(start * 25)), min(int(np.floor(end * 25)), 49)
        chosen = np.linspace(first, last, count).round().astype(int)
        clips.append(hf.Clip(frames[chosen], count / (last - first + 1) * 25))
    sample = type(
        "Row", (), {"tokens": np.concatenate([prompt, own]), "loss_mask": np.zeros(1, bool)}
    )
    inputs, _ = hf.hf_inputs(place.twin.config, [sample], [clips], length=len(sample.tokens))
    logits = place.twin.hf(**inputs).logits[0, len(prompt) - 1 : -1] / 0.9
    every = torch.log_softmax(logits, -1)
    return every[torch.arange(len(own)), torch.tensor(own).long()]


def read_all(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]), 25


def test_sampler_trainer_and_transformers_agree(place, rollout):
    """All three give every drawn token the same log-probability, also behind results of calls."""
    rows = place.rows(rollout)
    groups, mask = rows.groups, np.asarray(rows.groups.mask)
    assert rollout.counters["calls"] > 6
    assert max(len(calls) for row in rollout.calls for calls in row) == 2
    found = np.asarray(jax.jit(lambda p, g: ours(place, p, g))(place.twin.params, groups))
    np.testing.assert_allclose(rows.sampler[mask], found[mask], atol=1e-3)
    assert not found[~mask].any()
    for row, number in np.ndindex(2, R):
        end = rollout.turns.lengths[row, number]
        own = rollout.turns.is_own[row, number, :end]
        with torch.no_grad():
            wanted = hf_logprobs(place, rollout, row, number).numpy()
        np.testing.assert_allclose(found[row, number, :end][own], wanted[own], atol=1e-4)
        drawn = rollout.lengths[row, number]
        np.testing.assert_array_equal(
            rollout.turns.tokens[row, number, :end][own], rollout.tokens[row, number, :drawn]
        )


@pytest.mark.slow
def test_results_teach_nothing(place, rollout):
    """The gradient of the drawn tokens' log-probabilities is that of transformers, in which tokens
    of results are left out by a sum over the others alone."""
    rows = place.rows(rollout)
    weights = np.random.default_rng(0).normal(size=rows.sampler.shape).astype(np.float32)
    weights *= np.asarray(rows.groups.mask)
    total = jax.jit(jax.grad(lambda p, g: (ours(place, p, g) * weights).sum()))
    found = total(place.twin.params, rows.groups)
    place.twin.hf.zero_grad()
    wanted = 0.0
    for row, number in np.ndindex(2, R):
        end = rollout.turns.lengths[row, number]
        wanted += (
            hf_logprobs(place, rollout, row, number) * torch.tensor(weights[row, number, :end])
        ).sum()
    wanted.backward()
    expected = hf.gradients(place.folder / "gradients", place.twin)
    paths = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), theirs in zip(paths, jax.tree.leaves(expected), strict=True):
        theirs = np.asarray(theirs)
        error = np.abs(np.asarray(leaf) - theirs).max()
        assert error <= 1e-4 * np.abs(theirs).max() + 1e-8, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_eight_devices_draw_the_same(place, rollout):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    plain = place.make_engine(mesh)
    engine = place.make_turns(plain)
    where = sharding.state_shardings(place.twin.params, mesh)
    params = plain.prepare(jax.device_put(place.twin.params, where))
    found = engine.rollout(params, place.item.batch, place.uids, place.item, seed=0, step=3)
    np.testing.assert_array_equal(found.turns.tokens, rollout.turns.tokens)
    np.testing.assert_allclose(found.logprobs, rollout.logprobs, atol=1e-4)
    assert found.calls == rollout.calls


def test_where_nobody_calls_tools_change_nothing(place, monkeypatch):
    monkeypatch.setattr(place.engine.tools, "read", lambda tokens: "I see it.")
    found = place.draw(place.engine)
    plain = place.plain.rollout(place.params, place.item.batch, place.uids, seed=0, step=3)
    assert found.turns is None
    assert found.counters["calls"] == 0
    for name in ("tokens", "lengths", "logprobs", "truncation", "stopped", "failed"):
        assert getattr(found, name).tobytes() == getattr(plain, name).tobytes(), name


def test_a_completion_depends_on_nothing_beside_it(place, rollout, monkeypatch):
    """The same completions are drawn again, as after a restart, and where the calls of all others
    fail; with another seed they differ."""
    again = place.draw(place.engine)
    np.testing.assert_array_equal(again.turns.tokens, rollout.turns.tokens)
    assert again.logprobs.tobytes() == rollout.logprobs.tobytes()
    assert not np.array_equal(place.draw(place.engine, seed=1).tokens, rollout.tokens)
    lucky = int(np.argmax([len(calls) for calls in rollout.calls[1]]))
    first = rollout.tokens[1, lucky]
    read = place.engine.tools.read

    def only(tokens):
        is_meant = np.array_equal(tokens, first[: len(tokens)]) or tokens[0] == first[0]
        return read(tokens) if is_meant else "<frames start=2>"

    monkeypatch.setattr(place.engine.tools, "read", only)
    other = place.draw(place.engine)
    length = rollout.calls[1][lucky][0]["turn_tokens"]
    np.testing.assert_array_equal(other.tokens[1, lucky][:length], first[:length])
    assert rollout.calls[1][lucky][0] == other.calls[1][lucky][0]


FAULTS = {
    "<frames start=1.5 end=1 n=4>": ("malformed", "start must be at least 0 and before end"),
    "<frames start=0 end=1 n=40>": ("malformed", "n must be a whole number from 2 to 4"),
    "<frames start=0 end=1 n=2.5>": ("malformed", "n must be a whole number"),
    "<frames start=5 end=6 n=2>": ("failed", "last frame at 1.960 s"),
    "<frames start=0 end=0.1 n=4>": ("failed", "3 frames, need at least 4"),
    "<frames start=one end=2 n=2>": ("malformed", "start is no number"),
    "<frames start=1 n=2>": ("malformed", "end is missing"),
    "<frames start=1 end=2 n=2 zoom=3>": ("malformed", "zoom is unknown"),
    "<frames start=1 start=2>": ("malformed", "start is given twice"),
    "<frames start=1 end=": ("malformed", "cannot be read"),
    "<fails>": ("failed", "SystemExit: no such thing"),
    "<hangs/>": ("timeout", "no result within 0.2 seconds"),
    "<talks>": ("failed", "tokens, at most 96 fit"),
    "<wrong>": ("failed", "neither a text nor frames"),
    "<still n=9>": ("failed", "returned 9 frames, at most 4 are read"),
    "<still n=four>": ("failed", "ValueError"),
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty(place):
    """Tools of which most are bad; the one that hangs is waited for 0.2 s, as it would be for any
    limit, and the others for 20."""
    names = ("frames", *(f"user_tools:{n}" for n in ("fails", "hangs", "talks", "wrong", "still")))
    found = []
    for limit in (20.0, 0.2):
        tools = dataclasses.replace(place.options.train.tools, names=names, timeout_s=limit)
        options = dataclasses.replace(place.options.train, tools=tools)
        found.append(make_tools(options, place.tokenizer, place.source))
    patient, hasty = found
    answer = patient.answer

    def choose(call, *others):
        return hasty.answer(call, *others) if call.name == "hangs" else answer(call, *others)

    patient.answer = choose
    return patient


@pytest.mark.parametrize("text", FAULTS)
def test_a_bad_call_becomes_a_text(place, faulty, text):
    kind, words = FAULTS[text]
    call = find_call(f"So I ask. {text}\n", faulty.functions)
    reply = faulty.answer(call, 0, place.source[0], (56, 84), 2)
    assert (reply.fault, reply.media) == (kind, ())
    assert words in reply.text
    assert len(reply.tokens) <= 96
    said = place.tokenizer.decode(reply.tokens)
    assert said.startswith(f"\n<|im_start|>user\n{call.name}: ")
    assert said.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_bad_call_is_counted_and_the_model_goes_on(place, faulty, monkeypatch):
    said = iter(["<fails>", "<still n=4>", "<hangs>"])
    monkeypatch.setattr(place.engine, "tools", faulty)
    monkeypatch.setattr(faulty, "read", lambda tokens: next(said, "Nothing."))
    found = place.draw(place.engine)
    counts = {name: found.counters[name] for name in ("calls", "calls_failed", "calls_timed_out")}
    assert counts == {"calls": 3, "calls_failed": 2, "calls_timed_out": 1}
    calls = [call for row in found.calls for one in row for call in one]
    assert [call["fault"] for call in calls] == ["failed", "", "timeout"]
    assert found.turns.patch_valid.any(axis=(2, 3)).sum() == 2  # grey frames of one call


@pytest.mark.parametrize(
    "text",
    ["I see it.", "<frames>ab</frames>", "<frame start=1 end=2 n=2>", "a < frames",
     "<frames start=1 end=2 n=2> and so on", "<answer>red</answer>"],
)  # fmt: skip
def test_what_is_no_call(text):
    assert find_call(text, {"frames"}) is None


def test_a_call_is_read_as_it_is_written():
    found = find_call("<think>x</think>\n<note word='two words' n=3 />  ", {"note"})
    assert found.arguments == {"word": "two words", "n": "3"}


def test_a_user_tool_answers(place):
    call = find_call("<note word=round>", {"note"})
    reply = place.engine.tools.answer(call, 0, place.source[0], (56, 84), 2)
    said = place.tokenizer.decode(reply.tokens)
    assert said == ("\n<|im_start|>user\nthe note is round<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools.names": ("zoom",)}, "tools.names has 'zoom'; write frames, or module:function"),
        ({"tools.names": ("no_such_module:f",)}, "No module named 'no_such_module'; write"),
        ({"tools.names": ("user_tools:absent",)}, "has no attribute 'absent'; write frames"),
        ({"tools.names": ("user_tools:narrow",)}, "take .arguments, record, root."),
        ({"tools.names": ("frames", "frames")}, "frames twice; a tag calls one tool"),
        ({"tools.max_turns": 1}, "tools.max_turns is 1, so no turn could follow a call"),
        ({"tools.max_frames": 1}, "tools.max_frames is 1; give at least 2"),
        ({"tools.max_tokens": 8}, "tools.max_tokens is 8; give at least 64"),
        ({"tools.timeout_s": 0.0}, "tools.timeout_s is 0.0; give more than 0"),
        ({"grpo.max_draws": 2}, "tools.names and grpo.max_draws above 1 exclude each other"),
        ({"rewards": (("accuracy", 1.0), ("order", 1.0))}, "and the reward 'order' exclude"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_options(make_config("grpo_7b", OPTIONS | changes))
    assert len(str(caught.value).splitlines()) == 1


def test_the_number_of_programs_is_bounded(place, monkeypatch):
    """Whatever is called, K calls at most give K prefill and K decode programs more."""
    mix = np.random.default_rng(1)
    for seed in range(3):
        monkeypatch.setattr(
            place.engine.tools, "read", lambda tokens: mix.choice([*CALLS, "<note>", "Nothing."])
        )
        place.draw(place.engine, seed=seed)
    assert place.engine.num_compiles == 2 * (OPTIONS["tools.max_turns"] - 1)


def test_no_turn_draws_with_the_noise_of_another(place, monkeypatch):
    """Random keys are made of (step, name, number); no two turns of a step have the same three."""
    seen, draw = [(3, int(uid), number) for uid in place.uids for number in range(R)], []

    def record(params, batch, uids, *, step, limits, **how):
        draw.extend((step, int(uid), 0) for uid in uids if uid)
        return later(params, batch, uids, step=step, limits=limits, **how)

    later = place.engine.later.rollout
    monkeypatch.setattr(place.engine.later, "rollout", record)
    found = place.draw(place.engine)
    assert len(draw) == found.counters["calls"]
    assert len({*seen, *draw}) == len(seen) + len(draw)
    assert not {step for step, *_ in draw} & {3}
