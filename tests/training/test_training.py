"""The training step: against Hugging Face's gradients, PyTorch's AdamW, and against itself."""

import dataclasses
import functools

import hf_twin as hf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from videorft_jax import losses
from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.training.optimizer import OptimOptions, make_optimizer
from videorft_jax.training.step import init_state, make_step
from videorft_jax.training.trees import join, path_of, split_trained

PLAIN = OptimOptions(
    name="adamw",
    lr=1e-2,
    schedule="linear",
    warmup_steps=0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    clip=0.0,
    mu_dtype="float32",
    ema_decay=0.0,
)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A tiny model with Hugging Face's twin, and four conversations."""
    twin = hf.make_twin(tmp_path_factory.mktemp("twin"), seed=3)
    rng = np.random.default_rng(3)
    samples, clips = [], []
    for parts in ([3, (2, 3, 2, 2.0), 4, 5], [6, 4], [2, (3, 2, 2, 1.0), 3, 6], [5, 7]):
        made = [hf.random_clip(rng, *p) if isinstance(p, tuple) else p for p in parts]
        samples.append(hf.make_sample(rng, twin.config, made))
        clips.append([part for part in made if isinstance(part, hf.Clip)])
    return twin, samples, clips


def unpacked(samples):
    return layout.pack([[sample] for sample in samples], 32, 4, 1)


def sft(config, params, batch, count, remat="none"):
    model = family.bind(config, params)
    _, predicts = losses.shift(batch.tokens, batch.loss_mask)
    hidden = model.hidden_states(batch, needed=predicts, remat=remat)
    return losses.sft_loss(hidden, model.text.output_weight, batch.tokens, batch.loss_mask, count)


def count(batch):
    return batch.loss_mask.sum().astype(jnp.float32)


@functools.cache
def gradient(config, remat="none"):
    def run(params, batch):
        loss = functools.partial(sft, config, remat=remat)
        return jax.value_and_grad(lambda p: loss(p, batch, count(batch))[0])(params)

    return jax.jit(run)


def assert_trees_close(got, wanted, relative):
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(ours, theirs, atol=relative * np.abs(theirs).max() + 1e-9)


def test_sft_equals_hugging_face(problem, tmp_path):
    twin, samples, clips = problem
    loss, grads = gradient(twin.config)(twin.params, unpacked(samples))
    inputs, labels = hf.hf_inputs(twin.config, samples, clips, length=32)
    expected = twin.hf(**inputs, labels=labels).loss
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    expected.backward()
    assert_trees_close(grads, hf.gradients(tmp_path / "gradients", twin), 1e-5)


def test_sft_of_long_rows_equals_hugging_face(problem, tmp_path):
    """Rows have more than 512 tokens, where a CPU leaves out most of the last layer."""
    twin, rng, samples, clips = problem[0], np.random.default_rng(5), [], []
    for text, answer in ((200, 290), (480, 30)):
        clip = hf.random_clip(rng, 2, 3, 2, 2.0)
        samples.append(hf.make_sample(rng, twin.config, [text, clip, 8, answer]))
        clips.append([clip])
    batch = layout.pack([[sample] for sample in samples], 540, 1, 1)
    loss, grads = gradient(twin.config)(twin.params, batch)
    inputs, labels = hf.hf_inputs(twin.config, samples, clips, length=540)
    twin.hf.zero_grad()
    expected = twin.hf(**inputs, labels=labels).loss
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    expected.backward()
    assert_trees_close(grads, hf.gradients(tmp_path / "gradients", twin), 1e-5)


def test_packed_equals_unpacked(problem):
    twin, samples, _ = problem
    packed = layout.pack([[samples[2], samples[3], samples[0]], [samples[1]]], 96, 6, 2)
    loss, grads = gradient(twin.config)(twin.params, unpacked(samples))
    packed_loss, packed_grads = gradient(twin.config)(twin.params, packed)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    assert_trees_close(packed_grads, grads, 1e-5)


@pytest.mark.parametrize("remat", ["full", "save_attention", "save_gate", "save_dots"])
def test_remat_changes_nothing(problem, remat):
    twin, samples, _ = problem
    loss, grads = gradient(twin.config)(twin.params, unpacked(samples))
    got_loss, got = gradient(twin.config, remat)(twin.params, unpacked(samples))
    np.testing.assert_allclose(got_loss, loss, rtol=1e-6)
    assert_trees_close(got, grads, 1e-5)


