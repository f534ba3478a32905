"""Checkpoints: bit for bit on other meshes, and what accidents leave of them."""

import pathlib
import resource
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_victim import assert_equal, make_mesh
from jax.sharding import NamedSharding, PartitionSpec

from videorft_jax.checkpoints import manifest
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.checkpoints.manifest import MANIFEST

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


def test_what_is_left_of_a_checkpoint_is_not_given_up(saved):
    """A copy that broke off is no save that was cut off: a run that began anew would remove it."""
    folder = pathlib.Path(saved.folder)
    saved.check_lost()
    shutil.rmtree(folder / "00000001")
    next(path for path in (folder / "00000002").rglob("*") if path.name == "_METADATA").unlink()
    assert saved.latest_step() is None
    message = r"00000002: _METADATA is missing, and no other checkpoint is whole; copy it again, or"
    with pytest.raises(ValueError, match=message):
        saved.check_lost()
    (folder / "00000002" / MANIFEST).write_text("{")  # as a save that is killed leaves it
    saved.check_lost()


def test_checkpoints_of_a_later_release_are_neither_passed_over_nor_removed(saved):
    folder = saved.folder / "00000002"
    body = manifest.read(folder)
    body.pop("files")
    (folder / MANIFEST).unlink()
    manifest.write(folder, body | {"version": 2})
    message = "00000002: is of version 2, which a later release of videorft_jax wrote; install"
    for look in (saved.latest_step, saved.describe_kept, lambda: saved.check_disk(values())):
        with pytest.raises(ValueError, match=message):
            look()
    saved.save(3, put(values(), make_mesh(4, 2, 1)), META)
    with pytest.raises(RuntimeError, match="is of version 2"):
        saved.wait()
    assert {path.name for path in saved.folder.iterdir()} == {"00000001", "00000002", "00000003"}


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


@pytest.mark.parametrize("name", ["7", "0007", "\u0667", "\u00b2"])
def test_folders_of_other_names_are_left_alone(tmp_path, name):
    """A folder whose name is a number, but not one of ours, is no later step to be removed."""
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    state = put(values(), make_mesh(1, 8, 1))
    with Checkpointer(tmp_path, keep_last=1, async_save=False) as checkpointer:
        for step in (2, 3):
            checkpointer.save(step, state, META)
        assert checkpointer.latest_step() == 3
    assert {path.name for path in checkpointer.folder.iterdir()} == {"00000003", name}


def test_refuses_what_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        Checkpointer(tmp_path, keep_last=0)
    with Checkpointer(tmp_path) as checkpointer:
        state = put(values(), make_mesh(1, 8, 1))
        with pytest.raises(ValueError, match="metadata is not JSON"):
            checkpointer.save(1, state, {"loss": float("nan")})
        with pytest.raises(ValueError, match="opt_state is a int, not a jax.Array"):
            checkpointer.save(1, state._replace(opt_state=3), META)


def test_full_disk_and_unwritable_folder_are_found_at_start(tmp_path):
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
        with pytest.raises(RuntimeError, match=r"3: could not be saved \(File too large.*; free "):
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.latest_step() == 2
    saved.save(3, put(values(), make_mesh(1, 8, 1)), META)
    saved.wait()
    assert saved.latest_step() == 3
