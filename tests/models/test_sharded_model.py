"""Eight simulated devices in four mesh shapes give the numbers of one."""

import hf_twin as hf
import jax
import numpy as np
import pytest

from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.parallel import sharding

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]


@pytest.fixture(scope="module")
def problem():
    config = parse_config(tiny_values())
    params = family.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 4, params)  # logits of order one
    rng = np.random.default_rng(0)
    samples = []
    for b in range(8):
        clip = hf.random_clip(rng, 2 + b % 3, 2 + b % 4, 3, fps=2.0)
        samples.append(hf.make_sample(rng, config, [3 + b, clip, 4]))
    batch = layout.pack([[sample] for sample in samples], 48, 2, 2)

    def loss(params, batch):
        model = family.bind(config, params)
        logits = model.logits(model.hidden_states(batch))
        return (jax.nn.logsumexp(logits, -1) * batch.loss_mask).sum(), logits

    step = jax.jit(jax.grad(loss, has_aux=True))
    return config, params, batch, step, step(params, batch)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_mesh_equals_one_device(problem, shape):
    config, params, batch, step, (grads, logits) = problem
    mesh = sharding.make_mesh(*shape)
    placed = jax.device_put(params, sharding.state_shardings(params, mesh))
    with jax.set_mesh(mesh):
        got_grads, got_logits = step(placed, sharding.place_batch(batch, mesh))
    real = batch.segment_ids > 0
    wanted = np.asarray(logits)[real]
    np.testing.assert_allclose(
        np.asarray(got_logits)[real], wanted, atol=1e-5 * np.abs(wanted).max()
    )
    for ours, wanted in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads), strict=True):
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max() + 1e-8)