def take_step(problem, freeze=(), accumulate=1):
    twin, samples, _ = problem
    optimizer = make_optimizer(change(clip=1.0), 10)
    trained, frozen = split_trained(twin.params, freeze)
    state = init_state(trained, frozen, optimizer)
    step = make_step(
        functools.partial(sft, twin.config), count, optimizer, dtype=jnp.float32,
        accumulate=accumulate,
    )  # fmt: skip
    return step(jax.tree.map(jnp.copy, state), unpacked(samples))


@pytest.fixture(scope="module")
def one_step(problem):
    return take_step(problem)


def test_accumulated_equals_one_batch(problem, one_step):
    """The four rows hold 5, 4, 6 and 7 targets: an average of averages would differ."""
    state, metrics = take_step(problem, accumulate=4)
    np.testing.assert_allclose(metrics["loss"], one_step[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], one_step[1]["grad_norm"], rtol=1e-5)
    first = one_step[0].opt_state[1][0].mu  # Adam's sign-like update would magnify rounding
    assert_trees_close(state.opt_state[1][0].mu, first, 1e-4)


def test_slices_of_leaves_without_values():
    """The pixels have none where visual tokens are given. Metrics of slices add up, but for a
    maximum, which here stands in the last slice."""
    params = {"text": {"w": jnp.ones(3)}}
    optimizer = make_optimizer(change(), 10)
    batch = {"x": jnp.arange(24.0).reshape(8, 3), "pixels": jnp.zeros((8, 0, 2), jnp.uint8)}

    def loss(params, rows, counts):
        assert rows["pixels"].shape == (2, 0, 2)
        each = (rows["x"] @ params["text"]["w"]) / counts
        return each.sum(), {"each": each.sum(), "each_max": each.max()}

    step = make_step(loss, lambda batch: jnp.float32(8), optimizer, dtype=jnp.float32, accumulate=4)
    _, metrics = step(init_state(params, {}, optimizer), batch)
    np.testing.assert_allclose(metrics["loss"], 276 / 8)
    np.testing.assert_allclose(metrics["each"], 276 / 8)
    np.testing.assert_allclose(metrics["each_max"], (21 + 22 + 23) / 8)


@pytest.mark.parametrize("freeze", [("vision",), ("text", "merger")])
def test_frozen_parts_do_not_move_by_a_bit(problem, freeze):
    twin = problem[0]
    state, _ = take_step(problem, freeze=freeze)
    joined = join(state.params, state.frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(twin.params)
    for keys, before in jax.tree_util.tree_leaves_with_path(twin.params):
        path = path_of(keys)
        part = "text"
        if path.startswith("vision"):
            part = "merger" if "merger" in path else "vision"
        after = functools.reduce(lambda tree, name: tree[name], path.split("/"), joined)
        same = np.array_equal(before, after)
        # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
        assert same == (part in freeze) or path.endswith("k_bias"), path


def torch_adamw(values, gradients, config):
    """The same updates by PyTorch, whose decay groups Hugging Face's trainer chooses by name."""
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    decayed = [p for name, p in parameters.items() if not name.endswith(("norm", "bias"))]
    plain = [p for name, p in parameters.items() if name.endswith(("norm", "bias"))]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay},
         {"params": plain, "weight_decay": 0.0}],
        lr=config.lr, betas=(config.b1, config.b2), eps=config.eps,
    )  # fmt: skip
    schedules = {
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
    }
    schedule = schedules[config.schedule](optimizer, config.warmup_steps, 10)
    for step in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(step[name])
        if config.clip:
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
        optimizer.step()
        schedule.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    "config",
    [
        change(clip=0.5),
        change(schedule="cosine", warmup_steps=3, weight_decay=0.1),
        change(warmup_steps=2, weight_decay=0.3, clip=2.0, b2=0.95),
    ],
)
def test_optimizer_equals_pytorch(config):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in ("w", "norm", "q_bias")}
    gradients = [
        {name: rng.normal(size=(4, 3)).astype(np.float32) for name in values} for _ in range(8)
    ]
    optimizer = make_optimizer(config, 10)
    params, opt_state = values, optimizer.init(values)
    for grads in gradients:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    expected = torch_adamw(values, gradients, config)
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, atol=1e-6, rtol=1e-5)


