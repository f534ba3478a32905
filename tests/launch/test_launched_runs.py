"""Several workers that train for real, reached through the ssh stub, and killed."""

import os
import signal
import socket
import sys

import numpy as np
import pytest
from launcher_stubs import Stage, end_all, wait_for
from tiny_run import (
    environment,
    make_data,
    make_model,
    metrics,
    read_arrays,
    sft_options,
    write_config,
)

STEPS = 6


class Runs:
    """Training of the tiny model by workers reached through the ssh stub."""

    def __init__(self, folder):
        self.stage, self.folder = Stage(folder), folder
        records = make_data(folder / "data")["sft"]
        make_model(folder / "model", records)
        options = sft_options(
            folder / "model",
            records,
            train__max_steps=STEPS,
            train__freeze=("vision", "merger"),  # half of the compile time
            model__remat="none",
            data__epochs=2,
            checkpoint__every=2,
            checkpoint__keep_last=5,
        )
        write_config(folder / "tiny.py", "sft_7b", options)

    def start(self, name, workers, scheme):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        hosts = ",".join(["127.0.0.1", *(f"host-{i}" for i in range(1, workers))])
        flags = (f"--hosts={hosts}", f"--port={port}", f"--run={name}", "--up_s=120")
        more = environment(self.folder / "compiled", devices=4 // workers)
        more |= self.stage.environment | {"VIDEORFT_PYTHON": sys.executable}
        self.stage.run("gpu_node.sh", "setup", flags[0], **more)
        command = ("--", "sft", f"--config={self.folder / 'tiny.py'}")
        workdir = f"--workdir={scheme}{self.folder / name}"
        return self.stage.start("gpu_node.sh", "run", *flags, *command, workdir, **more)

    def run(self, name, workers, victim=None, scheme=""):
        """The work directory and what was said; `victim` is killed after the first checkpoint."""
        process = self.start(name, workers, scheme)
        if victim is not None:
            kept = self.folder / name / "checkpoints"
            wait_for(lambda: list(kept.glob("*/manifest.json")), 300)
            own = f"host-{victim}" if victim else "127.0.0.1"
            child = self.folder / own / f".videorft/runs/{name}-{victim}/child"
            os.kill(int(child.read_text()), signal.SIGKILL)
        text = process.communicate(timeout=600)[0]
        assert process.returncode == 0, text
        return self.folder / name, text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("launch"))
    yield runs
    end_all(runs.folder)


@pytest.fixture(scope="module")
def reference(runs):
    workdir, text = runs.run("whole", 2)
    assert f"step {STEPS}/{STEPS}" in text
    return workdir


def curve(workdir):
    return [
        {name: value for name, value in line.items() if "/" not in name}
        for line in metrics(workdir)
    ]


def test_a_killed_worker_restarts_all_from_the_checkpoint(runs, reference):
    workdir, text = runs.run("killed", 2, victim=1)
    assert "checkpoint: restored step" in text
    assert "supervise: " in text
    assert curve(workdir) == curve(reference)
    found, expected = (read_arrays(folder, STEPS) for folder in (workdir, reference))
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].tobytes() == expected[path].tobytes(), path


def test_four_workers_survive_the_loss_of_the_first(runs, reference):
    """Each has a disk of its own, and the work directory is one that nothing is appended to."""
    workdir, text = runs.run("four", 4, victim=0, scheme="file://")
    assert "exit code 137; restart 1 of 10" in text
    assert "checkpoint: restored step" in text
    found, expected = curve(workdir), curve(reference)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for name in expected[0]:
        values = ([line[name] for line in lines] for lines in (found, expected))
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5, err_msg=name)
