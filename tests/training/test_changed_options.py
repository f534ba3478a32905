"""A run that is told to go on with other options says what can be done about them."""

import jax
import pytest
from tiny_run import make_data, make_model, sft_config

from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.commands.sft import sft
from videorft_jax.models.family import load_config
from videorft_jax.parallel import sharding
from videorft_jax.training import sft as training
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.run import load_model_files, make_loader
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.state import abstract_state, expected_meta, fresh_state
from videorft_jax.training.weights import make_weights

OFFER = "begin in another workdir, or add --allow_changes"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """(a function that makes its config with changes, work directory) of a run that was stopped
    before its first step."""
    folder = tmp_path_factory.mktemp("changed")
    records = make_data(folder / "data")["sft"]
    make_model(folder / "model", records)

    def configure(**changes):
        return sft_config(folder / "model", records, **changes)

    options, workdir = make_train_options(configure()), str(folder / "run")
    weights = make_weights(options, load_config(options.model.init_from))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(options, weights, mesh)
    state = fresh_state(options, weights, make_optimizer(options.optim, 5), abstract, mesh)
    loader = make_loader(options, "sft", load_model_files(options.model.init_from)[1], workdir)
    meta = expected_meta(weights, options.contract) | {
        "mode": "sft", "config": options.recorded,
        "data": {"plan": loader.digest, "next_batch": 0, "step": 0},
    }  # fmt: skip
    with Checkpointer(workdir) as checkpointer:
        checkpointer.save(0, state, meta)
    return configure, workdir


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data__rows": 16},
        {"media__max_frames": 6},
        {"lora__rank": 4},
        {"optim__name": "adafactor"},
        {"optim__mu_dtype": "bfloat16"},
        {"train__freeze": ("vision",)},
    ],
)
def test_a_flag_that_would_not_help_is_not_offered(begun, changes):
    configure, workdir = begun
    with pytest.raises(ValueError, match="or begin in another workdir$"):
        sft(configure(**changes), workdir)
    with pytest.raises(ValueError, match="in the checkpoint|the saved run read plan"):
        sft(configure(**changes, train__allow_changes=True), workdir)


@pytest.mark.parametrize("changes", [{"optim__lr": 1e-2}, {"optim__weight_decay": 0.1}])
def test_one_that_helps_is_offered(begun, changes, monkeypatch):
    configure, workdir = begun
    with pytest.raises(ValueError, match=f"{OFFER}$"):
        sft(configure(**changes), workdir)
    taken = []
    monkeypatch.setattr(training, "run_steps", lambda run, start, *_, **__: taken.append(start))
    assert sft(configure(**changes, train__allow_changes=True), workdir) == 0
    assert taken == [0]
