"""The decode program, compiled for TPUs that are not here: no copy of the cache, little memory.

Published 7B shapes: the loop over layers makes the compile as quick as that of two layers.
"""

import math
import os

import jax
import numpy as np
import pytest
from hlo import materialised
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from videorft_jax.models.qwen2_5_vl.config import hf_values, parse_config
from videorft_jax.parallel import sharding
from videorft_jax.rollout.compaction import Grid
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import SamplingConfig

LENGTH, NEW, ROLLOUTS = 2304, 768, 8
# topology; data, fsdp, tensor; prompts per shard; what the engine is asked for
CASES = {
    "v5p_data": ("v5p:2x2x1", (2, 2, 1), 8, {}),
    "v5p_tensor4": ("v5p:2x2x1", (1, 1, 4), 8, {}),  # one kv head on each chip
    "v5e_data2_tensor4": ("v5e:2x4", (2, 1, 4), 4, {}),
    "v5p_int8": ("v5p:2x2x1", (1, 2, 2), 8, {"int8_cache": True}),
}


@pytest.fixture(scope="module")
def topology():
    """Topologies by name; libtpu wants to be told that it is nowhere."""
    pytest.importorskip("libtpu")
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    os.environ.update({key: os.environ.get(key, value) for key, value in settings.items()})
    return lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name)


@pytest.mark.parametrize("name", CASES)
def test_decode_neither_copies_the_cache_nor_takes_memory(topology, name):
    place, shape, prompts, options = CASES[name]
    devices = np.array(topology(place).devices[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    config = parse_config(hf_values("7b"))
    sampling = SamplingConfig(num_rollouts=ROLLOUTS, max_new_tokens=NEW, num_real_tokens=151665)
    engine = RolloutEngine(config, sampling, mesh, **options)
    with jax.default_matmul_precision("default"):  # what runs on the chip, not the tests' float32
        program = engine.programs.decode(LENGTH, Grid(prompts, ROLLOUTS))

    text = config.text
    each = text.num_kv_heads // shape[2] * text.head_dim * prompts  # values of one layer's keys
    prefix, suffix = each * LENGTH, each * ROLLOUTS * NEW
    bytes_each = 1 if options else 2
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * 2 * text.num_layers * (prefix + suffix) * bytes_each
    # Donated and written in place.
    assert memory.alias_size_in_bytes >= 2 * text.num_layers * suffix * bytes_each
    sizes = {n * layers for n in (prefix, suffix) for layers in (1, text.num_layers)}
    assert not materialised(program.as_text(), sizes)
