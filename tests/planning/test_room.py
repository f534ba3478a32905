"""Batches that cannot fit are refused by sizes alone, whatever trains on them."""

import jax
import pytest
from planned import load_recipe, narrow_model

from videorft_jax.commands.plan import read_options
from videorft_jax.data.loader.buckets import Bucket
from videorft_jax.planning import fits as room
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


def test_a_device_of_the_cpu_has_its_share_of_the_host():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) / 2**20
    assert room.device_gib() == pytest.approx(total / len(jax.local_devices()), rel=1e-3)
