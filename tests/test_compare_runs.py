"""The comparison of two runs sees a flipped bit and overlooks times."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from compare_runs import compare_folders

from videorft_jax.checkpoints import manifest
from videorft_jax.checkpoints.checkpointer import Checkpointer

CONFIG = {"optim": {"lr": 1e-3}}


def write_run(folder, *, weight=1.0, loss=0.5, step_s=1.0, config=CONFIG, file_time=10**18):
    folder.mkdir()
    with Checkpointer(folder) as checkpointer:
        weights = {"params": {"embed": jnp.full((2, 3), weight, jnp.float32)}}
        checkpointer.save(1, weights, {"config": config})
    lines = [{"step": 1, "loss": loss, "perf/step_s": step_s, "time/data": step_s}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps({"accuracy": loss, "seconds": step_s}))
    (folder / "sizes").mkdir()
    (folder / "sizes/sizes-0.jsonl").write_text(f'["clip.mp4|{file_time}", 3]\n')
    np.savez(folder / "rollout.npz", logprobs=np.array([np.nan, weight]))
    return folder


def differing(tmp_path, **changes):
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", **changes)
    return {row.name for row in compare_folders(first, second) if row.differing}


def test_times_do_not_count(tmp_path):
    assert not differing(tmp_path, step_s=2.0, file_time=10**18 + 1)
    saved = manifest.read(tmp_path / "first/checkpoints/00000001")
    assert saved["meta"]["config"] == CONFIG


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"weight": np.nextafter(np.float32(1), np.float32(2))},
            {"checkpoints/00000001/arrays", "rollout.npz"},
        ),
        ({"loss": 0.5 + 2**-53}, {"metrics.jsonl", "results.json"}),
        ({"config": {"optim": {"lr": 2e-3}}}, {"checkpoints/00000001/manifest.json"}),
    ],
)
def test_the_least_difference_counts(tmp_path, changes, expected):
    assert differing(tmp_path, **changes) == expected


def test_an_option_that_one_side_lacks_does_not_count(tmp_path):
    assert not differing(tmp_path, config=CONFIG | {"serve": {"port": 8000}})


def test_what_is_lost_counts_and_what_is_added_does_not(tmp_path):
    first = write_run(tmp_path / "first")
    second = tmp_path / "second"
    shutil.copytree(first, second)
    (second / "metrics.jsonl").unlink()
    (row,) = (row for row in compare_folders(first, second) if row.differing)
    assert (row.name, row.first) == ("metrics.jsonl", "only in the first")
    assert not any(row.differing for row in compare_folders(second, first))
    line = json.loads((first / "metrics.jsonl").read_text())
    (second / "metrics.jsonl").write_text(json.dumps(line | {"lr": 0.1}) + "\n")
    assert not any(row.differing for row in compare_folders(first, second))
    assert any(row.differing for row in compare_folders(second, first))
