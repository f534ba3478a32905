"""Checkpoints: bit for bit on other meshes and process counts, and after every kind of accident.

Run as a program this file is the victim: a loop that saves every step until it is killed.
"""

import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.checkpoints.manifest import MANIFEST
from videorft_jax.training.preemption import PreemptionGuard

META = {
    "data": {"batch": 7, "epoch": 1},
    "model": {"text": {"dim": 32}},
    "media": {"max_pixels": 100352, "fps": 2.0},
}
CONTRACT = {"model": META["model"], "media": META["media"]}


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict | None


def make_mesh(*shape):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))


def shardings(mesh):
    split = NamedSharding(mesh, PartitionSpec("fsdp", None))
    whole = NamedSharding(mesh, PartitionSpec())
    return State(whole, {"text": {"w": split, "b": whole}}, ({"mu": split}, ()), None)


def values():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 8)).astype(np.float32)
    bias = rng.standard_normal(5).astype(jnp.bfloat16)
    return State(np.int32(3), {"text": {"w": w, "b": bias}}, ({"mu": w * 2}, ()), None)


def put(state, mesh):
    return jax.tree.map(jax.device_put, state, shardings(mesh))


def target(mesh, state=None):
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state or values(),
        shardings(mesh),
    )


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture
def saved(tmp_path):
    """Steps 1 and 2 on a mesh of (4, 2, 1), and the step as value of every array."""
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            state = values()._replace(step=np.int32(step))
            checkpointer.save(step, put(state, make_mesh(4, 2, 1)), META)
        checkpointer.wait()
        yield checkpointer


@pytest.mark.parametrize("shape", [(4, 2, 1), (1, 8, 1), (1, 1, 1)])
def test_restores_on_another_mesh(saved, shape):
    mesh = make_mesh(*shape)
    state, meta = saved.restore(None, target(mesh), CONTRACT)
    assert_equal(state, values()._replace(step=np.int32(2)))
    assert meta == META
    assert state.params["text"]["w"].sharding == shardings(mesh).params["text"]["w"]
    state, _ = saved.restore(1, target(mesh), CONTRACT)
    assert int(state.step) == 1


def test_restores_a_part(saved):
    part = {"params": target(make_mesh(1, 8, 1)).params}
    state, _ = saved.restore(None, part, {}, part=True)
    assert_equal(state, {"params": values().params})
    with pytest.raises(
        ValueError, match=r"2 arrays are in the checkpoint and not in this run.*step"
    ):
        saved.restore(None, part, {})


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        (
            "media",
            "max_pixels",
            9,
            "media.max_pixels is 100352 in the checkpoint and 9 in this run",
        ),
        ("model", "text", {"dim": 64}, "model.text.dim is 32 in the checkpoint and 64"),
        ("model", "new", 1, "model.new is absent in the checkpoint and 1"),
    ],
)
def test_refuses_another_contract(saved, part, field, value, message):
    contract = CONTRACT | {part: CONTRACT[part] | {field: value}}
    with pytest.raises(ValueError, match=message) as error:
        saved.restore(None, target(make_mesh(1, 8, 1)), contract)
    assert "\n" not in str(error.value)


def test_refuses_other_arrays(saved):
    mesh = make_mesh(1, 8, 1)
    state = values()
    wrong = state._replace(step=np.float32(0))  # Orbax would cast it without a word
    with pytest.raises(ValueError, match=r"step is int32 \[\] in the checkpoint and float32 \[\]"):
        saved.restore(None, target(mesh, wrong), CONTRACT)
    abstract = target(mesh)._replace(opt_state=({"nu": target(mesh).opt_state[0]["mu"]}, ()))
    with pytest.raises(ValueError, match=r"1 arrays are not in the checkpoint.*opt_state/0/nu"):
        saved.restore(None, abstract, CONTRACT)


