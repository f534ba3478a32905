"""Fields and rows that conversion and tables once lost without a word."""

import datetime
import gzip
import json

import pytest
from test_formats import write_csv, write_jsonl, write_parquet

from videorft_jax.commands import convert
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.records import RecordError

NEW_YEAR = datetime.datetime(2024, 1, 1)
OWN = {
    "problem": "q", "data_type": "video", "problem_type": "free-form", "solution": "a",
    "path": "a.mp4",
}  # fmt: skip


def test_what_a_turn_says_besides_its_text_is_not_lost(tmp_path):
    """A field that nothing reads is reported by validate, so that no weight is silently ignored."""
    answer = {"role": "assistant", "content": "a", "weight": 0, "name": None}
    row = {"messages": [{"role": "user", "content": "<video>?"}, answer], "videos": ["a.mp4"]}
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert dict(open_records(tmp_path / "a.jsonl")[0].extra) == {"turn.weight": 0}


def test_parts_of_tables_tell_their_type_by_what_they_hold(tmp_path):
    parts = [{"text": None, "image": None, "video": "a.mp4"},
             {"text": "q", "image": None, "video": None}]  # fmt: skip
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    write_jsonl(tmp_path / "a.jsonl", [row])
    record = open_records(tmp_path / "a.jsonl")[0]
    assert (record.problem, record.path, dict(record.extra)) == ("q", "a.mp4", {})


def test_a_key_that_is_there_twice_is_refused_in_compressed_files_too(tmp_path):
    line = json.dumps(OWN | {"problem_id": 1})
    twice = line.replace('"solution": "a"', '"solution": "a", "solution": "b"')
    for name, text in (("a.jsonl.gz", f"{line}\n{twice}\n"), ("a.json.gz", f"[{line}, {twice}]")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        source = open_records(tmp_path / name)
        assert source[0].solution == "a"
        with pytest.raises(RecordError, match="row 1: row: bad value: solution; name each field"):
            source[1]


def test_a_table_asks_for_a_size(tmp_path):
    write_csv(tmp_path / "a.csv", [OWN | {"problem_id": 1, "resized_height": 56,
                                          "resized_width": 84}])  # fmt: skip
    assert open_records(tmp_path / "a.csv")[0].media[0].resized == (56, 84)


def test_convert_names_the_rows_that_json_cannot_hold(tmp_path, capsys):
    rows = [OWN | {"problem_id": i, "when": when} for i, when in enumerate([None, NEW_YEAR])]
    write_parquet(tmp_path / "a.parquet", rows)
    write_jsonl(tmp_path / "b.jsonl", [OWN | {"problem_id": 0},
                OWN | {"problem_id": 1, "more": {"x": float("nan")}}])  # fmt: skip
    write_jsonl(tmp_path / "c.jsonl", [OWN | {"problem_id": 0},
                OWN | {"problem_id": 1, "more": ["half a pair \ud800"]}])  # fmt: skip
    for name, said in (("a.parquet", "when: bad type: datetime"), ("b.jsonl", "more: bad type: {"),
                       ("c.jsonl", "more: bad encoding: [")):  # fmt: skip
        out = tmp_path / "out.jsonl"
        assert convert.main(["--data", str(tmp_path / name), "--out", str(out)]) == 1
        shown = capsys.readouterr()
        assert f"{name} row 1: {said}" in shown.err
        assert "1 of 2 rows written" in shown.out
        assert [record.problem_id for record in open_records(out)] == [0]


def test_convert_leaves_its_input_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [OWN | {"problem_id": 1}, {"bad": 1}])
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    for out in (path, tmp_path / "link.jsonl"):
        with pytest.raises(ValueError, match="is the file of --data; name another"):
            convert.main(["--data", str(path), "--out", str(out)])
    assert path.read_bytes() == before


def test_convert_says_where_the_media_stay(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", [OWN | {"problem_id": 1}])
    (tmp_path / "other").mkdir()
    for folder, flags in ((tmp_path, ""), (tmp_path / "other", f" --data_root={tmp_path}")):
        out = folder / "out.jsonl"
        assert convert.main(["--data", str(tmp_path / "a.jsonl"), "--out", str(out)]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.endswith(f"next: videorft validate --data={out}{flags}")
