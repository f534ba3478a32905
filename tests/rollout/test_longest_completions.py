"""Completions that cannot be are refused with the most that can, before anything is allocated."""

import dataclasses
import json

import hf_twin as hf
import jax
import numpy as np
import pytest

import videorft_jax as vr
from videorft_jax.data.batch import layout
from videorft_jax.rollout import room
from videorft_jax.rollout.compaction import Grid
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import SamplingConfig

TOKENS, LENGTH = 9, 16


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return hf.make_twin(tmp_path_factory.mktemp("twin"), max_position_embeddings=40)


@pytest.fixture(scope="module")
def batch(twin):
    sample = hf.make_sample(np.random.default_rng(0), twin.config, [TOKENS])
    return layout.pack([[sample]] * 2, LENGTH, 1, 1)


def engine(twin, **settings):
    config = twin.config
    return RolloutEngine(config, SamplingConfig(pad_id=301, **settings), dtype="float32")


@pytest.mark.parametrize(
    ("factor", "positions"), [(None, 40), (2.5, 100)], ids=["plain", "scaled waves"]
)
def test_a_completion_ends_at_the_last_position(twin, batch, factor, positions):
    if factor:
        values = json.loads(twin.config.source)
        values["rope_scaling"] |= {"rope_type": "linear", "type": "linear", "factor": factor}
        twin = dataclasses.replace(twin, config=hf.parse_config(values))
    most = positions - TOKENS
    engine(twin, max_new_tokens=most).check_length(batch)
    longer = engine(twin, max_new_tokens=most + 1)
    for ask in (longer.check_length, lambda batch: longer.rollout(None, batch, [0, 1], seed=0)):
        with pytest.raises(ValueError, match=rf"is {most + 1}; give at most {most}, .*{positions}"):
            ask(batch)
    limits = np.full((2, 1), most)  # Later turns of a completion have less room.
    longer.check_length(batch, limits)
    with pytest.raises(ValueError, match=rf"give at most {most}, as the model has"):
        longer.check_length(batch, limits + 1)
    wide = batch._replace(positions=batch.positions + positions)
    with pytest.raises(ValueError, match=rf"has {positions}; use fewer frames or pixels"):
        longer.check_length(wide)


def test_a_model_that_does_not_tell_has_no_last_position(twin, batch):
    values = json.loads(twin.config.source)
    del values["max_position_embeddings"]
    config = hf.parse_config(values)
    engine(dataclasses.replace(twin, config=config), max_new_tokens=1000).check_length(batch)


def test_completions_fit_into_memory(twin, batch, monkeypatch):
    """What is counted is what the engine keeps: keys and values, and three arrays of the host."""

    def kept(rollouts, size):
        one = engine(twin, num_rollouts=rollouts, max_new_tokens=size)
        _, cache, _ = one.programs._state_shapes(LENGTH, Grid(2, rollouts))
        leaves = jax.tree.leaves(cache)
        return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) + (
            2 * rollouts * size * sum(np.dtype(kind).itemsize for kind in ("i4", "f4", "f4"))
        )

    monkeypatch.setattr(room, "cpu_gib", lambda count: kept(3, 20) / 2**30)
    engine(twin, num_rollouts=3, max_new_tokens=20).check_length(batch)
    with pytest.raises(ValueError, match=r"max_new_tokens is 21; give at most 20, as keys and"):
        engine(twin, num_rollouts=3, max_new_tokens=21).check_length(batch)
    with pytest.raises(ValueError, match=r"num_rollouts is 1000; give at most 4, as one token"):
        engine(twin, num_rollouts=1000, max_new_tokens=15).check_length(batch)


def test_generate_names_the_most(tiny_model):
    folder, _ = tiny_model
    model = vr.load(folder / "model", dtype="float32")
    chat = [{"role": "user", "content": "What moves?"}]
    taken = int((model.prepare([chat]).segment_ids > 0).sum())
    with pytest.raises(ValueError, match=rf"give at most {128000 - taken}, as the model has"):
        model.generate([chat], num_rollouts=1, max_new_tokens=10**9)
    with pytest.raises(ValueError, match=r"num_rollouts is 1000000000000; give at most"):
        model.generate([chat], num_rollouts=10**12)