def test_every_flipped_byte_is_found(saved):
    """One byte in each file of the newest step in turn: the step before is used."""
    folder = saved.folder / "00000002"
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    files = [path for path in files if path.stat().st_size]
    assert len(files) >= 8
    abstract = target(make_mesh(1, 8, 1))
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        state, _ = saved.restore(None, abstract, CONTRACT)
        assert_equal(state, values()._replace(step=np.int32(1)))
        with pytest.raises(ValueError, match=r"restore another step"):
            saved.restore(2, abstract, CONTRACT)
        path.write_bytes(content)
    state, _ = saved.restore(None, abstract, CONTRACT)
    assert int(state.step) == 2


@pytest.mark.parametrize("accident", ["no manifest", "torn manifest", "truncated", "empty folder"])
def test_step_before_is_used(saved, accident):
    folder = saved.folder / "00000002"
    if accident == "no manifest":
        (folder / MANIFEST).unlink()
    elif accident == "torn manifest":
        (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-40])
    elif accident == "truncated":
        files = [path for path in pathlib.Path(folder).rglob("*") if path.name != MANIFEST]
        largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
        largest.write_bytes(largest.read_bytes()[:-1])
    else:
        (saved.folder / "00000005").mkdir()
        (saved.folder / "00000009.orbax-checkpoint-tmp").mkdir()
    newest = 2 if accident == "empty folder" else 1
    assert saved.latest_step() == newest
    state, _ = saved.restore(None, target(make_mesh(1, 8, 1)), CONTRACT)
    assert int(state.step) == newest
    saved.save(6, put(values(), make_mesh(4, 2, 1)), META)  # clears what is damaged
    saved.wait()
    names = {path.name for path in saved.folder.iterdir() if path.name.isdigit()}
    assert names == ({"00000002", "00000006"} if newest == 2 else {"00000001", "00000006"})


def test_nothing_to_restore(saved, tmp_path):
    shutil.rmtree(tmp_path / "checkpoints" / "00000001")
    (tmp_path / "checkpoints" / "00000002" / MANIFEST).unlink()
    assert saved.latest_step() is None
    with pytest.raises(ValueError, match="no whole checkpoint"):
        saved.restore(None, target(make_mesh(1, 8, 1)), CONTRACT)
    with pytest.raises(ValueError, match="00000007: no such folder"):
        saved.restore(7, target(make_mesh(1, 8, 1)), CONTRACT)


def test_keeps_last_and_every(tmp_path):
    state = put(values(), make_mesh(1, 8, 1))
    with Checkpointer(tmp_path, keep_last=2, keep_every=4, async_save=False) as checkpointer:
        for step in range(1, 8):
            checkpointer.save(step, state, META)
        kept = {int(path.name) for path in checkpointer.folder.iterdir()}
        assert kept == {4, 6, 7}
        checkpointer.restore(4, target(make_mesh(1, 8, 1)), CONTRACT)
        checkpointer.save(5, state, META)  # went back: 6 and 7 belong to a run that is no more
        assert {int(path.name) for path in checkpointer.folder.iterdir()} == {4, 5}


def test_refuses_what_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        Checkpointer(tmp_path, keep_last=0)
    with Checkpointer(tmp_path) as checkpointer:
        state = put(values(), make_mesh(1, 8, 1))
        with pytest.raises(ValueError, match="metadata is not JSON"):
            checkpointer.save(1, state, {"loss": float("nan")})
        with pytest.raises(ValueError, match="opt_state is a int, not a jax.Array"):
            checkpointer.save(1, state._replace(opt_state=3), META)


