"""Completions of every record on a tiny model: once each, whatever the batches and processes."""

import json
import pathlib

import jax
import numpy as np
import pytest
from evaluation_place import LENGTH, NUM, ROLLOUTS, ROWS, named

from videorft_jax import api
from videorft_jax.commands import evaluate
from videorft_jax.data.batch.frames import rebuild_frames
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.source import RecordSource
from videorft_jax.evaluation import runner
from videorft_jax.evaluation.runner import blank_pixels, evaluate_records
from videorft_jax.models.geometry import WINDOWED_14
from videorft_jax.rewards.combine import score


def test_every_record_once(place, rows):
    """Ten records in batches of four: the last is filled up, and nothing of the filling counts."""
    names = [(row["index"], row["rollout"]) for row in rows]
    assert sorted(names) == [(i, r) for i in range(NUM) for r in range(ROLLOUTS)]
    source = RecordSource(place.records)
    for row in rows:
        record = source[row["index"]]
        for field in ("problem_id", "problem_type", "problem", "path", "solution"):
            assert row[field] == getattr(record, field)
        assert row["stopped"] or row["completion_tokens"] == LENGTH
    assert len({row["completion"] for row in rows}) > NUM  # they differ, and so would a mix-up


def test_equals_generate(place):
    """The front door's own way: one batch of all chats, other padding, other programs."""
    greedy = {"evaluate__temperature": 0.0, "evaluate__num_rollouts": 1}
    engine = evaluate.make_engine(
        place.config(**greedy), place.model_config, place.tokenizer, place.mesh
    )
    found = place.run(place.loader(), engine)
    model = api.Model(
        place.model_config, place.raw, place.tokenizer, place.contract, place.mesh, place.model
    )
    source, chats = RecordSource(place.records), []
    for index in range(NUM):
        chat = build_messages(source[index])
        media = chat[-1]["content"][0]
        media[media["type"]] = f"{source.data_root}/{media[media['type']]}"
        chats.append(chat)
    out = model.generate(chats, num_rollouts=1, max_new_tokens=LENGTH, temperature=0.0)
    assert [row["completion"] for row in named(found)] == [text for (text,) in out.texts]
    assert [row["completion_tokens"] for row in named(found)] == out.lengths[:, 0].tolist()
    assert len({text for (text,) in out.texts}) > NUM / 2


def test_two_processes_have_the_rows_of_one(place, rows):
    """Batches of eight, half of each to a process; the second half of the last is empty."""
    parts = [place.run(place.loader(process=p, processes=2, rows=2 * ROWS)) for p in range(2)]
    assert [len({row["index"] for row in part}) for part in parts] == [6, 4]
    assert named(parts[0] + parts[1]) == named(rows)


class Spy:
    """An engine that remembers what it was asked."""

    def __init__(self, engine):
        self.engine, self.asked = engine, []
        self.config, self.sampling = engine.config, engine.sampling

    def rollout(self, params, batch, uids, *, limits, **settings):
        self.asked.append((uids.tolist(), limits[:, 0].tolist()))
        return self.engine.rollout(params, batch, uids, limits=limits, **settings)


def test_keys_are_the_records_and_filling_ends_at_once(place):
    spy = Spy(place.engine)
    place.run(place.loader(), spy, done=range(4))
    assert spy.asked == [
        ([4, 5, 6, 7], [LENGTH] * ROWS),
        ([8, 9, 0, 0], [LENGTH, LENGTH, 1, 1]),
    ]


def test_processes_agree_on_what_is_left(place, rows, monkeypatch):
    """Records that only another process knows to be done, and batches that only another needs."""

    def gather(value):
        others = [] if value and isinstance(value[0], bool) else [0, 1, 2, 3, 4]
        return [value, others or [False, False, True]]

    monkeypatch.setattr(runner, "gather", gather)
    spy = Spy(place.engine)
    found = place.run(place.loader(), spy, done=[8, 9])
    assert found == [row for row in rows if row["index"] in (5, 6, 7)]
    assert [uids for uids, _ in spy.asked] == [[4, 5, 6, 7], [8, 9, 0, 0]]


