"""Qwen3-VL in GRPO: a group's row equals single rows, the sampler equals the trainer, and eight
devices equal one, DeepStack included."""

import functools

import hf_twin as hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videorft_jax.data.batch import layout
from videorft_jax.grpo.logprobs import Groups, score_completions
from videorft_jax.models import family
from videorft_jax.models.geometry import PLAIN_16
from videorft_jax.parallel import sharding
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import SamplingConfig, media_ids

B, R, C, LENGTH = 2, 3, 6, 64
# All heads and widths divide by 8 devices.
SIZES = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "vision_hidden_size": 64,
    "vision_num_heads": 8,
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A model, two prompts with clips of different grids, and completions for them."""
    twin = hf.make_twin(tmp_path_factory.mktemp("twin"), model_type="qwen3_vl", **SIZES)
    rng = np.random.default_rng(0)
    parts = [[3, (4, 3, 5, 2.0), 2], [4, (3, 2, 2, 1.3), 3, (1, 1, 2, None), 2]]
    samples = [
        hf.make_sample(
            rng,
            twin.config,
            [hf.random_clip(rng, *p, unit=32) if isinstance(p, tuple) else p for p in row],
        )
        for row in parts
    ]
    completions = rng.integers(0, 300, (B, R, C)).astype(np.int32)
    lengths = np.array([[5, 1, 3], [4, 0, 6]], np.int32)
    return twin, samples, completions, lengths


def pack(samples, length=LENGTH):
    return layout.pack([[sample] for sample in samples], length, 3, 2, geometry=PLAIN_16)


def single_rows(config, params, samples, completions):
    """Log-probabilities [B, R, C], a row of its own for each completion."""
    rows, starts = [], []
    for sample, group in zip(samples, completions, strict=True):
        for own in group:
            following = sample.positions[0, -1] + 1 + np.arange(C, dtype=np.int32)
            longer = sample._replace(
                tokens=np.concatenate([sample.tokens, own]),
                loss_mask=np.zeros(len(sample.tokens) + C, bool),
                positions=np.concatenate([sample.positions, np.tile(following, (3, 1))], 1),
                visual_slot=np.pad(sample.visual_slot, ((0, 0), (0, C)), constant_values=-1),
            )
            rows.append(longer)
            starts.append(len(sample.tokens) - 1)
    model = family.bind(config, params)
    logits = model.logits(model.hidden_states(pack(rows, LENGTH + C)))
    places = np.array(starts)[:, None] + np.arange(C)
    own = jnp.take_along_axis(logits, places[..., None], axis=1)
    logprobs = jax.nn.log_softmax(own).reshape(B, R, C, -1)
    return jnp.take_along_axis(logprobs, completions[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("shared", [False, True], ids=["clips", "visual_tokens_given"])
def test_a_group_equals_single_rows(problem, shared):
    """Values and every gradient; with given visual tokens those of the decoder alone."""
    twin, samples, completions, lengths = problem
    batch = pack(samples)
    mask = np.arange(C) < lengths[..., None]
    weights = np.cos(np.arange(B * R * C)).reshape(B, R, C) * mask

    def grouped(params):
        visual = None
        if shared:
            visual = family.bind(twin.config, params).encode_vision(batch)
            visual = jax.lax.stop_gradient(visual)
        groups = Groups(batch, completions, lengths, visual)
        found, _ = score_completions(family.bind(twin.config, params), groups)
        return (found * weights).sum(), found

    def alone(params):
        if shared:
            params = params | {"vision": jax.lax.stop_gradient(params["vision"])}
        found = single_rows(twin.config, params, samples, completions)
        return (found * weights).sum(), jnp.where(mask, found, 0)

    (_, ours), grads = jax.jit(jax.value_and_grad(grouped, has_aux=True))(twin.params)
    (_, theirs), wanted = jax.jit(jax.value_and_grad(alone, has_aux=True))(twin.params)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    deep = np.abs(np.asarray(wanted["vision"]["deepstack"]["up"])).max()
    assert (deep == 0) == shared
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max() + 1e-7)


@pytest.fixture(scope="module")
def sampling(problem):
    return SamplingConfig(
        num_rollouts=R, max_new_tokens=C, stop_ids=tuple(range(0, 300, 9)), pad_id=301,
        forbidden_ids=media_ids(problem[0].config), num_real_tokens=318,
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "buckets"), [("float32", 3), ("bfloat16", 1)])
def test_the_sampler_equals_the_trainer(problem, sampling, dtype, buckets):
    """Recorded log-probabilities are those of scoring: with compaction in float32 to 1e-4, without
    it in bfloat16 to 1e-2 in the mean, in whose steps the two sum in another order."""
    twin, samples, *_ = problem
    engine = RolloutEngine(twin.config, sampling, dtype=dtype, num_buckets=buckets, chunk=2)
    batch = pack(samples)
    out = engine.rollout(engine.prepare(twin.params), batch, np.array([5, 9]), seed=3)
    groups = Groups(batch, out.tokens, out.lengths)
    score = jax.jit(lambda p, g: score_completions(family.bind(twin.config, p), g)[0])
    mask = np.asarray(groups.mask)
    assert mask.sum() > 10
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), twin.params)
    gap = np.abs(np.asarray(out.logprobs) - np.asarray(score(params, groups)))[mask]
    if dtype == "float32":
        assert gap.max() < 1e-4
    else:
        assert 1e-5 < gap.mean() < 1e-2


SLOW = [pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 8, 1), (2, 2, 2))]


@pytest.mark.parametrize("shape", [(1, 1, 8), *SLOW], ids=str)
def test_eight_devices_equal_one(problem, shape):
    twin, samples, *_ = problem
    batch = pack(samples * 4)
    run = jax.jit(jax.value_and_grad(functools.partial(row_loss, twin.config)))
    value, grads = run(twin.params, batch)
    mesh = sharding.make_mesh(*shape)
    placed = jax.device_put(twin.params, sharding.state_shardings(twin.params, mesh))
    with jax.set_mesh(mesh):
        got, got_grads = run(placed, sharding.place_batch(batch, mesh))
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for ours, wanted in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads), strict=True):
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max() + 1e-7)


def row_loss(config, params, batch):
    model = family.bind(config, params)
    logits = model.logits(model.hidden_states(batch))
    return (jax.nn.logsumexp(logits, -1) * batch.loss_mask).sum()
