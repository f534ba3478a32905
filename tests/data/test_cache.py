"""Cached frames are the decoded frames, and never those of another file or contract."""

import dataclasses
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from test_pipeline import CONTRACT, assert_equal, make_loader

from videorft_jax.commands.cache import main
from videorft_jax.data.loader import cache_writer
from videorft_jax.data.loader.cache import FrameCache, pack_clip, unpack_clip
from videorft_jax.data.loader.cache_writer import write_cache
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Sixteen good records, one whose file is gone, and one that repeats the first one's clip."""
    folder = tmp_path_factory.mktemp("data")
    files = write_dataset(folder, 16, 0, 0)
    source = RecordSource(files["sft"])
    with open(files["sft"], "a") as file:
        file.write(json.dumps(source.row(0) | {"problem_id": 98, "path": "gone.mp4"}) + "\n")
        shutil.copy(folder / source[0].path, folder / "copy.mp4")
        file.write(json.dumps(source.row(0) | {"problem_id": 99, "path": "copy.mp4"}) + "\n")
    return RecordSource(files["sft"])


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "frames"
    added, failures = write_cache(source, CONTRACT, folder, threads=2)
    assert added == 16  # the copy holds the same bytes
    assert [(f.index, f.reason) for f in failures] == [(16, "missing")]
    return folder


def assert_same_clip(ours, theirs):
    assert (ours.fps, ours.source_size) == (theirs.fps, theirs.source_size)
    for name in ("frames", "timestamps", "indices"):
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def decoded(source, index):
    record = source[index]
    return load_media(record.path, source.data_root, CONTRACT, kind=record.data_type)


def test_cached_frames_equal_decoded_ones(source, folder):
    cache = pickle.loads(pickle.dumps(FrameCache(folder, CONTRACT)))
    assert len(cache) == 16
    for index in (*range(16), 17):
        clip = cache.get(source[index].path, source[index].media[0], source.data_root)
        assert_same_clip(clip, decoded(source, index))
        with open(os.path.join(source.data_root, source[index].path), "rb") as file:
            assert_same_clip(cache.get(file.read(), source[index].media[0], source.data_root), clip)
    assert cache.get("gone.mp4", source[16].media[0], source.data_root) is None
    later = dataclasses.replace(source[0], start=0.5)
    assert cache.get(later.path, later.media[0], source.data_root) is None  # other frames


def test_the_loader_reads_through_it(source, folder, tmp_path):
    tokenizer = train_tiny_tokenizer([source[i].process for i in range(16)], 400)
    plain = make_loader(source, tokenizer, {"epochs": 1})
    cache = FrameCache(folder, CONTRACT)
    served = []
    cache.get = lambda *args: served.append(FrameCache.get(cache, *args)) or served[-1]
    cached = make_loader(source, tokenizer, {"epochs": 1}, cache=cache)
    assert cached.digest == plain.digest
    with plain.steps() as one, cached.steps() as other:
        for ours, theirs in zip(other, one, strict=True):
            assert_equal(ours, theirs)
    assert len(served) == 17
    assert None not in served


def test_a_moved_or_changed_file_is_known_by_its_bytes(source, folder, tmp_path):
    cache = FrameCache(folder, CONTRACT)
    shutil.copy(os.path.join(source.data_root, source[1].path), tmp_path / "moved.mp4")
    assert_same_clip(cache.get("moved.mp4", source[1].media[0], tmp_path), decoded(source, 1))
    path = tmp_path / "moved.mp4"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # same size, other bytes
    os.utime(path, ns=(1, 1))
    assert cache.get("moved.mp4", source[1].media[0], tmp_path) is None


def test_another_contract_is_refused_by_field(folder):
    other = dataclasses.replace(CONTRACT, max_frames=8, mrope_rule="hf5")
    with pytest.raises(ValueError, match=r"max_frames: 6 != 8, mrope_rule: qwen != hf5"):
        FrameCache(folder, other)
    with pytest.raises(ValueError, match="another media contract"):
        FrameCache(folder, CONTRACT).check_contract(MediaContract.train())


def test_writing_again_adds_nothing_and_a_torn_shard_is_redone(source, folder, tmp_path):
    assert write_cache(source, CONTRACT, folder, threads=2)[0] == 0
    copy = tmp_path / "torn"
    shutil.copytree(folder, copy)
    (copy / "clips-00000.json").unlink()  # killed before the shard was finished
    assert len(FrameCache(copy, CONTRACT)) == 0
    assert write_cache(source, CONTRACT, copy, threads=2)[0] == 16
    assert_same_clip(
        FrameCache(copy, CONTRACT).get(source[3].path, source[3].media[0], source.data_root),
        decoded(source, 3),
    )


def test_shards_are_addressed_as_one(source, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_writer, "SHARD_RECORDS", 5)
    write_cache(source, CONTRACT, tmp_path / "c", threads=2)
    assert len([n for n in os.listdir(tmp_path / "c") if n.endswith(".array_record")]) == 4
    cache = FrameCache(tmp_path / "c", CONTRACT)
    for index in (0, 4, 5, 11, 15):
        clip = cache.get(source[index].path, source[index].media[0], source.data_root)
        assert_same_clip(clip, decoded(source, index))


def test_damage_is_an_error_that_names_the_cache(source, folder, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    shard = copy / "clips-00000.array_record"
    content = bytearray(shard.read_bytes())
    for at in range(len(content) // 3, len(content) // 3 + 3000):
        content[at] ^= 255
    shard.write_bytes(content)

    def read():
        cache = FrameCache(copy, CONTRACT)
        return [cache.get(source[i].path, source[i].media[0], source.data_root) for i in range(16)]

    with pytest.raises(ValueError, match=f"{copy}: .*delete the folder and run"):
        read()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{copy}: .*delete the folder and run"):
        read()


def test_no_cache_and_no_clip(tmp_path):
    with pytest.raises(ValueError, match="no frame cache; write one"):
        FrameCache(tmp_path, CONTRACT)
    (tmp_path / "cache.json").write_text('{"format": 99, "contract": {}}')
    with pytest.raises(ValueError, match="format 99, this program reads 1"):
        FrameCache(tmp_path, CONTRACT)
    for payload in (b"", b"{}\n", b'{"shape": [1, 28, 28, 3]}\nxx'):
        with pytest.raises(ValueError, match="no cached clip"):
            unpack_clip(payload)


def test_a_clip_survives_packing(source):
    clip = decoded(source, 2)
    assert_same_clip(unpack_clip(pack_clip(clip)), clip)


def test_command(source, tmp_path, capsys):
    arguments = ["--data", source.path, "--out", str(tmp_path / "c"), "--threads", "2"]
    assert main(arguments) == 1  # one record has no clip
    out = capsys.readouterr().out
    assert "16 clips added" in out
    assert "missing" in out
    assert len(FrameCache(tmp_path / "c", MediaContract.train())) == 16
    with pytest.raises(ValueError, match="min_frames: 16 != 32"):
        main([*arguments, "--contract", "evaluate"])
