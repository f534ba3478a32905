"""`videorft evaluate` on a tiny model: its files, interruptions, checkpoints and refusals."""

import json
import shutil
import socket

import hub_cache
import jax
import numpy as np
import pytest
from evaluation_place import NUM, ROLLOUTS, ROWS
from evaluation_place import read_completions as read
from tiny_run import finish, start, write_config

from videorft_jax import cli
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.commands import flags
from videorft_jax.data.media import contract_file
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.evaluation.runner import evaluate_records
from videorft_jax.models.lora import LoraConfig, init_lora, merge_lora
from videorft_jax.models.peft_folder import save_adapter
from videorft_jax.training import restore
from videorft_jax.training.state import expected_meta
from videorft_jax.training.step import TrainState
from videorft_jax.training.weights import Weights

FIRST = 6  # records that hold a long one, so that shapes are those of all


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
        assert call(folder) == expected["results"], name
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
    state = TrainState(jax.numpy.int32(7), *parts, (), None, jax.numpy.int32(0), jax.numpy.int32(0))
    config = place.config()
    meta = expected_meta(weights, place.contract) | {"config": json.loads(config.to_json())}
    with Checkpointer(place.folder / "trained") as checkpointer:
        checkpointer.save(7, state, meta)
    return place.folder / "trained", params


def test_checkpoint(place, trained, call, tmp_path):
    workdir, params = trained
    saved = restore.find_checkpoint(str(workdir / "checkpoints" / "00000007"))
    found = restore.read_params(saved, place.model_config, place.mesh)
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


def test_a_name_of_the_hub_is_evaluated(place, whole, call, tmp_path, monkeypatch):
    snapshot = hub_cache.put(tmp_path / "hub", "org/tiny", place.model, monkeypatch)
    call(tmp_path / "out", model__init_from="org/tiny")
    assert read(tmp_path / "out") == read(whole)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["settings"]["weights"]["init_from"] == str(snapshot)
    with pytest.raises(ValueError, match=r"fetch it by: hf download org/other$"):
        call(tmp_path / "other", model__init_from="org/other")


def test_an_export_is_asked_under_its_own_contract(place, call, tmp_path):
    exported = tmp_path / "hf"
    shutil.copytree(place.model, exported)
    contract_file.write_contract(exported, MediaContract.evaluate())
    with pytest.raises(ValueError, match="hf: was trained under another media contract"):
        call(tmp_path / "out", model__init_from=str(exported), evaluate__limit=1)


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


def test_command_on_two_processes(place, whole):
    """Killed, then gone on with by two processes: the same bytes, one result."""
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
    assert read(folder) == read(whole)
    assert not list(folder.glob("completions-*"))
    results, before = (
        json.loads((where / "results.json").read_text()) for where in (folder, whole)
    )
    assert results["results"] == before["results"]
    assert results["performance"]["records"] == NUM - 2


def test_help(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "videorft evaluate --config=configs/evaluate_7b.py" in out
    assert all(f"--{name} " in out for name, _, _ in flags.FLAGS)


def test_an_adapter_is_merged_before_the_first_record(place, trained, call, tmp_path):
    """The rows are those of the merged weights; a checkpoint, which holds its own, is refused."""
    config = LoraConfig(2, 3.0, (r"text/layers/attn/(q|o)$",))
    shapes = jax.eval_shape(lambda: init_lora(place.raw, config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    save_adapter(tmp_path / "adapter", lora, config, place.model_config)
    settings = {"model__adapter": str(tmp_path / "adapter"), "evaluate__limit": FIRST}
    call(tmp_path / "out", **settings)
    params = place.engine.prepare(merge_lora(place.raw, lora, config))
    expected = evaluate_records(
        place.engine, params, place.tokenizer, place.loader(), done=range(FIRST, NUM)
    )
    lines = read(tmp_path / "out").splitlines()
    assert [json.loads(line) for line in lines] == expected
    told = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["weights"]
    assert told["adapter"] == str(tmp_path / "adapter")
    with pytest.raises(ValueError, match="00000007 holds its own weights; leave one of the two"):
        call(tmp_path / "two", **settings, evaluate__checkpoint=str(trained[0]))
    contract_file.write_contract(tmp_path / "adapter", MediaContract.evaluate())
    with pytest.raises(ValueError, match="adapter: was trained under another media contract"):
        call(tmp_path / "media", **settings)
