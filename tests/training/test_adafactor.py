"""Adafactor against PyTorch's, and that its decay of weights is a share of the learning rate."""

import jax
import numpy as np
import optax
import pytest
import torch

from videorft_jax.training.optimizer import OptimOptions, make_optimizer
from videorft_jax.training.trees import path_of

SIDE = 128  # the least side of a matrix that is factored
STEPS = 6


def make_options(**changes):
    fields = {
        "name": "adafactor", "lr": 0.01, "schedule": "constant", "warmup_steps": 0, "b1": 0.9,
        "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip": 0.0, "mu_dtype": "float32",
        "ema_decay": 0.0,
    }  # fmt: skip
    return OptimOptions(**fields | changes)


def run(options, values, gradients):
    optimizer = make_optimizer(options, len(gradients))
    params, state = values, optimizer.init(values)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def run_torch(options, values, gradients):
    """PyTorch's Adafactor with the learning rate of `options` in each step; the norm has no
    decay."""
    found = {}
    for name, value in values.items():
        weight = torch.nn.Parameter(torch.from_numpy(np.array(value)))
        decay = 0.0 if name == "norm" else options.weight_decay
        optimizer = torch.optim.Adafactor([weight], lr=options.lr, weight_decay=decay)
        for number, grads in enumerate(gradients):
            if options.schedule == "linear":
                optimizer.param_groups[0]["lr"] = options.lr * (1 - number / len(gradients))
            weight.grad = torch.from_numpy(grads[name])
            optimizer.step()
        found[name] = weight.detach().numpy()
    return found


def problem():
    rng = np.random.default_rng(0)

    def draw():
        shapes = {"w": (SIDE, SIDE), "norm": (SIDE,)}
        return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}

    return draw(), [draw() for _ in range(STEPS)]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adafactor_equals_pytorch(schedule, weight_decay):
    values, gradients = problem()
    options = make_options(schedule=schedule, weight_decay=weight_decay)
    params, _ = run(options, values, gradients)
    for name, value in run_torch(options, values, gradients).items():
        np.testing.assert_allclose(params[name], value, atol=2e-6, rtol=1e-5, err_msg=name)


def test_a_decay_of_the_recipes_moves_weights_by_little():
    """Without a gradient 1,000 steps at 1e-6 with a decay of 0.01 take 1e-5 of a weight."""
    values = {"w": np.ones((4, 4), np.float32)}
    zeros = {"w": np.zeros((4, 4), np.float32)}
    params, _ = run(make_options(lr=1e-6, weight_decay=0.01), values, [zeros] * 20)
    np.testing.assert_allclose(params["w"], 1.0, atol=1e-5)


def test_a_checkpoint_without_decay_goes_on_with_it():
    """The arrays of the state lie at the same paths."""
    values, gradients = problem()
    states = [run(make_options(weight_decay=d), values, gradients[:1])[1] for d in (0.0, 0.1)]
    first, second = (
        {path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}
        for state in states
    )
    assert first == second
