"""Held-out records that are asked while a run trains: the same figures as `videorft evaluate`."""

import json
import math
import types
from typing import Any

import pytest
from tiny_run import (
    TinyCommands,
    make_data,
    make_model,
    metrics,
    read_arrays,
    sft_config,
    sft_options,
    write_config,
)

from videorft_jax.commands.sft import sft
from videorft_jax.training import run
from videorft_jax.training.held_out import check_overlap
from videorft_jax.training.loop import Taken, protect_best, run_steps
from videorft_jax.training.options import ValidateOptions
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.validation import Validation

STEPS = 4
OPTIONS = ValidateOptions("held_out", "", 2, 0, 8, keep_best=True, patience=2, mode="strict")


class Place(TinyCommands):
    def __init__(self, folder):
        super().__init__(folder)
        self.files = make_data(folder / "data", num_sft=16, num_rl=4, num_eval=6)
        make_model(folder / "model", self.files["sft"])
        options = sft_options(
            folder / "model", self.files["sft"], data__rows=4, train__max_steps=STEPS,
            checkpoint__every=100, checkpoint__keep_last=1,
        )  # fmt: skip
        write_config(folder / "tiny.py", "sft_7b", options)
        write_config(folder / "asked.py", "evaluate_7b", options | {
            "data.records": self.files["eval"], "evaluate.max_new_tokens": 12,
        })  # fmt: skip

    def validated(self, name, **more):
        values = {"records": self.files["eval"], "every": 2, "max_new_tokens": 12} | more
        return self.run("sft", name, *(f"--config.validate.{key}={v}" for key, v in values.items()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("validation"))


@pytest.fixture(scope="module")
def validated(place):
    return place.validated("validated", keep_best=True)


def rounds(workdir):
    return [json.loads(line) for line in (workdir / "validation.jsonl").read_text().splitlines()]


def test_a_round_gives_what_evaluate_gives(place, validated):
    workdir, text = validated
    lines = metrics(workdir)
    assert [line["step"] for line in lines if "validate/accuracy" in line] == [2, 4]
    assert [row["step"] for row in rounds(workdir)] == [2, 4]
    assert "held-out accuracy" in text
    best = max(rounds(workdir), key=lambda row: row["accuracy"])["step"]
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert kept == sorted({best, STEPS})
    checkpoint = f"--config.evaluate.checkpoint={workdir}"
    out, _ = place.run("evaluate", "asked", checkpoint, config="asked.py")
    wanted, found = json.loads((out / "results.json").read_text())["results"], rounds(workdir)[-1]
    for name in ("accuracy", "low", "high", "num_records", "num_scored", "mean_length"):
        assert found[name] == pytest.approx(wanted[name]), name
    assert found["num_records"] == 6


@pytest.mark.slow
def test_a_round_changes_nothing_and_repeats_after_a_restart(place, validated):
    plain, _ = place.run("sft", "plain")
    for path, array in read_arrays(plain, STEPS).items():
        assert array.tobytes() == read_arrays(validated[0], STEPS)[path].tobytes(), path
    again, _ = place.validated("again", keep_best=True, every=1)
    before = rounds(again)
    newest = again / "checkpoints" / f"{STEPS:08d}"
    newest.rename(newest.with_name("gone"))
    again, _ = place.validated("again", keep_best=True, every=1)
    assert rounds(again) == before


@pytest.mark.slow
def test_grpo_asks_the_policy_that_it_has_just_updated(place):
    flags = [
        f"--config.data.records={place.files['rl']}", "--config.train.max_steps=2",
        "--config.rewards=(('accuracy', 1.0), ('format', 1.0))", "--config.data.epochs=2",
        "--config.rollout.num_rollouts=4", "--config.rollout.max_new_tokens=8",
        f"--config.validate.records={place.files['eval']}", "--config.validate.every=1",
        "--config.validate.max_new_tokens=12",
    ]  # fmt: skip
    workdir, _ = place.run("grpo", "grpo", *flags)
    assert [row["step"] for row in rounds(workdir)] == [1, 2]
    checkpoint = f"--config.evaluate.checkpoint={workdir}"
    out, _ = place.run("evaluate", "grpo_asked", checkpoint, config="asked.py")
    wanted, found = json.loads((out / "results.json").read_text())["results"], rounds(workdir)[-1]
    for name in ("accuracy", "low", "high", "mean_length"):
        assert found[name] == pytest.approx(wanted[name]), name
    assert found["mean_length"] != rounds(workdir)[0]["mean_length"]


def test_overlap_is_refused_before_the_first_step(place):
    flag = f"--config.validate.records={place.files['sft']}"
    workdir, text = place.run("sft", "overlap", flag, code=2)
    assert "16 records show clips that are trained on" in text.splitlines()[-1]
    assert not (workdir / "metrics.jsonl").exists()


@pytest.mark.parametrize("split", ["sft", "none"])
def test_held_out_records_are_looked_at_before_weights_are_read(
    place, tmp_path, monkeypatch, split
):
    monkeypatch.setattr(run, "fresh_state", lambda *_: pytest.fail("weights were read"))
    records = place.files.get(split, tmp_path / "none.jsonl")
    config = sft_config(
        place.folder / "model", place.files["sft"], validate__records=str(records)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"are trained on|none\.jsonl: No such file"):
        sft(config, str(tmp_path / "run"))


class Source:
    """Records of one media item each."""

    def __init__(self, root, *paths):
        self.data_root, self.paths = str(root), paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return types.SimpleNamespace(media=(types.SimpleNamespace(path=self.paths[index]),))

    def where(self, index):
        return f"line {index + 1}"


def test_a_clip_is_the_same_by_any_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.mp4").touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a/x.mp4")
    trained = Source(tmp_path / "a", "x.mp4", "y.mp4")
    check_overlap(Source(tmp_path, "x.mp4", ("a/z.png", "a/w.png")), trained, "held")
    for path in ("a/x.mp4", "./a/../a/y.mp4", "link.mp4", ("b.png", "a/y.mp4")):
        with pytest.raises(ValueError, match="1 records show clips .*line 2"):
            check_overlap(Source(tmp_path, "other.mp4", path), trained, "held")


