"""Given completions: an answer that a record brings along stands in its group beside drawn ones."""

import json
import types

import numpy as np
import pytest
from tiny_run import TinyCommands, make_data, make_model, metrics, sft_options, write_config

from videorft_jax.data.records import opening
from videorft_jax.data.records.records import parse_row
from videorft_jax.grpo.given import check_given, put_given, read_given
from videorft_jax.rollout.results import Rollout
from videorft_jax.rollout.sampling import SamplingConfig

ROW = {
    "problem_id": 3, "problem": "How many?", "data_type": "video", "problem_type": "numerical",
    "process": "<think>One, two.</think>", "solution": "<answer>2</answer>", "path": "a.mp4",
}  # fmt: skip
CHAIN = "<think>One, two.</think>\n<answer>2</answer>"
R, C, END, PAD = 3, 60, 7, 0


class Letters:
    """A tokenizer with a token for each character."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return list(map(ord, text))


def record(**changes):
    return parse_row(ROW | changes, "row 0")


def put(records, num_given, size=C):
    shape = (len(records), R)
    rng = np.random.default_rng(0)
    drawn = Rollout(
        rng.integers(10, 20, (*shape, size)).astype(np.int32), np.full(shape, 5, np.int32),
        rng.normal(size=(*shape, size)).astype(np.float32),
        rng.normal(size=(*shape, size)).astype(np.float32),
        np.zeros(shape, bool), np.ones(shape, bool), {"seconds": 1.0},
    )  # fmt: skip
    step = types.SimpleNamespace(
        valid=np.array([own is not None for own in records]), records=[[own] for own in records]
    )
    sampling = SamplingConfig(R, size, stop_ids=(END, 8), pad_id=PAD)
    return drawn, put_given(drawn, step, num_given, Letters(), sampling)


def test_a_record_gives_its_chain_or_what_it_lists():
    assert read_given(record()) == [CHAIN]
    assert read_given(record(process="")) == []
    assert read_given(record(given=["a", "b"])) == ["a", "b"]
    for wrong in ("a", [1], {"a": 1}):
        with pytest.raises(ValueError, match="record 3: given: is no list of strings"):
            read_given(record(given=wrong))


def test_given_completions_take_the_last_places():
    drawn, found = put([record(), record(given=["x", "yz"]), None], 1)
    for row, text in ((0, CHAIN), (1, "x")):
        ids = [*map(ord, text), END]
        assert found.tokens[row, -1].tolist() == ids + [PAD] * (C - len(ids))
        assert found.lengths[row, -1] == len(ids)
        assert found.stopped[row, -1]
    assert (found.logprobs[:2, -1] == 0).all()
    assert (found.truncation[:2, -1] == 0).all()
    assert not found.failed[:2, -1].any()
    for field in ("tokens", "lengths", "logprobs", "truncation", "stopped", "failed"):
        before, after = getattr(drawn, field), getattr(found, field)
        np.testing.assert_array_equal(after[:, :-1], before[:, :-1], field)
    assert found.counters == {"seconds": 1.0, "given_too_long": 0.0}
    _, two = put([record(given=["x", "yz"])], 2)
    assert two.tokens[0, 1:, :3].tolist() == [[ord("x"), END, PAD], [ord("y"), ord("z"), END]]


def test_what_is_too_long_takes_no_part():
    drawn, found = put([record(), record(given=["x"])], 1, size=10)
    assert found.failed[:, -1].tolist() == [True, False]
    assert found.stopped[:, -1].tolist() == [False, True]
    assert found.counters["given_too_long"] == 1
    assert found.failed[:, :-1].all()  # What was drawn keeps its own marks.


def test_records_without_enough_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [ROW, ROW | {"problem_id": 4, "process": ""}, ROW | {"problem_id": 5, "given": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = opening.open_records(str(path), None, "auto")
    check_given(source, 0, "rows")
    with pytest.raises(ValueError, match="rows: 2 of 3 records have fewer than grpo.num_given = 1"):
        check_given(source, 1, "rows")
    path.write_text(json.dumps(ROW) + "\n")
    source = opening.open_records(str(path), None, "auto")
    check_given(source, 1, "rows")
    with pytest.raises(ValueError, match="1 of 1 records have fewer than grpo.num_given = 2"):
        check_given(source, 2, "rows")


@pytest.mark.slow
def test_a_run_learns_from_what_is_given(tmp_path):
    """A random model is never right: only the given chains are, and they become likelier. A run
    that was stopped goes on as if it had not been; groups that wait keep what they were given."""
    place = TinyCommands(tmp_path)
    files = make_data(tmp_path / "data", num_sft=16, num_rl=4, num_eval=0)
    make_model(tmp_path / "model", files["sft"])
    options = sft_options(
        tmp_path / "model", files["sft"], data__row_tokens=192, data__epochs=8,
        train__max_steps=6, optim__lr=3e-3, optim__schedule="constant", checkpoint__every=3,
        checkpoint__keep_last=9, rollout__num_rollouts=4, rollout__max_new_tokens=96,
        grpo__length_buckets=1, grpo__beta=0.0, reward__gated=(), grpo__num_given=1,
        grpo__given_shaping=0.003,
        rewards=(("accuracy", 1.0), ("format", 1.0)),
    )  # fmt: skip
    write_config(tmp_path / "tiny.py", "grpo_7b", options)
    whole, _ = place.run("grpo", "whole")
    lines = [json.loads(line) for line in (whole / "completions.jsonl").read_text().splitlines()]
    given = [line for line in lines if line["given"]]
    assert len(given) * 4 == len(lines)
    for line in given:
        assert line["rewards"]["accuracy"] == line["rewards"]["format"] == 1
        assert line["completion"].endswith(f"<answer>{line['solution']}</answer>")
        assert line["advantage"] > 0
    curve = metrics(whole)
    # The metric is a mean over drawn completions, and none of those is right.
    assert all(line["rewards/accuracy/mean"] == 0 for line in curve)
    assert all(line["groups/informative"] == 1 for line in curve)
    assert all(line["rollout/given_too_long"] == 0 for line in curve)
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.05  # It falls as given tokens become likelier.
    place.run("grpo", "parts", "--config.train.max_steps=3")
    parts, _ = place.run("grpo", "parts")
    names = ("loss", "grad_norm", "entropy", "sampler_gap")
    assert [[line[name] for name in names] for line in metrics(parts)] == [
        [line[name] for name in names] for line in curve
    ]
    few = f"--config.data.records={files['rl']}"
    _, text = place.run("grpo", "few", few, code=2)
    assert "4 of 4 records have fewer than grpo.num_given = 1" in text.splitlines()[-1]
