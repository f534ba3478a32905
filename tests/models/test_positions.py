"""How many positions SFT and GRPO compute at once where few are wanted, read from the program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import load_recipe

from videorft_jax.commands.grpo import read_options
from videorft_jax.data.batch import layout
from videorft_jax.grpo import update as updating
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.models import family
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.sft_step import make_sft_loss
from videorft_jax.training.weights import make_weights

LENGTH, R, C = 600, 2, 300


def loss_of(mode, attention):
    """(loss, totals, rows, model's config) for one row of text, 600 positions to score."""
    config, model = load_recipe(f"{mode}_7b"), parse_config(tiny_values())
    config.model.attention, config.model.remat = attention, "none"
    tokens = np.zeros(LENGTH, np.int32)
    sample = layout.make_sample(tokens, np.ones(LENGTH, bool), [], [], "hf5")
    batch = layout.pack([[sample]], LENGTH, 0, 0)
    options = make_train_options(config)
    weights = make_weights(options, model)
    if mode == "sft":
        loss, totals = make_sft_loss(options, weights)
        return loss, totals, batch, model
    config.grpo.beta = 0.0
    loss, totals = updating.make_loss(read_options(config), weights)
    groups = Groups(batch, np.zeros((1, R, C), np.int32), np.full((1, R), C, np.int32))
    rows = updating.GroupRows(groups, np.zeros((1, R), np.float32), np.zeros((1, R, C), np.float32))
    return loss, totals, rows, model


def lengths_of(mode, attention, name):
    """Finds all arrays [1, T, size] in the traced loss; the model's config calls `size` `name`."""
    loss, totals, rows, model = loss_of(mode, attention)
    rows = jax.tree.map(jnp.asarray, rows)
    program = jax.make_jaxpr(lambda params: loss(params, rows, totals(rows))[0])(
        family.abstract_params(model)
    )
    found = re.findall(rf"f32\[1,(\d+),{getattr(model.text, name)}\]", str(program))
    return set(map(int, found)) - {1, model.text.dim}  # the weights have those


@pytest.mark.parametrize(("attention", "wanted"), [("chunked", 256), ("reference", 512)])
@pytest.mark.parametrize("mode", ["sft", "grpo"])
def test_a_core_scores_half_as_many_positions_at_once(mode, attention, wanted):
    assert lengths_of(mode, attention, "vocab_size") == {wanted}


@pytest.mark.parametrize(
    ("mode", "length", "last"), [("sft", LENGTH, 256), ("grpo", LENGTH + R * C, R * C)]
)
def test_a_core_leaves_out_of_the_last_layer_what_predicts_nothing(mode, length, last):
    """The layer takes a packed row's answers in chunks, and a group's completions all at once."""
    assert lengths_of(mode, "chunked", "mlp_dim") == {length, last}
    assert lengths_of(mode, "reference", "mlp_dim") == {length}
