"""`videorft plan`: the programs of Qwen3-VL, compiled for four kinds of TPU.

A DeepStack merger's features ride on the visual tokens, and the tower attends without windows; the
traffic between chips must be that of the first family all the same.
"""

import math

import pytest
from hlo import collectives, squeezed
from planned import (
    DIM,
    FROZEN,
    HEAD,
    ROLLOUTS,
    SHORT,
    activations,
    compile_programs,
    layer_weights,
    narrow_job,
    narrow_qwen3_model,
    sent,
    times,
)

from videorft_jax.planning import machines
from videorft_jax.planning.estimate import least_update
from videorft_jax.rollout.parameters import takes_apart

PLACES = (
    "v5e:2x2",
    pytest.param("v5p:2x2x1", marks=pytest.mark.slow),
    pytest.param("v6e:2x2", marks=pytest.mark.slow),
    pytest.param("tpu7x:2x2x1", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", params=PLACES)
def programs(request):
    """(job, compiled programs) of GRPO with a frozen tower, in few and short completions."""
    pytest.importorskip("libtpu")
    changes = FROZEN | SHORT | {"grpo.beta": 0.04, "rollout.num_rollouts": ROLLOUTS}
    # Each device runs the prompts of one row or more; with fewer, prompts are split by heads.
    changes["data.rows"] = machines.find(request.param).num_devices
    job = narrow_job(
        request.param, "grpo", size="qwen3vl_8b", make_model=narrow_qwen3_model, **changes
    )
    return job, compile_programs(job, {"vision", "prefill", "decode", "update"})


def num_values(messages):
    return sum(math.prod(dims) * count for dims, count in messages.items())


def test_visual_tokens_carry_the_features_of_every_merger(programs):
    job, compiled = programs
    assert job.weights.model.visual_dim == 4 * DIM
    assert list(compiled) == ["vision", "prefill", "decode", "update"]


def test_the_tower_sends_its_tokens_alone(programs):
    """Devices along tensor encode frame pairs of their own. Tokens are cut out before they travel
    or behind it, which is the compiler's choice."""
    job, compiled = programs
    found, shape = sent(compiled["vision"].hlo), job.shape
    assert {kind for kind, _ in found} == {"all-gather"}
    ((_, count),) = found["all-gather", 0].items()
    tokens = shape.rows // job.parts * shape.pairs * shape.windows * job.geometry.slots // 4
    assert count == 1
    assert num_values(found["all-gather", 0]) == tokens * job.weights.model.visual_dim


def test_the_prompt_sums_no_hidden_states(programs):
    """Devices along tensor gather a layer's weights and exchange its keys and values."""
    found = sent(programs[1]["prefill"].hlo)
    assert {kind for kind, _ in found} == {"all-gather", "all-to-all"}
    assert found["all-to-all", 1].total() == 2


def test_decode_sends_hidden_states_alone(programs):
    job, compiled = programs
    found = collectives(compiled["decode"].hlo)
    states = squeezed((job.shape.rows // job.parts, ROLLOUTS, DIM))
    assert {kind for kind, _, _ in found} == {"all-reduce", "all-gather"}
    assert max(math.prod(dims) for _, dims, _ in found) == math.prod(states)
    # Behind attention and MLP, over tensor.
    sums = {loops: n for (_, dims, loops), n in found.items() if dims == states}
    layers = job.weights.model.text.num_layers
    assert sums == ({1: 2 * layers} if takes_apart(job.mesh) else {2: 2})


def test_update_gathers_weights_once_a_pass_and_fits(programs):
    job, compiled = programs
    memory = compiled["update"].memory
    assert least_update(job) * 2**30 < memory.argument_size_in_bytes + memory.temp_size_in_bytes
    found = sent(compiled["update"].hlo)
    assert found["all-gather", 1] == times(layer_weights(job, "text"), 3)  # policy twice, reference
    assert found["all-gather", 0][HEAD] == 2
    # Gradients go back once; the compiler may put matrices of one width into one message.
    assert num_values(found["reduce-scatter", 1]) == num_values(
        layer_weights(job, "text", gathered=False)
    )
    states = activations(job, job.shape.length + ROLLOUTS * 128)
    assert found["all-reduce", 1][states] == 5 + 2
