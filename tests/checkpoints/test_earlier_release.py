"""A run, its checkpoint and a frame cache that commit d4c00c6 wrote still open and go on.

`golden/earlier_release.zip` holds what that commit's `videorft sft` and `videorft cache` left: the
checkpoint of step 2 of 4, four clips, their cache, and in expected.json the metrics of all steps.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from compiler_flags import QUICK_CPU

from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.source import RecordSource
from videorft_jax.models import hf_writer
from videorft_jax.models.family import load_config
from videorft_jax.parallel.sharding import make_mesh
from videorft_jax.training.changes import find_changes
from videorft_jax.training.restore import find_checkpoint, read_params

OPTIONS = (
    "--config.model.init_from=model",
    "--config.model.dtype=float32",
    "--config.data.template_file=template.json",
    "--config.data.records=clips/sft.jsonl",
    "--config.data.rows=2",
    "--config.data.row_tokens=128",
    "--config.data.multiple=8",
    "--config.data.max_buckets=1",
    "--config.data.epochs=4",
    "--config.media.min_frames=2",
    "--config.media.max_frames=4",
    "--config.media.fps=4.0",
    "--config.media.min_pixels=784",
    "--config.media.max_pixels=12544",
    "--config.optim.name=adafactor",
    "--config.optim.lr=1e-3",
    "--config.checkpoint.every=2",
    "--config.train.max_steps=4",
)


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """The folder as that commit left it, and the metrics that its run went on to write."""
    shutil.unpack_archive(
        pathlib.Path(__file__).parents[1] / "golden/earlier_release.zip", tmp_path
    )
    monkeypatch.chdir(tmp_path)
    expected = json.loads((tmp_path / "expected.json").read_text())["steps"]
    return tmp_path, {row["step"]: row for row in expected}


def test_a_run_goes_on_from_its_checkpoint(earlier):
    folder, expected = earlier
    saved = find_checkpoint("run")
    config = load_config("model")
    mesh = make_mesh(devices=jax.devices()[:1])
    params = jax.device_get(read_params(saved, config, mesh))
    hf_writer.write_checkpoint(folder / "weights", params, config)  # the archive has no weights
    shutil.copy(folder / "weights/model.safetensors", folder / "model")
    recipe = pathlib.Path(__file__).parents[2] / "configs/sft_7b.py"
    command = [sys.executable, "-m", "videorft_jax.cli", "sft", f"--config={recipe}"]
    environment = os.environ | {"XLA_FLAGS": QUICK_CPU}  # one device
    subprocess.run([*command, "--workdir=run", *OPTIONS], env=environment, check=True)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 4]
    for row in rows:
        for name, value in expected[row["step"]].items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, err_msg=name)


def test_the_frames_of_its_cache_are_found_and_right(earlier):
    folder, _ = earlier
    contract = MediaContract.train()
    source = RecordSource(folder / "clips/sft.jsonl")
    cache = FrameCache(folder / "cache", contract)
    assert len(cache) == 4
    for record in source:
        item = MediaItem("video", record.path)
        cached = cache.get(record.path, item, source.data_root)
        decoded = load_media(record.path, source.data_root, contract, kind="video")
        np.testing.assert_array_equal(cached.frames, decoded.frames)
        np.testing.assert_array_equal(cached.timestamps, decoded.timestamps)


@pytest.mark.parametrize(
    ("before", "now", "is_same"),
    [
        ("template.json", "/home/me/template.json", True),
        ("./prompts/a.json", "/home/me/prompts/a.json", True),
        ("prompts/a.json", "/home/me/other/a.json", False),
        ("a.json", "/home/me/ba.json", False),
        ("/old/a.json", "/home/me/a.json", False),
        ("", "/home/me/a.json", False),
    ],
)
def test_a_path_as_it_was_typed_is_its_absolute_path(before, now, is_same):
    options = ({"data": {"template_file": before}}, {"data": {"template_file": now}})
    assert bool(find_changes(*options)) != is_same
