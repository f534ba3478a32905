"""Evaluation end to end on a tiny model: every record once, whatever the batches, the processes and
the interruptions. Programs are compiled once and shared by the tests."""

import json
import pathlib
import shutil
import socket

import jax
import numpy as np
import pytest
from tiny_run import finish, load_recipe, make_data, make_model, sft_options, start, write_config

from videorft_jax import api, cli
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.data.batch.frames import rebuild_frames
from videorft_jax.data.loader.pipeline import Loader, LoaderConfig
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import RecordSource
from videorft_jax.evaluation import evaluate
from videorft_jax.evaluation import runner as running
from videorft_jax.evaluation.runner import blank_pixels, evaluate_records
from videorft_jax.models.qwen2_5_vl.vision import PIXEL_MEAN, PIXEL_STD
from videorft_jax.parallel import sharding
from videorft_jax.rewards.combine import score
from videorft_jax.training import options
from videorft_jax.training import restore as restoring
from videorft_jax.training import setup as assembly
from videorft_jax.training import step as training
from videorft_jax.training.weights import Weights

NUM, ROWS, ROLLOUTS, LENGTH = 10, 4, 2, 6
FIRST = 6  # records that hold a long one, so that shapes are those of all


class Place:
    """A model, ten records, and an engine that draws two completions of each."""

    def __init__(self, folder):
        self.folder = folder
        files = make_data(folder / "data", num_sft=16, num_rl=0, num_eval=NUM)
        self.records, self.model = files["eval"], folder / "model"
        make_model(self.model, files["sft"])
        self.options = sft_options(
            self.model,
            self.records,
            data__rows=ROWS,
            mesh__data=1,
            rollout__num_buckets=1,
            evaluate__num_rollouts=ROLLOUTS,
            evaluate__max_new_tokens=LENGTH,
            evaluate__temperature=1.0,
            log__interval_s=0.0,
        )
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        config = self.config()
        self.model_config, self.tokenizer = assembly.load_model_files(config)
        self.contract = assembly.make_contract(config)
        self.engine = evaluate.make_engine(config, self.model_config, self.tokenizer, self.mesh)
        weights = Weights(self.model_config, (), None)
        self.raw = assembly.read_params(config, weights, self.mesh)
        self.params = self.engine.prepare(self.raw)

    def config(self, **changes):
        config = load_recipe("evaluate_7b")
        changes = {path.replace("__", "."): value for path, value in changes.items()}
        for path, value in (self.options | changes).items():
            *sections, field = path.split(".")
            section = config
            for name in sections:
                section = section[name]
            section[field] = value
        return config

    def loader(self, records=None, process=0, processes=1, rows=ROWS):
        data = self.config().data
        settings = {"threads": 2, "isolate": False, "timeout_s": 60.0, "workers": 0, "seed": 0}
        shape = {"row_tokens": data.row_tokens, "max_buckets": 1, "multiple": data.multiple}
        return Loader(
            RecordSource(records or self.records),
            self.tokenizer,
            self.contract,
            LoaderConfig(
                "evaluate", rows=rows, epochs=1, max_bad_fraction=0.5, **settings, **shape
            ),
            process_index=process,
            process_count=processes,
        )

    def run(self, loader, engine=None, **settings):
        engine = engine or self.engine
        return evaluate_records(engine, self.params, self.tokenizer, loader, **settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def rows(place):
    return place.run(place.loader())


@pytest.fixture
def call(place, monkeypatch):
    """`evaluate` on one device with the engine that is compiled already, if it may be."""
    monkeypatch.setattr(assembly, "make_mesh", lambda _: place.mesh)
    monkeypatch.setattr(evaluate, "make_engine", lambda *_: place.engine)

    def call(workdir, **changes):
        return evaluate.evaluate(place.config(**changes), str(workdir))

    return call


def named(rows):
    return sorted(rows, key=lambda row: (row["index"], row["rollout"]))


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

    monkeypatch.setattr(running, "gather", gather)
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
        batch = next(items).batch
    blank = blank_pixels(batch)
    for field in batch._fields:
        if field != "patches":
            assert getattr(blank, field) is getattr(batch, field)
    assert not blank.patches[~batch.patch_valid].any()
    for row in range(ROWS):
        frames = rebuild_frames(blank, row)
        assert frames.shape == rebuild_frames(batch, row).shape
        seen = (frames / 255 - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
        assert np.abs(seen).max() < 0.5 / 255 / min(PIXEL_STD)  # half a grey level around zero
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


def read(folder):
    return (folder / "completions.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The folder of an evaluation that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "make_mesh", lambda _: place.mesh)
        patch.setattr(evaluate, "make_engine", lambda *_: place.engine)
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert evaluate.evaluate(place.config(), str(folder)) == 0
    return folder


def test_files(place, rows, whole):
    assert [json.loads(line) for line in read(whole).splitlines()] == rows
    found = json.loads((whole / "results.json").read_text())
    results, scores = found["results"], np.reshape([r["score"] for r in rows], (NUM, ROLLOUTS))
    assert results["accuracy"] == scores.mean()
    assert (results["num_records"], results["num_completions"]) == (NUM, NUM * ROLLOUTS)
    assert results["truncated"] == sum(not row["stopped"] for row in rows)
    assert results["mean_length"] == np.mean([row["completion_tokens"] for row in rows])
    kinds = {row["problem_type"] for row in rows}
    assert results["by_type"].keys() == kinds
    assert found["settings"]["media"]["digest"] == place.contract.digest
    assert found["performance"]["tokens"] == sum(row["completion_tokens"] for row in rows)
    assert found["performance"]["tokens_per_s"] > 0


def test_interrupted_anywhere_gives_the_same_file(place, whole, call, tmp_path, capsys):
    """A kill leaves the beginning of the file, cut at any byte; lines are written in one order."""
    data, expected = read(whole), json.loads((whole / "results.json").read_text())
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    cuts = {
        "nothing": 0,
        "torn": ends[2] + 30,
        "half a record": ends[4],  # one of its two completions
        "in the last batch": ends[-2],
        "torn newline": len(data) - 1,
        "all": len(data),
    }
    for name, cut in cuts.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        (folder / "completions.jsonl").write_bytes(data[:cut])
        assert call(folder) == 0
        assert read(folder) == data, name
        found = json.loads((folder / "results.json").read_text())
        assert found["results"] == expected["results"], name
        kept = sum(end <= cut for end in ends) // ROLLOUTS
        assert found["performance"]["records"] == (NUM - kept or NUM), name
    console = capsys.readouterr()
    assert "all                   10" in console.out
    assert "10/10 records" in console.err


def test_goes_on_only_with_its_settings(place, whole, call):
    before = read(whole)
    for changes, message in (
        ({"seed": 1}, "score.seed is 0 there and 1 in this run"),
        ({"evaluate__blank": True}, "evaluate.blank is False there and True in this run"),
        ({"media__max_frames": 6}, "media.digest is"),
        ({"evaluate__limit": 4}, "evaluate.limit is 0 there and 4"),
    ):
        with pytest.raises(ValueError, match=message):
            call(whole, **changes)
    assert read(whole) == before
    call(whole, data__rows=2 * ROWS)  # batches decide about nothing, and all records are there
    assert read(whole) == before


def test_limit(place, rows, call, tmp_path):
    call(tmp_path / "first", evaluate__limit=FIRST)
    found = [json.loads(line) for line in read(tmp_path / "first").splitlines()]
    assert found == rows[: FIRST * ROLLOUTS]


@pytest.fixture(scope="module")
def trained(place):
    """A work directory with one checkpoint of doubled weights and a media contract."""
    params = jax.tree.map(lambda leaf: leaf * 0.5, place.raw)
    weights = Weights(place.model_config, ("vision",), None)
    parts = weights.split(params, None)
    state = training.TrainState(
        jax.numpy.int32(7), *parts, (), None, jax.numpy.int32(0), jax.numpy.int32(0)
    )
    config = place.config()
    meta = assembly.expected_meta(weights, place.contract) | {
        "config": json.loads(config.to_json())
    }
    with Checkpointer(place.folder / "trained") as checkpointer:
        checkpointer.save(7, state, meta)
    return place.folder / "trained", params


def test_checkpoint(place, trained, call, tmp_path):
    workdir, params = trained
    saved = restoring.find_checkpoint(str(workdir / "checkpoints" / "00000007"))
    found = restoring.read_params(saved, place.model_config, place.mesh)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    settings = {"evaluate__checkpoint": str(workdir), "model__init_from": ""}
    settings |= {"evaluate__limit": FIRST}
    call(tmp_path / "out", **settings)
    expected = evaluate_records(
        place.engine,
        place.engine.prepare(params),
        place.tokenizer,
        place.loader(),
        done=range(FIRST, NUM),
    )
    lines = read(tmp_path / "out").splitlines()
    assert [json.loads(line) for line in lines] == expected
    told = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["weights"]
    assert told["init_from"] == str(place.model)
    assert told["checkpoint"] == f"{workdir}/checkpoints/00000007"
    with pytest.raises(ValueError, match=r"another media contract \(max_frames: 4 != 6\)"):
        call(tmp_path / "other", **settings, media__max_frames=6)
    asked = settings | {"media__fps": 1.0, "evaluate__other_media": True}
    call(tmp_path / "other", **asked)
    assert (tmp_path / "other" / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__ema": True}, "evaluate.ema is of a checkpoint"),
        ({"evaluate__checkpoint": "/none"}, "/none: no checkpoint there; give the work directory"),
        ({"evaluate__limit": -1}, "evaluate.limit is -1; give at least 0"),
        ({"reward__mode": "kind"}, "mode is 'kind'"),
        ({"data__epochs": 2}, "epochs 2; give at least 1, 1 to evaluate"),
        ({"data__records": "/none.jsonl"}, "/none.jsonl: No such file"),
        ({"media__preset": "test"}, "media.preset is 'test'"),
    ],
)
def test_refuses(call, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "refused", **changes)
    assert not list(tmp_path.glob("refused/completions*"))[1:]


def test_refuses_other_folders(place, call, tmp_path):
    (tmp_path / "completions.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="of another command; choose another workdir"):
        call(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="is not of an evaluation"):
        call(tmp_path)
    assert (tmp_path / "completions.jsonl").read_text() == '{"step": 1}\n'


def test_command_on_two_processes(place, rows, whole):
    """Killed, then gone on with by two processes: the same completions, one result."""
    path, folder = place.folder / "tiny.py", place.folder / "two"
    write_config(path, "evaluate_7b", place.options | {"mesh.data": 2})
    shutil.copytree(whole, folder)
    kept = b"".join(read(whole).splitlines(keepends=True)[:5])  # two records and a half
    (folder / "completions.jsonl").write_bytes(kept + b'{"index": 2, "roll')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [f"--config={path}", f"--workdir={folder}", "--num_processes=2"]
    common += [f"--coordinator=127.0.0.1:{port}"]
    processes = [
        start(
            place.folder / "compiled", "evaluate", *common, f"--process_id={number}",
        )
        for number in range(2)
    ]  # fmt: skip
    said = [finish(process) for process in processes]
    assert [code for code, _ in said] == [0, 0], said
    assert "all                   10" in said[0][1]
    assert "all                   10" not in said[1][1]
    found = []
    for name in ("completions.jsonl", "completions-1.jsonl"):
        found += [json.loads(line) for line in (folder / name).read_text().splitlines()]
    assert named(found) == named(rows)
    results, before = (
        json.loads((where / "results.json").read_text()) for where in (folder, whole)
    )
    assert results["results"] == before["results"]
    assert results["performance"]["records"] == NUM - 2


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "videorft evaluate --config=configs/evaluate_7b.py" in out
    assert all(f"--{name} " in out for name, _, _ in options.FLAGS)
