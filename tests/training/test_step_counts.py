"""How many steps a run has, and what it says of those that it cannot take."""

import logging
import types

import pytest
from tiny_run import make_data, make_model, sft_config

from videorft_jax.commands.sft import sft
from videorft_jax.training import run
from videorft_jax.training.loop import say_nothing_left


def test_a_step_to_be_profiled_that_never_comes_is_refused_before_weights_are_read(
    tmp_path, monkeypatch
):
    """The data give five steps, of which max_steps leaves three."""
    records = make_data(tmp_path / "data")["sft"]
    make_model(tmp_path / "model", records)
    monkeypatch.setattr(run, "fresh_state", lambda *_: pytest.fail("weights were read"))
    for changes, step, total in (({}, 6, 5), ({"train__max_steps": 3}, 4, 3)):
        config = sft_config(tmp_path / "model", records, log__profile=step, **changes)
        with pytest.raises(ValueError, match=f"log.profile is {step} and the run has {total} st"):
            sft(config, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("num_batches", "max_steps", "options"),
    [
        (4, 0, "data.epochs"),
        (4, 6, "data.epochs"),
        (10, 4, "train.max_steps"),
        (4, 4, "data.epochs and train.max_steps"),
        (4, 3, "data.epochs and train.max_steps"),
    ],
)
def test_what_would_make_more_steps_is_named(caplog, num_batches, max_steps, options):
    """Four steps were taken, of as many batches as there are or of more."""
    caplog.set_level(logging.INFO)
    say_nothing_left(
        types.SimpleNamespace(
            start=4, total=4, next_batch=4, loader=range(num_batches),
            options=types.SimpleNamespace(max_steps=max_steps),
        )
    )  # fmt: skip
    assert caplog.messages == [f"step 4 of 4: nothing left to do; raise {options} to go on"]
