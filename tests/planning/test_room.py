"""Batches that cannot fit are refused by sizes alone, whatever trains on them."""

import dataclasses

import jax
import pytest
from planned import load_recipe, narrow_model

from videorft_jax.commands.plan import read_options
from videorft_jax.data.loader.buckets import Bucket
from videorft_jax.planning import fits as room
from videorft_jax.planning import machines, plan
from videorft_jax.training.run import make_mesh
from videorft_jax.training.weights import make_weights


@pytest.mark.parametrize("mode", ["sft", "grpo"])
def test_refuses_rows_that_no_device_here_can_hold(mode):
    """Whichever of the buckets it is; rows of all processes count, not those of this one."""
    config = load_recipe(mode)
    config.model.dtype = "float32"
    options = read_options(config, mode)
    grpo = None if mode == "sft" else options
    options = options if grpo is None else grpo.train
    mesh, weights = make_mesh(options), make_weights(options, narrow_model())
    small = Bucket(length=1024, pairs=8, windows=4, rows=1)
    check = room.MemoryCheck(options, grpo)
    check(weights, mesh, [small])
    wide = small._replace(length=1 << 22, pairs=1 << 16)
    expected = f"{config.name}: data.rows = {config.data.rows} rows of {wide.length} tokens cannot"
    with pytest.raises(ValueError, match=expected):
        check(weights, mesh, [small, wide])


def test_memory_is_explained_on_the_mesh_that_auto_chose(monkeypatch):
    """7B on v6e-16 draws on another mesh, where the update needs most; on the training's, where the
    weights are whole on each chip, it would be the prefill."""
    monkeypatch.setattr(room, "device_gib", lambda: None)
    config = load_recipe("grpo")
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.train.accumulate = 64, 4
    said = []
    for mesh in ("auto", "1,2,8", ""):
        config.rollout.mesh = mesh
        options = read_options(config)
        job = plan.make_job(options, machines.find("v6e-16"))
        check = room.MemoryCheck(job.train, dataclasses.replace(options, train=job.train))
        shape = job.shape
        check(job.weights, job.mesh, [Bucket(shape.length, shape.pairs, shape.windows, rows=64)])
        with pytest.raises(RuntimeError) as caught, check.explained():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")
        said.append(str(caught.value))
    assert said[0] == said[1] != said[2]
    assert "GiB for update of" in said[0]
    assert "GiB for prefill of" in said[2]


def test_a_device_of_the_cpu_has_its_share_of_the_host():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) / 2**20
    assert room.device_gib() == pytest.approx(total / len(jax.local_devices()), rel=1e-3)
