"""What a chip can do: peak bf16 operations and memory bandwidth, by the name JAX gives the device.

A device is what JAX counts. On TPU7x that is half a chip. A device that is not in the table, the
CPU among them, is measured once with a short float32 product, so that utilisation always has a
meaning: the share of what this machine's own matrix product reaches.
"""

import dataclasses
import functools
import logging
import time

import jax
import jax.numpy as jnp

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chip:
    """Operations and bytes per second of one device; `measured` if they are from no data sheet."""

    flops: float
    bandwidth: float
    measured: bool = False


# The makers' data sheets: dense bf16 without sparsity. The first name that the device kind contains
# wins, so longer names stand before their prefixes.
CHIPS = (
    ("TPU v4", Chip(275e12, 1.228e12)),
    ("TPU v5 lite", Chip(197e12, 0.819e12)),
    ("TPU v5e", Chip(197e12, 0.819e12)),
    ("TPU v5", Chip(459e12, 2.765e12)),
    ("TPU v6", Chip(918e12, 1.64e12)),
    ("TPU7x", Chip(1153.5e12, 3.69e12)),
    ("H200", Chip(989e12, 4.8e12)),
    ("H100 PCIe", Chip(756e12, 2.04e12)),
    ("H100 NVL", Chip(835e12, 3.94e12)),
    ("H100", Chip(989e12, 3.35e12)),
    ("A100-PCIE-40GB", Chip(312e12, 1.555e12)),
    ("A100-SXM4-40GB", Chip(312e12, 1.555e12)),
    ("A100", Chip(312e12, 2.039e12)),
)


def find_chip(device: jax.Device | None = None) -> Chip:
    """The row of the table for a device, by default the first one; a measurement where the table
    has none."""
    device = device or jax.devices()[0]
    for name, chip in CHIPS:
        if name in device.device_kind:
            return chip
    return _measure(device)


@functools.lru_cache
def _measure(device):
    """Best of a few products of 1024 x 1024 and of copies of 64 MB; about a quarter of a second."""
    with jax.default_device(device):
        matrix = jnp.ones((1024, 1024), jnp.float32)
        product = _fastest(jax.jit(lambda x: jnp.dot(x, x, precision="default")), matrix)
        block = jnp.ones((1 << 24,), jnp.float32)
        copy = _fastest(jax.jit(lambda x: x + 1), block)
    chip = Chip(2 * 1024**3 / product, 2 * block.nbytes / copy, measured=True)
    log.info(
        "%s: not in the table of chips, measured %.3f TFLOP/s in float32 and %.1f GB/s",
        device.device_kind, chip.flops / 1e12, chip.bandwidth / 1e9,
    )  # fmt: skip
    return chip


def _fastest(function, argument):
    function(argument).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        function(argument).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def utilisation(flops: float, seconds: float, num_devices: int, chip: Chip) -> float:
    """The share of the peak of all devices that `flops` operations in `seconds` are."""
    return flops / (seconds * num_devices * chip.flops)


def roofline_seconds(flops: float, num_bytes: float, num_devices: int, chip: Chip) -> float:
    """The least time that arithmetic and memory allow (Williams et al. 2009)."""
    return max(flops / chip.flops, num_bytes / chip.bandwidth) / num_devices
