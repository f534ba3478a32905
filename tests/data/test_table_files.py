"""Files and folders of rows that are no one set, or not what they seem, are told of in a line."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.records import RecordError

TURNS = [{"role": "user", "content": "<video>Q?"}, {"role": "assistant", "content": "A."}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"a,b\n1,2,3\n", "more cells than the header"),
        ("a.jsonl.gz", b"no gzip", "give a readable file"),
        ("a.json.zst", b"no zstd", "give a readable file"),
        ("a.parquet", b"no parquet", "a.parquet"),
        ("a.csv", b"\xff\xfe\x00", "give a readable file"),
        ("a.csv", b"a,b,a\n1,2,3\n", "several columns 'a'; name each once"),
        ("a.jsonl.gz", b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 40, "give a readable file"),
        (
            "a.csv",
            b"problem;solution\nQ?;A\n",
            "separated by ';'; separate them by commas in a .csv",
        ),
        ("a.csv", b"problem\tsolution\nQ?\tA\n", r"separated by '\\t'; separate them by commas"),
        ("a.tsv", b"problem,solution\nQ?,A\n", "separated by ','; .* by tabs in a .tsv"),
        (
            "a.mp4",
            b"\0\0\0 ftypisom\0\0\2\0",
            "is no text; give JSON, JSONL, CSV, or an Arrow file",
        ),
        ("a.arrow", b"no arrow", "a.arrow"),
        ("a.feather", b"ARROW1 no arrow", "a.feather"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        open_records(tmp_path / name)
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="without .arrow or .parquet"):
        open_records(tmp_path / "empty")
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(ValueError, match="holds the splits train"):
        open_records(tmp_path / "empty")


def test_a_folder_of_several_splits_is_not_one_set(tmp_path):
    """Folders of the hub hold all splits side by side; read together, a run would train on its
    own test set."""
    rows = pyarrow.Table.from_pylist([{"messages": TURNS, "videos": ["a"]}])
    for names, splits in (
        (("data/train-00000-of-00002", "data/train-00001-of-00002"), ""),
        (("data/train-00000-of-00001", "data/test-00000-of-00001"), "test, train"),
        (("train/0000", "validation/0000"), "train, validation"),
        (("videos_dev", "videos_evaluation"), "test, validation"),
        (("0000", "contest", "latest", "trains"), ""),
    ):
        folder = tmp_path / names[0].replace("/", "_")
        for name in names:
            path = folder / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(rows, path)
        if not splits:
            assert len(open_records(folder)) == len(names)
            continue
        with pytest.raises(ValueError, match=f"holds the splits {splits}; give one file, or a"):
            open_records(folder)
        assert len(open_records(path)) == 1
    for name in ("set-train.arrow", "set-test.arrow"):  # as the cache of `datasets` has them
        path = tmp_path / "cache" / name
        path.parent.mkdir(exist_ok=True)
        with pyarrow.ipc.new_stream(str(path), rows.schema) as writer:
            writer.write_table(rows)
        assert len(open_records(path)) == 1
    with pytest.raises(ValueError, match="holds the splits test, train"):
        open_records(tmp_path / "cache")


def test_rows_inside_an_object_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": [{"messages": TURNS}]}))
    with pytest.raises(RecordError, match="the rows are in its list 'data'; write that list alone"):
        open_records(path)[0]
    path.write_text(json.dumps({"dialog": [{"speaker": "a"}]}))
    with pytest.raises(RecordError, match="no known format has them"):
        open_records(path)[0]
