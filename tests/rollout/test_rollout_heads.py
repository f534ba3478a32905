"""Adapters, eight-bit weights and resumed runs where more parts share the weights than there are
heads of keys."""

import hf_twin as hf
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from videorft_jax.data.batch import layout
from videorft_jax.models.lora import LoraConfig, adapt, init_lora
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.parallel import sharding
from videorft_jax.rollout import parameters
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.heads import widen
from videorft_jax.rollout.mesh import reshape
from videorft_jax.rollout.sampling import SamplingConfig

UIDS = np.array([1, 2])
KINDS = {
    "int8": {"int8_weights": True, "int8_cache": True},
    "adapters": {},
}


def test_zeros_stand_behind_each_group():
    """Two heads of keys and four of queries over eight parts: by hand, each head of keys four times
    and each pair of queries followed by two heads of zeros."""
    config = parse_config(tiny_values())
    leaf = np.arange(1, 5, dtype=np.float32)
    q = np.broadcast_to(leaf[None, None, :, None], (1, 3, 4, 2))
    k = np.broadcast_to(leaf[None, None, :2, None], (1, 3, 2, 2))
    tree = {"text": {"layers": {"attn": {"q": q, "k": k}}}}
    found = widen(tree, config, 8)["text"]["layers"]["attn"]
    np.testing.assert_array_equal(found["q"][0, 0, :, 0], [1, 2, 0, 0, 3, 4, 0, 0])
    np.testing.assert_array_equal(found["k"][0, 0, :, 0], [1, 1, 1, 1, 2, 2, 2, 2])
    assert widen(tree, config, 2)["text"]["layers"]["attn"]["q"] is q


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apart", [False, True])
def test_eight_devices_draw_what_one_draws(tmp_path, kind, apart, monkeypatch):
    """Also where the decoder's layers lie apart, as on some TPUs."""
    if apart:
        monkeypatch.setattr(parameters, "_FETCHING", (jax.devices()[0].device_kind,))
    twin = hf.make_twin(tmp_path, seed=3, num_hidden_layers=2)
    rng = np.random.default_rng(3)
    parts = [[4, hf.random_clip(rng, 4, 3, 5, 1.3), 6], [12]]
    rows = [[hf.make_sample(rng, twin.config, row)] for row in parts]
    batch = layout.pack(rows, 56, 3, 3)
    sampling = SamplingConfig(num_rollouts=4, max_new_tokens=6, pad_id=301)
    params = twin.params
    if kind == "adapters":
        config = LoraConfig(2, 4.0, (r"layers/(attn/(q|k|v|o|qkv|proj)|mlp/(gate|up|down))$",))
        lora = init_lora(params, config, jax.random.key(0))
        lora = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), lora)
        params = adapt(params, lora, config)
    training = sharding.make_mesh(fsdp=8)
    everywhere = NamedSharding(training, PartitionSpec())
    drawn = []
    for mesh in (None, reshape(training, (1, 1, 8))):
        engine = RolloutEngine(twin.config, sampling, mesh, dtype="float32", **KINDS[kind])
        given = params if mesh is None else jax.device_put(params, everywhere)
        drawn.append(engine.rollout(engine.prepare(given), batch, UIDS, seed=1, step=0))
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)
    np.testing.assert_allclose(drawn[0].logprobs, drawn[1].logprobs, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 2, 4), (1, 1, 8)])
def test_prompts_that_divide_over_all_devices(tmp_path, monkeypatch, sizes):
    """Their keys and values are computed where the rows are, and then dealt out by heads and by
    places; neither their 57 tokens nor the seven of a completion divide over devices that share a
    head. The layers lie apart, as on a TPU that fetches weights while it waits."""
    monkeypatch.setattr(parameters, "_FETCHING", (jax.devices()[0].device_kind,))
    twin = hf.make_twin(tmp_path, seed=3, num_hidden_layers=2)
    rng = np.random.default_rng(3)
    rows = [[hf.make_sample(rng, twin.config, [9 + number])] for number in range(8)]
    batch = layout.pack(rows, 57, 0, 0)
    sampling = SamplingConfig(num_rollouts=3, max_new_tokens=7, pad_id=301)
    drawn = []
    for mesh in (None, reshape(sharding.make_mesh(fsdp=8), sizes)):
        engine = RolloutEngine(twin.config, sampling, mesh, dtype="float32")
        everywhere = mesh and NamedSharding(mesh, PartitionSpec())
        params = engine.prepare(jax.device_put(twin.params, everywhere))
        assert isinstance(params["text"]["layers"], list) == (mesh is not None)
        drawn.append(engine.rollout(params, batch, np.arange(8), seed=1, step=0))
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)
    np.testing.assert_allclose(drawn[0].logprobs, drawn[1].logprobs, atol=1e-5)
