"""How much memory the devices of this process have."""

import jax

from videorft_jax.metrics.host_memory import host_bytes

GIB = 2**30


def device_gib() -> float | None:
    """Memory of each device of this process: what its allocator may take, or the share of a CPU
    device in the host's; None where a device does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return cpu_gib(jax.local_device_count())
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit and limit / GIB


def cpu_gib(count: int) -> float:
    """The share of each of `count` CPU devices in the memory that this process may use."""
    return host_bytes() / count / GIB
