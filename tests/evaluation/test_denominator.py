"""No row is lost: what cannot be shown keeps its name and its reason, and is tried again."""

import json
import pathlib
import shutil

import pytest
from evaluation_place import NUM, ROLLOUTS
from evaluation_place import read_completions as read

from videorft_jax.data.loader import measure

LINE = '{"problem_id": 99}\n'  # no record


@pytest.fixture
def damaged(place, tmp_path):
    """The records in a folder of their own: the clip of record 2 is absent, that of 5 damaged."""
    data = tmp_path / "data"
    shutil.copytree(pathlib.Path(place.records).parent, data)
    records = data / pathlib.Path(place.records).name
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    clips = [data / rows[index]["path"] for index in (2, 5)]
    whole = [clip.read_bytes() for clip in clips]
    clips[0].unlink()
    clips[1].write_bytes(whole[1][: len(whole[1]) // 3])
    return records, rows, clips, whole


def test_bad_media_are_named_and_tried_again(damaged, whole, call, tmp_path):
    records, rows, clips, content = damaged
    folder = tmp_path / "run"
    results = call(folder, data__records=str(records))
    found = [json.loads(line) for line in read(folder).splitlines()]
    bad = {row["index"]: row for row in found if row["outcome"] == "quarantined"}
    assert bad.keys() == {2, 5}
    assert bad[2]["reason"] == "missing"
    for index, row in bad.items():
        for name in ("problem_id", "problem", "problem_type"):
            assert row[name] == rows[index][name]
        assert row["path"].endswith(clips[(2, 5).index(index)].name)
    assert (results["num_records"], results["num_scored"]) == (NUM, NUM - 2)
    kinds = [row["problem_type"] for row in rows]
    for kind, own in results["by_type"].items():
        assert own["num_records"] == kinds.count(kind)
    assert results["all_rows"] == pytest.approx(results["accuracy"] * (NUM - 2) / NUM)
    again = call(folder, data__records=str(records))
    assert again == results
    assert [json.loads(line) for line in read(folder).splitlines()] == found
    for clip, data in zip(clips, content, strict=True):
        clip.write_bytes(data)
    call(folder, data__records=str(records))
    assert read(folder) == read(whole)  # the bytes of a run that never met a bad clip
    told = json.loads((folder / "results.json").read_text())
    assert told["performance"]["records"] == 2


def test_an_evaluation_without_any_media_ends_with_all_rows_counted(place, call, tmp_path):
    lines = [json.loads(line) for line in pathlib.Path(place.records).read_text().splitlines()]
    text = "".join(json.dumps(line | {"path": "none.mp4"}) + "\n" for line in lines)
    records = tmp_path / "records.jsonl"
    records.write_text(text + LINE)
    results = call(tmp_path / "run", data__records=str(records))
    assert (results["num_records"], results["num_scored"]) == (NUM + 1, 0)
    assert results["reasons"] == {"missing": NUM, "schema": 1}
    assert results["all_rows"] == 0.0
    assert results["accuracy"] is None


def test_sizes_are_measured_once_a_machine(place, call, tmp_path, monkeypatch):
    """Another work directory looks at no clip again."""
    looked, probe = [], measure.probe_media

    def look(media, *arguments, **settings):
        looked.append(media)
        return probe(media, *arguments, **settings)

    monkeypatch.setattr(measure, "probe_media", look)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = call(tmp_path / "first")
    assert len(looked) == NUM
    assert call(tmp_path / "second") == first
    assert len(looked) == NUM


def test_long_prompts_are_counted(place, call, tmp_path):
    lines = pathlib.Path(place.records).read_text().splitlines()
    row = json.loads(lines[3])
    lines[3] = json.dumps(row | {"problem": row["problem"] + " and so on" * 2000})
    records = pathlib.Path(place.records).with_name("long.jsonl")
    records.write_text("".join(line + "\n" for line in lines))
    results = call(tmp_path / "run", data__records=str(records))
    assert results["reasons"] == {"too_many_tokens": 1}
    found = [json.loads(line) for line in read(tmp_path / "run").splitlines()]
    assert len(found) == (NUM - 1) * ROLLOUTS + 1
    assert [row["problem_id"] for row in found if row["reason"]] == [row["problem_id"]]


def test_long_prompts_are_shown_with_fewer_frames(place, call, tmp_path):
    """A pair of frames of 56 x 56 pixels has 4 tokens, and each clip two pairs. A row that lacks a
    token shows the clips with one pair; a row that lacks 5 leaves them out."""
    lines = [json.loads(line) for line in pathlib.Path(place.records).read_text().splitlines()]
    asked = {name: lines[0][name] for name in ("problem", "options", "problem_type", "solution")}
    records = pathlib.Path(place.records).with_name("alike.jsonl")
    records.write_text("".join(json.dumps(line | asked) + "\n" for line in lines))
    with place.loader(records).steps() as steps:
        length = int((next(iter(steps)).batch.segment_ids > 0).sum(axis=1).max())

    def run(row_tokens):
        folder = tmp_path / str(row_tokens)
        settings = {"data__row_tokens": row_tokens, "data__multiple": 1}
        return call(folder, data__records=str(records), **settings), folder

    whole, _ = run(length)
    assert (whole["shortened"], whole["num_scored"]) == (0, NUM)
    results, folder = run(length - 1)
    assert (results["shortened"], results["num_scored"]) == (NUM, NUM)
    rows = [json.loads(line) for line in read(folder).splitlines()]
    assert {tuple(row["shortened"]) for row in rows} == {(2,)}
    results, _ = run(length - 5)
    assert (results["reasons"], results["shortened"]) == ({"too_many_tokens": NUM}, 0)
