"""The published sizes with random weights on one accelerator, for benchmarks that need one.

Nothing here decodes or loads: where such a card stands, neither av nor grain need be installed.
"""

import functools
import importlib
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from videorft_jax.metrics.chips import find_chip
from videorft_jax.models import family
from videorft_jax.models.qwen2_5_vl.config import hf_values, parse_config
from videorft_jax.parallel import sharding
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.step import init_state
from videorft_jax.training.weights import make_weights

SIDE, WIDE = 224, 448  # 128 visual tokens a frame pair, the budget of training
SMOKE = {"num_hidden_layers": 2, "vision_depth": 2, "vision_fullatt_block_indexes": [1]}
SMOKE |= {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
SMOKE |= {"intermediate_size": 256, "vision_hidden_size": 160, "vision_num_heads": 2}
SMOKE |= {"vision_intermediate_size": 128, "vision_out_hidden_size": 256}


def load_recipe(name: str):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
    return importlib.import_module(name).get_config()


def model_values(name: str, smoke: bool) -> dict:
    """config.json of the size that a recipe names, or of a few narrow layers of it."""
    size = next(part for part in name.split("_") if part in ("3b", "7b"))
    return hf_values(size, **(SMOKE if smoke else {}))


class Placed:
    """Weights, state and mesh of a recipe on the first device; the mesh is set from here on."""

    def __init__(self, config, values):
        self.options = options = make_train_options(config)
        self.model = parse_config(values)
        self.weights = make_weights(options, self.model)
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(self.mesh)
        self.optimizer = make_optimizer(options.optim, 1000)
        state = jax.eval_shape(self._build, jax.random.key(0))
        self.shardings = sharding.state_shardings(state, self.mesh, config.name)
        build = jax.jit(self._build, out_shardings=self.shardings)
        self.state = build(jax.random.key(0))

    def _build(self, key):
        """Weights as the published ones: bfloat16 where they are frozen."""
        params = family.init_params(self.model, key, jnp.bfloat16)
        trained, frozen = self.weights.split(params, key)
        return init_state(trained, frozen, self.optimizer)


def matmul_peak() -> float:
    """Operations per second of a bfloat16 product of 8192 x 8192 random matrices; on a CPU those of
    a small float32 product, as the large one would take minutes."""
    if jax.default_backend() == "cpu":
        return find_chip().flops
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (8192, 8192), jnp.bfloat16) for key in keys)
    product = jax.jit(lambda a, b: functools.reduce(lambda x, _: (x @ b) * 1e-2, range(10), a))
    return 10 * 2 * 8192**3 / median_seconds(lambda: product(a, b), 5)


def median_seconds(call, rounds: int) -> float:
    """Times `call`, whose result is waited for; a first call, which compiles, is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
