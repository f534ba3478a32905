"""Supervised fine-tuning from the command line: the same numbers on any mesh and any number of
processes, and after every kind of interruption.

Every run is the real command on a tiny model and real clips. Those that depend on nothing are
started at once, two at a time, and a test waits for its own.
"""

import concurrent.futures
import random
import shutil
import signal
import socket
from typing import NamedTuple

import numpy as np
import pytest
from tiny_run import (
    finish,
    make_data,
    make_model,
    metrics,
    read_arrays,
    sft_config,
    sft_options,
    start,
    wait_for,
    write_config,
)

from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import flatten, read_checkpoint
from videorft_jax.training import run
from videorft_jax.training.setup import make_train_options

STEPS = 10  # two epochs of the 40 records
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}


def mesh_flags(shape):
    return [
        f"--config.mesh.{a}={n}" for a, n in zip(("data", "fsdp", "tensor"), shape, strict=True)
    ]


class Place(NamedTuple):
    """Where the runs of this file live, and how they are started."""

    folder: object
    model: object
    records: str

    def arguments(self, workdir, *flags):
        return ["sft", f"--config={self.folder / 'tiny.py'}", f"--workdir={workdir}", *flags]

    def start(self, name, *flags, devices=1):
        arguments = self.arguments(self.folder / name, *flags)
        return start(self.folder / "compiled", *arguments, devices=devices)

    def run(self, name, *flags, devices=1, code=0):
        """Runs to the end; returns the work directory and what was said."""
        found, text = finish(self.start(name, *flags, devices=devices))
        assert found == code, text
        return self.folder / name, text

    def copy(self, source, name, last):
        """A copy of a work directory as it was after checkpoint `last`."""
        shutil.copytree(self.folder / source, self.folder / name)
        for checkpoint in (self.folder / name / "checkpoints").iterdir():
            if int(checkpoint.name) > last:
                shutil.rmtree(checkpoint)
        return self.folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    records = make_data(folder / "data")["sft"]
    make_model(folder / "model", records)
    options = sft_options(
        folder / "model",
        records,
        data__epochs=2,
        train__max_steps=0,
        optim__schedule="constant",  # so that a shorter run is the beginning of a longer one
        optim__warmup_steps=3,
        checkpoint__every=3,
        checkpoint__keep_last=5,
    )
    write_config(folder / "tiny.py", "sft_7b", options)
    return Place(folder, folder / "model", records)


RUNS = {
    "single": ((), 1),
    "lora": (("--config.lora.rank=4", "--config.train.max_steps=4", "--config.optim.lr=0.01"), 1),
    "freeze": (
        (
            "--config.train.freeze=vision,merger",
            "--config.optim.name=adafactor",
            "--config.train.max_steps=2",
            *mesh_flags((1, 8, 1)),
        ),
        8,
    ),
    **{
        name: ((*mesh_flags(shape), "--config.train.max_steps=5"), 8)
        for name, shape in MESHES.items()
    },
}


