"""TFDS data sets hold the same records and bytes, and TensorFlow is never imported."""

import datetime
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_pipeline import assert_equal, make_loader

from videorft_jax.data.media.contract import MediaError
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import RecordSource, TableSource
from videorft_jax.data.records.tfds import TfdsSource, build
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    files = write_dataset(folder, 16, 0, 0)
    rows = [RecordSource(files["sft"]).row(i) for i in range(16)]
    rows[3] |= {"problem_id": "name", "start": 0.25, "end": 1.75, "note": [1, {"a": None}]}
    rows[5] |= {"problem": "Ünï🎈 <|video_pad|>"}
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordSource(path)


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    where = tmp_path_factory.mktemp("tfds")
    left = where / "videorft_cot" / "incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)  # what a killed build leaves behind
    folders = {
        True: build("videorft_cot", source, where, embed=True),
        False: build("videorft_rl", source, where, embed=False),
    }
    assert not left.exists()
    return folders


@pytest.mark.parametrize("embed", [True, False])
def test_records_and_bytes_come_back(embed, source, folders):
    data = TfdsSource(folders[embed], data_root=source.data_root)
    assert len(data) == 16
    for i in range(16):
        assert data[i] == source[i]
        assert type(data[i].problem_id) is type(source[i].problem_id)
        with open(os.path.join(source.data_root, source[i].path), "rb") as file:
            assert data.media(i) == (file.read() if embed else None)
    assert (data.fingerprint is not None) == embed
    again = pickle.loads(pickle.dumps(data))
    assert again[3] == source[3]
    part = TfdsSource(folders[embed], "train[4:8]", source.data_root)
    assert [part[i] for i in range(len(part))] == [source[i] for i in range(4, 8)]
    assert (part.fingerprint != data.fingerprint) == embed


@pytest.mark.parametrize("embed", [True, False])
def test_the_loader_reads_them_alike(embed, source, folders, tmp_path):
    tokenizer = train_tiny_tokenizer([source[i].process for i in range(16)], 400)
    data = TfdsSource(folders[embed], data_root=None if embed else source.data_root)
    ours = make_loader(data, tokenizer, {"epochs": 1}, sizes_dir=tmp_path)
    theirs = make_loader(source, tokenizer, {"epochs": 1})
    assert ours.digest == theirs.digest
    with ours.steps() as one, theirs.steps() as other:
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    remembered = make_loader(data, tokenizer, {"epochs": 1}, sizes_dir=tmp_path)
    assert remembered.digest == ours.digest


def test_workers_read_embedded_media(source, folders):
    tokenizer = train_tiny_tokenizer([source[i].process for i in range(16)], 400)
    data = TfdsSource(folders[True])
    with make_loader(data, tokenizer, {"epochs": 1, "workers": 1}).steps() as steps:
        seen = [i for step in steps for row in step.indices for i in row]
    assert sorted(seen) == list(range(16))


BLOCKED = """
import builtins, importlib.util, sys

load, find = builtins.__import__, importlib.util.find_spec

def blocked(name, *rest, **named):
    if name.split(".")[0] == "tensorflow":
        raise ModuleNotFoundError(name)
    return load(name, *rest, **named)

builtins.__import__ = blocked
importlib.util.find_spec = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
try:
    import tensorflow
except ModuleNotFoundError:
    pass
from videorft_jax.data.records.source import RecordSource
from videorft_jax.data.records.tfds import TfdsSource, build

source = RecordSource(sys.argv[1])
data = TfdsSource(build("videorft_rl", source, sys.argv[2], embed=True))
assert [data[i] for i in range(len(data))] == [source[i] for i in range(len(source))]
assert data.media(0)
assert "tensorflow" not in sys.modules
print("built and read", len(data))
"""


def test_tensorflow_is_not_needed(source, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, source.path, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(__file__)))},
    )
    assert done.stdout.endswith("built and read 16\n"), done.stderr[-2000:]
    assert "tensorflow" not in sys.modules


def test_damage_is_an_error_that_names_the_row(source, folders, tmp_path):
    folder = build("videorft_cot", source, tmp_path, embed=True)
    shard = next(n for n in os.listdir(folder) if ".array_record" in n)
    with open(os.path.join(folder, shard), "r+b") as file:
        content = bytearray(file.read())
        middle = len(content) // 2
        content[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
        file.seek(0)
        file.write(content)

    def read():
        data = TfdsSource(folder)
        return [data[i] for i in range(16)]

    with pytest.raises(ValueError, match=r"videorft_cot train row \d+: damaged"):
        read()
    os.truncate(os.path.join(folder, shard), middle)
    with pytest.raises(ValueError, match=r"videorft_cot train row \d+: damaged"):
        read()


def test_what_cannot_be_built_or_read(source, folders, tmp_path):
    with pytest.raises(ValueError, match="choose one of videorft_cot, videorft_rl"):
        build("videorft", source, tmp_path, embed=True)
    with pytest.raises(ValueError, match="exists; remove it"):
        build("videorft_rl", source, os.path.dirname(os.path.dirname(folders[False])), embed=False)
    with pytest.raises(ValueError, match="no TFDS folder"):
        TfdsSource(tmp_path)
    with pytest.raises(ValueError, match="split 'test'"):
        TfdsSource(folders[True], "test")
    sized = source.row(0) | {"resized_height": 56, "resized_width": 56}
    (tmp_path / "sized.jsonl").write_text(json.dumps(sized) + "\n")
    sized = RecordSource(tmp_path / "sized.jsonl", source.data_root)
    with pytest.raises(ValueError, match=r"row 0: shows .* or a size of its own; build without"):
        build("videorft_rl", sized, tmp_path, embed=True)
    columns = {name: [value] for name, value in source.row(0).items() if value != []}
    when = pyarrow.table(columns | {"when": [datetime.date(2024, 1, 1)]})
    parquet.write_table(when, tmp_path / "when.parquet")
    dated = TableSource(tmp_path / "when.parquet", source.data_root)
    with pytest.raises(ValueError, match=r"when.parquet row 0: .* write the fields when as texts"):
        build("videorft_rl", dated, tmp_path, embed=False)
    for change, error in (({"path": "gone.mp4"}, MediaError), ({"problem": ""}, RecordError)):
        path = tmp_path / "bad.jsonl"
        path.write_text(json.dumps(source.row(0) | change) + "\n")
        with pytest.raises(error):
            build("videorft_rl", RecordSource(path, source.data_root), tmp_path, embed=False)
