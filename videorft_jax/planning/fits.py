"""Whether a batch has room on the devices at hand, before a weight is read or a program compiled.

Only what no compiler can do without is counted: what is refused here cannot run, and what is close
is left to the compiler. Full fine-tuning of 3B on an H200, 4 rows of 4,096 tokens: 54 of the 62 GiB
it took with remat=full, 81 of 114 with save_dots.
"""

import logging

import jax

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.planning.compile import GIB
from videorft_jax.planning.estimate import least_update
from videorft_jax.planning.jobs import Job
from videorft_jax.planning.machines import cpu_gib
from videorft_jax.planning.report import refusal
from videorft_jax.planning.shapes import measured_shape
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.weights import Weights

log = logging.getLogger(__name__)


def device_gib() -> float | None:
    """Memory of each device of this process: what its allocator may take, or the share of a CPU
    device in the host's; None where a device does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return cpu_gib(jax.local_device_count())
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit and limit / GIB


def check_memory(
    train: TrainOptions, grpo: GrpoOptions | None, weights: Weights, mesh, buckets
) -> None:
    """Raises ValueError, with what to change, when the step that trains on a batch of one of the
    loader's `buckets` needs more than a device has. `grpo` is None for SFT."""
    limit = device_gib()
    if limit is None:
        return
    most = 0.0
    for bucket in buckets:
        shape = measured_shape(bucket, packed=grpo is None)._replace(rows=train.data.rows)
        job = Job(train, grpo, weights, mesh, None, shape, None, len(buckets), None)
        if (least := least_update(job)) > limit:
            raise ValueError(
                f"{train.name}: data.rows = {shape.rows} rows of {shape.length} tokens cannot "
                f"fit: {refusal(job, 'update', least, limit)}"
            )
        most = max(most, least)
    log.info("an update needs at least %.2f GiB of %.2f GiB a device", most, limit)