@pytest.fixture(scope="module")
def runs(place):
    """name -> (work directory, console) of a finished run of RUNS."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {
            name: pool.submit(place.run, name, *flags, devices=devices)
            for name, (flags, devices) in RUNS.items()
        }

        class Finished:
            def __getitem__(self, name):
                return futures[name].result()

        yield Finished()


def curve(workdir):
    """The metrics that do not depend on the machine, line by line."""
    return [
        {name: value for name, value in line.items() if "/" not in name}
        for line in metrics(workdir)
    ]


def assert_same_run(workdir, reference):
    """Equal to the bit, in every number logged and every array kept."""
    assert curve(workdir) == curve(reference)
    found, expected = (read_arrays(folder, STEPS) for folder in (workdir, reference))
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].tobytes() == expected[path].tobytes(), path


def assert_close(workdir, reference, steps=5):
    found, expected = curve(workdir), curve(reference)[:steps]
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    for name in expected[0]:
        np.testing.assert_allclose(
            [line[name] for line in found],
            [line[name] for line in expected],
            rtol=1e-5,
            atol=1e-5,
            err_msg=name,
        )


def num_lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_single_run_learns_and_reads_every_sample_once_an_epoch(place, runs):
    workdir, text = runs["single"]
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["skipped"] == 0
    assert {"perf/tokens_per_s", "perf/mfu", "perf/padding", "time/data"} <= lines[-1].keys()
    assert f"step {STEPS}/{STEPS}" in text.splitlines()[-2]
    assert f"next: videorft export --checkpoint={workdir}" in text.splitlines()[-1]
    assert not [line for line in text.splitlines() if "Traceback" in line or "Error" in line]
    config = sft_config(place.model, place.records, data__epochs=2)
    loader = make_loader(place, config, workdir)

    def read(start):
        with loader.steps(start) as steps:
            return [(s.index, s.epoch, i) for s in steps for row in s.indices for i in row]

    whole = read(0)
    assert sorted(sample for _, *sample in whole) == [[e, i] for e in range(2) for i in range(40)]
    assert read(4) == [sample for sample in whole if sample[0] >= 4]  # a restart after step 4


def make_loader(place, config, workdir):
    options = make_train_options(config)
    tokenizer = run.load_model_files(options.model.init_from)[1]
    return run.make_loader(options, "sft", tokenizer, str(workdir))


def test_killed_at_a_step_and_in_a_save(place, runs):
    reference = runs["single"][0]
    workdir = place.folder / "killed"
    process = place.start("killed")
    wanted = random.Random(0).randint(4, 6)
    wait_for(lambda: num_lines(workdir) >= wanted, process)
    process.kill()
    finish(process)

    def saving():
        folder = workdir / "checkpoints"
        return any("orbax-checkpoint-tmp" in child.name for child in folder.iterdir())

    done = num_lines(workdir)
    process = place.start("killed")
    wait_for(lambda: saving() and num_lines(workdir) > done, process)
    process.kill()
    finish(process)
    assert saving()  # it was cut off
    _, text = place.run("killed")
    assert "a save that was cut off" in text
    assert_same_run(workdir, reference)


def test_sigterm_saves_and_the_same_command_goes_on(place, runs):
    workdir = place.folder / "stopped"
    process = place.start("stopped")
    wait_for(lambda: num_lines(workdir) >= 1, process)
    process.send_signal(signal.SIGTERM)
    code, text = finish(process)
    assert code == 0, text
    stopped = num_lines(workdir)
    assert stopped < STEPS
    assert (workdir / "checkpoints" / f"{stopped:08d}" / "manifest.json").exists()
    assert f"stopped after step {stopped}" in text
    place.run("stopped")
    assert_same_run(workdir, runs["single"][0])
    _, text = place.run("stopped")
    assert f"step {STEPS} of {STEPS}: nothing left to do; raise data.epochs to go on" in text
    assert_same_run(workdir, runs["single"][0])


def spoil(place, name, tensor, row):
    """A copy of the model with a NaN in `row` of `tensor`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(place.model, place.folder / name)
    path = next((place.folder / name).glob("*.safetensors"))
    tensors = {key: value.copy() for key, value in load_file(path).items()}
    tensors[tensor][row] = np.nan
    save_file(tensors, path)
    return f"--config.model.init_from={place.folder / name}"


def test_a_step_that_is_not_finite_is_skipped(place, runs):
    """A token that only one of five batches holds gets a NaN as its embedding."""
    config = sft_config(place.model, place.records)
    with make_loader(place, config, runs["single"][0]).steps() as steps:
        batches = list(steps)
    tokens = [set(np.unique(step.batch.tokens)) for step in batches]
    bad, token = next(
        (k, min(own))
        for k in (2, 1, 3)
        if (own := tokens[k] - set().union(*(tokens[:k] + tokens[k + 1 :])))
    )
    flag = spoil(place, "rare", "model.embed_tokens.weight", int(token))
    workdir, text = place.run(
        "skipping", flag, "--config.train.max_steps=5", "--config.checkpoint.every=1"
    )
    lines, reference = metrics(workdir), metrics(runs["single"][0])
    assert [line["loss"] is None for line in lines] == [k == bad for k in range(5)]
    assert [line["skipped"] for line in lines] == [float(k >= bad) for k in range(5)]
    assert [line["loss"] for line in lines[:bad]] == [line["loss"] for line in reference[:bad]]
    ids = [record.problem_id for row in batches[bad].records for record in row]
    assert f"step {bad + 1} was not finite and is skipped; samples {ids}" in text
    before, after, later = (read_arrays(workdir, bad + k) for k in range(3))
    counters = {"step", "skipped", "skipped_in_row"}
    for path in before.keys() - counters:
        assert before[path].tobytes() == after[path].tobytes(), path
    assert [int(after[path]) for path in sorted(counters)] == [1, 1, bad + 1]
    assert any(after[path].tobytes() != later[path].tobytes() for path in after.keys() - counters)


