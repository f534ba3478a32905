"""A run that saves every step until it is killed, whose state after k steps is known.

It is started as a program by the tests of interrupted saves.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.training.preemption import PreemptionGuard

SIDE = 512


@jax.jit
def advance(state):
    step = state["step"] + 1
    bits = jax.random.bits(jax.random.fold_in(jax.random.key(0), step), (SIDE, SIDE), jnp.uint32)
    return {"step": step, "w": state["w"] * 3 + bits}


def after(steps):
    """The state after `steps` applications of `advance`."""
    state = {"step": jnp.int32(0), "w": jnp.zeros((SIDE, SIDE), jnp.uint32)}
    for _ in range(steps):
        state = advance(state)
    return state


def run_victim(workdir, num_steps, port=None, process=None):
    if port:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", 2, int(process), cluster_detection_method="deactivate"
        )
        mesh = make_mesh(2, 4, 1)
    else:
        mesh = make_mesh(1, 1, 1)
    place = {
        "step": NamedSharding(mesh, PartitionSpec()),
        "w": NamedSharding(mesh, PartitionSpec("fsdp")),
    }
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(lambda: after(0)),
        place,
    )
    step_function = jax.jit(advance, donate_argnums=0, out_shardings=place)
    with Checkpointer(workdir, keep_last=2) as checkpointer, PreemptionGuard() as guard:
        checkpointer.check_disk(abstract)
        if checkpointer.latest_step() is None:
            state, done = jax.jit(lambda: after(0), out_shardings=place)(), 0
        else:
            state, meta = checkpointer.restore(None, abstract, {})
            done = meta["data"]
            assert int(state["step"]) == done
        for step in range(done + 1, int(num_steps) + 1):
            state = step_function(state)
            checkpointer.save(step, state, {"data": step})
            print("saved", step, flush=True)
            if guard.should_stop(step):
                break
        print("end", step, flush=True)
    if port:
        jax.distributed.shutdown()


def make_mesh(*shape):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


if __name__ == "__main__":
    run_victim(*sys.argv[1:])
