"""An adapter of PEFT that a run starts from: it trains on, or it is merged into the weights."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from trained_place import LORA

import videorft_jax as vr
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.models.hf_folder import flatten
from videorft_jax.parallel import sharding
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.start import open_start
from videorft_jax.training.state import abstract_state, fresh_state
from videorft_jax.training.step import TrainState
from videorft_jax.training.weights import make_weights


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command sets up logging for its process, which is that of the other tests here."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def place(trained_place, tmp_path_factory):
    """The runs, with the adapter of one of them as a folder and merged into the weights."""
    trained_place.adapter = tmp_path_factory.mktemp("start") / "adapter"
    assert trained_place.export("lora", trained_place.adapter, "--adapter") == 0
    loaded = vr.load(trained_place.model, dtype="float32", adapter=trained_place.adapter)
    trained_place.merged = flatten(loaded.params)
    return trained_place


def begin(place, mode, **changes):
    """(start, the state of step 0) of a run with `model.adapter`."""
    adapter = changes.pop("adapter", place.adapter)
    config = tiny_run.sft_config(place.model, "none", model__adapter=str(adapter), **changes)
    options = make_train_options(config)
    weights = make_weights(options, place.loaded.config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    start = open_start(options, weights, mode)
    abstract = abstract_state(options, weights, mesh)
    optimizer = make_optimizer(options.optim, 5)
    with jax.set_mesh(mesh):
        return start, fresh_state(options, weights, optimizer, abstract, mesh, start)


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_allclose(array, theirs[path], rtol=0, atol=1e-6, err_msg=path)


AGREEING = {"lora__rank": 4, "lora__alpha": 8.0, "lora__targets": LORA.targets}


def test_an_adapter_that_agrees_trains_on(place, caplog):
    caplog.set_level("INFO")
    start, state = begin(place, "sft", **AGREEING)
    assert start.trains_on
    equal(flatten(state.params["lora"]), flatten(place.arrays["lora"][0]["lora"]))
    equal(flatten(state.frozen), flatten(place.loaded.params))
    assert f"the adapter {place.adapter} trains on" in caplog.text


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        ("grpo", {}, "since the reference policy is the model that the run starts from; new"),
        ("sft", {"lora__alpha": 4.0}, "its rank and scale are 4 and 2, those of the options 4 and"),
        ("sft", {"lora__targets": LORA.targets[:1]}, "such as text/layers/mlp/down; new adapters"),
    ],
)
def test_any_other_is_merged_under_new_adapters(place, caplog, mode, changes, reason):
    caplog.set_level("INFO")
    start, state = begin(place, mode, **AGREEING | changes)
    assert not start.trains_on
    assert reason in caplog.text
    equal(flatten(state.frozen), place.merged)
    factors = flatten(state.params["lora"])
    assert not any(np.any(array) for path, array in factors.items() if path.endswith("/b"))


def test_the_weights_themselves_train_from_it(place, caplog):
    caplog.set_level("INFO")
    _, state = begin(place, "sft", lora__rank=0)
    equal(flatten(state.params), place.merged)
    assert "lora.rank is 0 and the weights themselves train" in caplog.text
    assert begin(place, "sft", adapter="")[0] is None


def test_what_it_was_is_refused_as_an_adapter_alone(place, tmp_path, capsys):
    """Adapters beside merged weights fit no folder; the merged weights are written all the same."""
    with Checkpointer(place.folder / "lora") as checkpointer:
        meta = checkpointer.read_meta(3)
    meta["config"]["model"]["adapter"] = "some/adapter"
    trained, frozen, _ = place.arrays["lora"]
    zero = jnp.int32(0)
    state = TrainState(jnp.int32(3), trained, frozen, (), None, zero, zero)
    beside = place.folder / "beside"
    with Checkpointer(beside) as checkpointer:
        checkpointer.save(3, state, meta | {"base_is_merged": True})
    assert place.export("beside", tmp_path / "adapter", "--adapter") == 2
    message = "with some/adapter merged into it, and to no folder; leave --adapter out"
    assert message in capsys.readouterr().err
    assert place.export("beside", tmp_path / "whole") == 0
    equal(place.read(tmp_path / "whole"), place.merged)


@pytest.mark.slow
def test_the_command_starts_from_it_and_goes_on_without_its_folder(place, tmp_path):
    """The first loss is that of a run from the merged weights, whether the adapter trains on or is
    merged; a run that goes on reads its checkpoint alone."""
    assert place.export("lora", tmp_path / "merged") == 0
    moved = shutil.copytree(place.adapter, tmp_path / "adapter")
    records = place.folder / "data" / "sft.jsonl"
    lora = {"lora__alpha": 8.0, "lora__targets": LORA.targets, "train__max_steps": 0}

    def run(name, model, code=0, **changes):
        options = tiny_run.sft_options(model, records, **lora | changes)
        tiny_run.write_config(tmp_path / f"{name}.py", "sft_7b", options)
        found, text = tiny_run.finish(
            tiny_run.start(
                tmp_path / "cache", "sft", f"--config={tmp_path / name}.py",
                f"--workdir={tmp_path / name}",
            )
        )  # fmt: skip
        assert found == code, text
        if code:
            return text, []
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return text, [json.loads(line)["loss"] for line in lines]

    _, (expected,) = run("whole", tmp_path / "merged", lora__rank=4)
    text, (loss,) = run("on", place.model, lora__rank=4, model__adapter=str(moved))
    assert "adapter trains on" in text
    assert loss == pytest.approx(expected, rel=1e-5)
    text, (loss,) = run("beside", place.model, lora__rank=2, model__adapter=str(moved))
    assert "is merged into the weights, since its rank and scale are 4 and 2" in text
    assert loss == pytest.approx(expected, rel=1e-5)
    shutil.rmtree(moved)
    _, losses = run("on", place.model, lora__rank=4, model__adapter=str(moved), data__epochs=2)
    assert len(losses) == 2
    text, _ = run("on", place.model, code=2, lora__rank=4, data__epochs=3)
    assert "model.adapter was" in text