def test_stops_when_too_many_steps_are_not_finite(place, runs):
    flag = spoil(place, "broken", "model.norm.weight", 0)
    flags = ["--config.train.max_skipped_in_row=2", "--config.train.max_steps=5"]
    workdir, text = place.run("broken_run", flag, *flags, code=1)
    assert [line["skipped_in_row"] for line in metrics(workdir)] == [1.0, 2.0]
    assert "2 steps in a row were not finite" in text.splitlines()[-1]
    assert "Traceback" not in text


def base(place):
    """The weights of the folder that a run starts from, by path."""
    return flatten(read_checkpoint(place.model, load_config(place.model)))


def test_lora_leaves_the_base_alone_and_resumes(place, runs):
    workdir, _ = runs["lora"]
    losses = [line["loss"] for line in curve(workdir)]
    assert losses[-1] < losses[0]
    final = read_arrays(workdir, 4)
    weights = base(place)
    frozen = {path[7:]: x for path, x in final.items() if path.startswith("frozen/")}
    assert frozen.keys() == weights.keys()
    for path, array in frozen.items():
        assert array.tobytes() == np.asarray(weights[path]).tobytes(), path
    adapters = {path for path in final if path.startswith("params/")}
    assert adapters == {path for path in adapters if path.startswith("params/lora/")}
    assert len(adapters) == 2 * 7
    assert all(np.any(final[path]) for path in adapters)  # b was made as zeros
    place.copy("lora", "lora_on", last=3)
    place.run("lora_on", *RUNS["lora"][0])
    assert curve(place.folder / "lora_on") == curve(workdir)
    again = read_arrays(place.folder / "lora_on", 4)
    assert all(again[path].tobytes() == final[path].tobytes() for path in final)
    _, text = place.run("lora_on", *RUNS["lora"][0], "--config.lora.alpha=8", code=2)
    assert "lora.alpha was 64.0 and is 8.0; go on with the same options" in text


def test_frozen_towers_do_not_move(place, runs):
    final, weights = read_arrays(runs["freeze"][0], 2), base(place)
    for path, array in weights.items():
        side = "params" if path.startswith("text/") else "frozen"
        same = final[f"{side}/{path}"].tobytes() == np.asarray(array).tobytes()
        assert same == (side == "frozen"), path
    assert not [path for path in final if "vision" in path and path.startswith("opt_state")]


@pytest.mark.parametrize("name", MESHES)
def test_mesh_gives_the_curve_of_one_device(runs, name):
    assert_close(runs[name][0], runs["single"][0])


def test_goes_on_with_another_mesh(place, runs):
    runs["data"], runs["fsdp"]  # waits for the first, and for the programs of the second
    workdir = place.copy("data", "moved", last=3)
    place.run("moved", *RUNS["fsdp"][0], devices=8)
    assert_close(workdir, runs["single"][0])
    shutil.rmtree(workdir)
    place.copy("all", "moved", last=3)
    place.run("moved", "--config.train.max_steps=5")
    assert_close(workdir, runs["single"][0])


def test_two_processes_give_the_curve_and_stop_together(place, runs):
    """One SIGTERM, to either process, has both write the checkpoint of the same step."""

    def begin():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        return [
            place.start(
                "pair",
                *mesh_flags(MESHES["all"]),
                f"--coordinator={address}",
                "--num_processes=2",
                f"--process_id={number}",
                devices=4,
            )
            for number in range(2)
        ]

    workdir = place.folder / "pair"
    pair = begin()
    wait_for(lambda: num_lines(workdir) >= 1, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    ended = [finish(process) for process in pair]
    assert [code for code, _ in ended] == [0, 0], ended
    stopped = num_lines(workdir)
    assert stopped < STEPS
    assert (workdir / "checkpoints" / f"{stopped:08d}" / "manifest.json").exists()
    ended = [finish(process) for process in begin()]
    assert [code for code, _ in ended] == [0, 0], ended
    assert_close(workdir, runs["single"][0], STEPS)