@pytest.mark.parametrize("option", [{"validate__keep_best": True}, {"validate__patience": 2}])
def test_comparing_rounds_needs_records(option):
    config = sft_config("model", "records.jsonl", **option)
    with pytest.raises(ValueError, match="give some by --config.validate.records=FILE"):
        make_train_options(config)


class Run:
    """What `run_steps` reads of a run, with a record of what was saved and kept."""

    kept = range(99)  # steps whose checkpoints are there

    def __init__(self, folder, start, total=20, every=100):
        self.folder, self.total, self.state, self.loader = str(folder), total, None, range(99)
        self.options = types.SimpleNamespace(
            validate=OPTIONS, checkpoint=types.SimpleNamespace(every=every), recorded={},
            log=types.SimpleNamespace(interval_s=1e9, wandb="", profile=0), max_skipped_in_row=5,
            name="run",
        )  # fmt: skip
        self.saved, self.protected, self.checkpointer = [], [], self

    def describe_kept(self):
        return ""

    def protect(self, step):
        self.protected.append(step)

    def holds(self, step):
        return step in self.kept

    def learning_rate(self, state):
        return 0.0

    def save(self, number, state, next_batch):
        self.saved.append(number)


def train(folder, accuracies, start=0, total=20, data=99):
    """Runs steps whose rounds, every second step, have these accuracies by step. The data end after
    step `data`."""
    state: Any = None
    taken = Taken(state, {"loss": 0.0, "skipped_in_row": 0}, {}, [], 0)
    steps, run = [], Run(folder, start, total)

    def take_step(number, state, tracker):
        if number > data:
            return None
        steps.append(number)
        return taken

    def measure(state):
        return {"accuracy": accuracies[steps[-1]], "low": 0.0, "high": 1.0}

    validation = Validation(OPTIONS, str(folder), start, measure)
    run_steps(run, start, take_step, validation=validation)
    return run, steps


def test_the_best_round_is_kept_and_a_stalled_run_ends(tmp_path):
    found = {2: math.nan, 4: 0.5, 6: 0.25, 8: 0.75, 10: 0.75, 12: 0.5}
    run, steps = train(tmp_path, found)
    assert steps == list(range(1, 13))  # Steps 10 and 12 are no better than step 8.
    assert run.saved == [4, 8, 12]
    assert run.protected == [None, None, 4, 4, 8, 8, 8]
    again, steps = train(tmp_path, {}, start=12)
    assert (steps, again.saved, again.protected) == ([], [], [8])
    # A run that goes back to step 8 asks again what comes after it.
    run, steps = train(tmp_path, {10: 0.5, 12: 1.0, 14: 0.0, 16: 0.0}, start=8)
    assert (steps[-1], run.saved) == (16, [12, 16])
    assert [row["step"] for row in rounds(tmp_path)] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert rounds(tmp_path)[0]["accuracy"] is None


def test_the_last_step_is_asked_too(tmp_path):
    run, steps = train(tmp_path, {2: 0.5, 3: 0.5}, total=3)
    assert [row["step"] for row in rounds(tmp_path)] == [2, 3]
    assert protect_best(run, None) is None


@pytest.mark.parametrize(("data", "asked"), [(3, [2, 3]), (4, [2, 4])])
def test_the_last_step_is_asked_where_the_data_end_before_the_steps(tmp_path, data, asked):
    """With `grpo.max_draws` a step may take several batches."""
    run, _ = train(tmp_path, {2: 0.5, 3: 0.75, 4: 0.75}, data=data)
    assert [row["step"] for row in rounds(tmp_path)] == asked
    assert (run.saved[-1], run.protected[-1]) == (data, data)


def test_a_best_round_without_its_checkpoint_is_told(tmp_path, monkeypatch, caplog):
    """As where `validate.keep_best` is set for a run that was begun without it."""
    train(tmp_path, {2: 0.75, 4: 0.5}, total=4)
    assert "the best round" not in caplog.text
    monkeypatch.setattr(Run, "kept", [4])
    train(tmp_path, {6: 0.5}, start=4, total=6)
    (told,) = [line for line in caplog.messages if "the best round" in line]
    assert "is that of step 2, whose checkpoint is gone" in told
