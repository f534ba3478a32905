"""Benchmarks killed in the middle and gone on with by two processes: the bytes of a run that was
never stopped."""

import json
import signal
import socket

import pytest
from benchmark_layouts import make_layouts
from evaluation_place import ROLLOUTS
from evaluation_place import read_completions as read
from tiny_run import finish, start, wait_for, write_config

from videorft_jax import cli
from videorft_jax.commands import evaluate as evaluate_command
from videorft_jax.evaluation.benchmarks.variants import Variant

NAMES = ["tempcompass", "mvbench", "vsibench"]
ROWS = {"tempcompass": 4, "mvbench": 5, "vsibench": 3}


def size(folder):
    return sum(path.stat().st_size for path in folder.glob("*/completions*.jsonl"))


@pytest.mark.slow
def test_killed_three_times_and_finished_by_two_processes(place, monkeypatch, tmp_path):
    make_layouts(tmp_path / "data")
    options = place.options | {"data.row_tokens": 1024, "data.rows": 2}
    write_config(tmp_path / "tiny.py", "evaluate_7b", options)
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setattr(evaluate_command, "make_mesh", lambda _: place.mesh)
    monkeypatch.setattr(evaluate_command, "make_engine", lambda *_: place.engine)
    evaluate_command.evaluate_benchmarks(
        place.config(data__row_tokens=1024, data__rows=2), str(expected), NAMES,
        str(tmp_path / "data"), Variant(),
    )  # fmt: skip
    words = ["evaluate", f"--config={tmp_path}/tiny.py", f"--workdir={folder}"]
    words += [f"--benchmarks={','.join(NAMES)}", f"--data_root={tmp_path}/data"]
    compiled = place.folder / "compiled"
    for _ in range(3):
        before, process = size(folder), start(compiled, *words)
        wait_for(lambda before=before: size(folder) > before + 300, process)
        process.kill()
        finish(process)
        assert process.returncode == -signal.SIGKILL
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words += ["--num_processes=2", f"--coordinator=127.0.0.1:{port}", "--config.mesh.data=2"]
    processes = [start(compiled, *words, f"--process_id={number}") for number in range(2)]
    said = [finish(process) for process in processes]
    assert [code for code, _ in said] == [0, 0], said
    for name in NAMES:
        assert read(folder / name) == read(expected / name), name
        results = json.loads((folder / name / "results.json").read_text())["results"]
        assert results["num_records"] == ROWS[name]
        before = json.loads((expected / name / "results.json").read_text())["results"]
        assert results == before
    rows = [json.loads(line) for line in read(folder / "tempcompass").splitlines()]
    assert len(rows) == ROWS["tempcompass"] * ROLLOUTS
    assert cli.main(["score", str(folder)]) == 0