def test_full_disk_and_unwritable_folder_are_found_at_start(victims, tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.check_disk(values())
        assert list(checkpointer.folder.iterdir()) == []
        free = shutil.disk_usage(tmp_path).free
        huge = {"w": jax.ShapeDtypeStruct((free // 4,), jnp.float32)}
        with pytest.raises(ValueError, match=r"GiB free, .* needed .* lower keep_last"):
            checkpointer.check_disk(huge)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # EFBIG after 64 KiB
        try:
            with pytest.raises(ValueError, match=r"cannot be written .*choose another workdir"):
                checkpointer.check_disk(values())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", "/proc/nowhere"):
        with (
            Checkpointer(folder) as checkpointer,
            pytest.raises(ValueError, match="cannot be written"),
        ):
            checkpointer.check_disk(values())


def test_failed_save_is_reported_and_the_last_good_step_stays(saved):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": jax.random.normal(jax.random.key(0), (1 << 16,))}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        saved.save(3, big, META)
        with pytest.raises(RuntimeError, match=r"00000003: could not be saved .*free space"):
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.latest_step() == 2
    saved.save(3, put(values(), make_mesh(1, 8, 1)), META)
    saved.wait()
    assert saved.latest_step() == 3


# The victim: a run whose state after k steps is known, `advance` applied k times.
SIDE = 512


@jax.jit
def advance(state):
    step = state["step"] + 1
    bits = jax.random.bits(jax.random.fold_in(jax.random.key(0), step), (SIDE, SIDE), jnp.uint32)
    return {"step": step, "w": state["w"] * 3 + bits}


def after(steps):
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


def start(victims, *arguments, devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    victims.append(victim)
    return victim


@pytest.fixture
def victims():
    """Processes that a test started; none outlives it."""
    started = []
    yield started
    for victim in started:
        victim.kill()
        victim.wait()
        victim.stdout.close()


def check_newest(workdir):
    """The newest checkpoint is what its step should hold; returns that step."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpointer(workdir) as checkpointer:
        step = checkpointer.latest_step()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), after(0)
        )
        state, meta = checkpointer.restore(None, abstract, {})
    assert meta == {"data": step}
    assert_equal(state, after(step))
    return step


def half_saved(folder):
    """A save under way: Orbax's temporary folder, or a step that has no manifest yet."""
    names = os.listdir(folder) if folder.exists() else []
    return any("tmp" in name or not (folder / name / MANIFEST).exists() for name in names)


def test_killed_at_any_moment_and_resumed(tmp_path, victims):
    """SIGKILL in the middle of a save and at random moments; each restart goes on from there."""
    pause = random.Random(0)
    reached = 0
    for moment in ("saving", "random", "saving"):
        victim = start(victims, tmp_path, 10**6)
        for line in victim.stdout:  # three steps further at least
            if line.startswith("saved") and int(line.split()[1]) >= reached + 3:
                break
        if moment == "saving":
            while not half_saved(tmp_path / "checkpoints"):
                pass
        else:
            time.sleep(pause.uniform(0, 0.3))
        victim.kill()
        victim.communicate()
        step = check_newest(tmp_path)
        assert step >= reached + 2
        reached = step
    victim = start(victims, tmp_path, reached + 2)
    output, _ = victim.communicate(timeout=120)
    assert victim.returncode == 0
    assert output.split("\n")[0] == f"saved {reached + 1}"  # nothing done twice, nothing skipped
    assert check_newest(tmp_path) == reached + 2


def test_sigterm_saves_and_exits_cleanly(tmp_path, victims):
    victim = start(victims, tmp_path, 10**6)
    victim.stdout.readline()
    victim.send_signal(signal.SIGTERM)
    output, _ = victim.communicate(timeout=120)
    assert victim.returncode == 0
    assert check_newest(tmp_path) == int(output.split()[-1])


def test_second_sigterm_ends_at_once():
    handler = signal.getsignal(signal.SIGTERM)
    with PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop(2)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == handler


def test_two_processes(tmp_path, victims):
    """One process saves, two of four devices go on; SIGTERM to one stops both on one step."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, after(3), {"data": 3})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for process in range(2):
        start(victims, tmp_path, 10**6, port, process, devices=4)
    for line in victims[0].stdout:
        if line == "saved 4\n":
            break
    victims[1].send_signal(signal.SIGTERM)
    outputs = [victim.communicate(timeout=120)[0] for victim in victims]
    assert [victim.returncode for victim in victims] == [0, 0]
    ends = [int(output.split()[-1]) for output in outputs]
    assert ends[0] == ends[1] == check_newest(tmp_path)


if __name__ == "__main__":
    run_victim(*sys.argv[1:])