# A linear model is enough for what does not depend on the network.


def line(joined, rows, total):
    error = rows["x"] @ joined["w"].astype(jnp.float32) - rows["y"]
    return (error**2).sum() / total, {"rows": jnp.float32(len(error))}


def line_problem(config, dtype=jnp.float32, scale=0.02):
    rng = np.random.default_rng(1)
    batches = [
        {"x": rng.normal(size=(8, 5)).astype(np.float32), "y": np.ones(8, np.float32)}
        for _ in range(6)
    ]
    optimizer = make_optimizer(config, 10)
    weights = {"w": jnp.asarray(rng.normal(size=5) * scale, jnp.float32)}
    state = init_state(weights, {}, optimizer, ema=config.ema_decay > 0)
    step = make_step(
        line, lambda batch: jnp.float32(8), optimizer, dtype=dtype, ema_decay=config.ema_decay
    )
    return state, step, batches


def test_small_steps_move_bfloat16_models_as_they_move_float32_ones():
    """At lr 1e-6 an update is far below half an ulp of a bfloat16 weight of 0.02 (6e-5)."""
    moved = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        state, step, batches = line_problem(change(lr=1e-6, schedule="constant"), dtype)
        start = np.asarray(state.params["w"])
        for _ in range(20):
            for batch in batches:
                state, _ = step(state, batch)
        moved[dtype] = np.asarray(state.params["w"]) - start
    assert np.abs(moved[jnp.float32]).mean() > 3e-5
    np.testing.assert_allclose(moved[jnp.bfloat16], moved[jnp.float32], atol=3e-6)
    as_bf16 = start.astype(jnp.bfloat16)
    for _ in range(120):  # what a run without master weights does
        as_bf16 = (as_bf16 + np.float32(1e-6)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(as_bf16, start.astype(jnp.bfloat16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    state, step, batches = line_problem(PLAIN)
    poison = {"x": batches[0]["x"] * np.float32(bad), "y": batches[0]["y"]}
    state, _ = step(state, batches[0])
    before = jax.tree.map(np.array, state)
    for in_row in (1, 2):
        state, metrics = step(state, poison)
        assert (metrics["skipped"], metrics["skipped_in_row"]) == (in_row, in_row)
    assert state.step == 3
    for after, old in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((before.params, before.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(after, old)
    state, metrics = step(state, batches[1])
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (2, 0)
    assert not np.array_equal(state.params["w"], before.params["w"])


def test_average_of_weights():
    state, step, batches = line_problem(change(ema_decay=0.9))
    average = np.asarray(state.params["w"])
    for batch in batches:
        state, _ = step(state, batch)
        average = 0.9 * average + 0.1 * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)


def test_bfloat16_first_moment_and_adafactor_learn():
    steady = {"schedule": "constant", "lr": 0.1}
    for config in (change(mu_dtype="bfloat16", **steady), change(name="adafactor", **steady)):
        state, step, batches = line_problem(config, scale=1.0)
        curve = []
        for _ in range(5):
            for batch in batches:
                state, metrics = step(state, batch)
                curve.append(float(metrics["loss"]))
        assert np.mean(curve[-6:]) < 0.7 * np.mean(curve[:6])
    state, step, batches = line_problem(change(mu_dtype="bfloat16"))
    assert step(state, batches[0])[0].opt_state[0].mu["w"].dtype == jnp.bfloat16


def test_bad_names():
    with pytest.raises(ValueError, match="optimizer is 'sgd'; choose one of"):
        make_optimizer(change(name="sgd"), 10)
    with pytest.raises(ValueError, match="schedule is 'step'; choose one of"):
        make_optimizer(change(schedule="step"), 10)
    with pytest.raises(ValueError, match=r"freeze names \['audio'\]; choose among"):
        split_trained({"text": {"embed": 1}}, ("audio",))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        split_trained({"text": {"embed": 1}}, ("text",))
