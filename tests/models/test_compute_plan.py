"""What XLA is told of a platform reaches the compiler of rollout and update."""

import jax
import jax.numpy as jnp
import optax
import pytest

from videorft_jax.models import compute_plan
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.parallel import sharding
from videorft_jax.rollout.compaction import Grid
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import SamplingConfig
from videorft_jax.training.step import init_state, make_step


def compile_step(shardings):
    """Compiles a step that fits one number, whose state lies as `shardings` says."""

    def loss(params, rows, counts):
        return jnp.square(params["text"]["final_norm"] - rows).sum() / counts, {}

    optimizer = optax.sgd(0.1)
    state = init_state({"text": {"final_norm": jnp.ones(1)}}, {}, optimizer)
    found = sharding.state_shardings(state, sharding.make_mesh()) if shardings else None
    step = make_step(
        loss, lambda rows: jnp.float32(len(rows)), optimizer, dtype=jnp.float32, shardings=found
    )
    return step.lower(state, jnp.zeros(2)).compile()


def compile_rollout(kind):
    sampling = SamplingConfig(num_rollouts=1, max_new_tokens=2)
    engine = RolloutEngine(parse_config(tiny_values()), sampling, dtype="float32")
    if kind == "decode":
        return engine.programs.decode(8, Grid(2, 1))
    return engine.programs.compact(8, Grid(2, 1), Grid(1, 1))


def refuse_options_of_cpus(monkeypatch):
    monkeypatch.setattr(compute_plan, "_COMPILER_OPTIONS", {"cpu": {"xla_no_such_option": 1}})
    return pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option")


@pytest.mark.parametrize(
    ("compiles", "what"),
    [
        (compile_step, False),
        (compile_step, True),
        (compile_rollout, "decode"),
        (compile_rollout, "compact"),
    ],
)
def test_options_reach_the_compiler(monkeypatch, compiles, what):
    """XLA refuses an option that it does not know, and takes those that a CPU is given."""
    compiles(what)
    with refuse_options_of_cpus(monkeypatch):
        compiles(what)


def test_the_devices_of_the_state_choose_the_options_of_a_step(monkeypatch):
    """As where a plan compiles for a TPU on a host that has none, here the other way round."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with refuse_options_of_cpus(monkeypatch):
        compile_step(True)
    compile_step(False)


def test_only_cpus_are_told_of_their_registers():
    assert compute_plan.compiler_options("cpu") == {"xla_cpu_prefer_vector_width": 512}
    assert [compute_plan.compiler_options(name) for name in ("tpu", "gpu")] == [{}, {}]