def test_nothing_is_compiled_for_other_weights(place, rows):
    before = place.engine.num_compiles
    other = jax.tree.map(lambda leaf: leaf * 0.5, place.raw)
    found = evaluate_records(
        place.engine, place.engine.prepare(other), place.tokenizer, place.loader()
    )
    assert place.engine.num_compiles == before
    assert [row["index"] for row in found] == [row["index"] for row in rows]
    assert found != rows


def test_seeds_draw_anew(place, rows):
    assert place.run(place.loader(), seed=1, done=range(1, NUM)) != rows[:ROLLOUTS]
    assert place.run(place.loader(), done=range(1, NUM)) == rows[:ROLLOUTS]


def test_blank_changes_pixels_only(place, rows):
    with place.loader().steps() as items:
        item = next(items)
    batch = item.batch
    blank = blank_pixels(batch, WINDOWED_14)
    for field in batch._fields:
        if field != "patches":
            assert getattr(blank, field) is getattr(batch, field)
    assert not blank.patches[~batch.patch_valid].any()
    for row in range(ROWS):
        frames = rebuild_frames(blank, row, item.pairs[row])
        assert frames.shape == rebuild_frames(batch, row, item.pairs[row]).shape
        seen = (frames / 255 - np.array(WINDOWED_14.pixel_mean)) / np.array(WINDOWED_14.pixel_std)
        assert np.abs(seen).max() < 0.5 / 255 / min(
            WINDOWED_14.pixel_std
        )  # half a grey level around zero
        assert np.ptp(frames.reshape(-1, 3), axis=0).max() == 0
    found = place.run(place.loader(), blank=True)
    assert [row["index"] for row in found] == [row["index"] for row in rows]
    assert [row["completion"] for row in found] != [row["completion"] for row in rows]


class Teller:
    """A tokenizer that reads prepared texts out of any completions, in turn."""

    def __init__(self, texts):
        self.texts = iter(texts)

    def decode(self, ids, skip_special_tokens):
        return next(self.texts)


@pytest.mark.parametrize("mode", ["strict", "repo"])
def test_scores(place, mode):
    source = RecordSource(place.records)
    records = [source[i] for i in range(ROWS)]
    texts = []
    for record in records:
        texts.append(f"<think>It is.</think>\n<answer>{record.solution}</answer>")
        texts.append("<think><answer>B</answer></think> no idea")
    found = evaluate_records(
        place.engine, place.params, Teller(texts), place.loader(), mode=mode, done=range(ROWS, NUM)
    )
    scores = np.array([row["score"] for row in found]).reshape(ROWS, ROLLOUTS)
    groups = [texts[2 * i : 2 * i + 2] for i in range(ROWS)]
    expected = score(groups, records, mode, ("accuracy",))["accuracy"]
    np.testing.assert_array_equal(scores, expected)
    assert [row["answer"] for row in found[::2]] == [record.solution for record in records]
    assert {row["outcome"] for row in found[::2]} == {"scored"}
    if mode == "strict":  # a draft inside the reasoning is no answer
        assert {row["answer"] for row in found[1::2]} == {None}
        assert {row["outcome"] for row in found[1::2]} == {"unparseable"}
        np.testing.assert_array_equal(scores, [[1.0, 0.0]] * ROWS)


def test_bad_clip_is_counted_and_nothing_else_changes(place, rows):
    lines = [json.loads(line) for line in pathlib.Path(place.records).read_text().splitlines()]
    lines[5]["path"] = "none.mp4"
    path = place.folder / "data" / "one_bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = place.run(place.loader(path))
    bad = [row for row in found if row["index"] == 5]
    assert [(row["outcome"], row["reason"], row["score"]) for row in bad] == [
        ("quarantined", "missing", None)
    ]
    others = [row for row in rows if row["index"] != 5]
    assert named(row for row in found if row["index"] != 5) == named(others)
