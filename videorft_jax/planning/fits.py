"""Whether a batch has room on the devices at hand, before a weight is read or a program compiled.

Only what no compiler can do without is counted: what is refused here cannot run, and what is close
is left to the compiler. Full fine-tuning of 3B on an H200, 4 rows of 4,096 tokens: 54 of the 62 GiB
it took with remat=full, 81 of 114 with save_dots. A run that the compiler or the device then fails
ends with a line that says what decided how much it needs.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

import jax

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.metrics.memory import device_gib
from videorft_jax.planning.drawing import with_rollout_mesh
from videorft_jax.planning.estimate import estimated_gib, least_update, programs_with_estimate
from videorft_jax.planning.jobs import Job
from videorft_jax.planning.machines import topology_of
from videorft_jax.planning.report import find_remedies, refusal
from videorft_jax.planning.shapes import measured_shape
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.weights import Weights

log = logging.getLogger(__name__)


class MemoryCheck:
    """What a run asks of the devices: refuses a batch that cannot fit, and explains why one that
    was let through did not. `grpo` is None for SFT."""

    def __init__(self, train: TrainOptions, grpo: GrpoOptions | None = None):
        self._train, self._grpo = train, grpo
        self._largest: Job | None = None

    def __call__(self, weights: Weights, mesh, buckets) -> None:
        """Raises ValueError, with what to change, when the step that trains on a batch of one of
        the loader's `buckets` needs more than a device has."""
        train, limit, most = self._train, device_gib(), 0.0
        for bucket in buckets:
            shape = measured_shape(bucket, packed=self._grpo is None)._replace(rows=train.data.rows)
            job = Job(train, self._grpo, weights, mesh, None, shape, None, len(buckets), None)
            least = least_update(job)
            if limit is not None and least > limit:
                raise ValueError(
                    f"{train.name}: data.rows = {shape.rows} rows of {shape.length} tokens cannot "
                    f"fit: {refusal(job, 'update', least, limit)}"
                )
            if least >= most:
                most, self._largest = least, job
        if limit is not None:
            log.info("an update needs at least %.2f GiB of %.2f GiB a device", most, limit)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, a device that runs out of memory raises RuntimeError with one line: the options
        that decide how much is needed, what the planner estimates and what to change."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or self._largest is None:
                raise
            raise RuntimeError(self._explain(self._largest, str(error))) from error

    def _explain(self, job: Job, error: str) -> str:
        # Where `rollout.mesh=auto` chose a mesh, the run has drawn on that one.
        job = with_rollout_mesh(dataclasses.replace(job, topology=topology_of(job.mesh)))
        sizes = {name: estimated_gib(job, name) for name in programs_with_estimate(job)}
        name = max(sizes, key=lambda name: sizes[name])
        train, limit = self._train, device_gib()
        given = f" of {limit:.2f} GiB a device" if limit is not None else ""
        remedies = ", or ".join([*find_remedies(job, name), "lower data.rows"])
        return (
            f"{train.name}: a device ran out of memory ({' '.join(error.split())[:90]}) with "
            f"data.rows={train.data.rows}, model.remat={train.model.remat}, "
            f"train.accumulate={train.accumulate}; the planner estimates {sizes[name]:.2f} GiB"
            f"{given} for {name} of {job.shape.length} tokens a row; {remedies}; "
            "`videorft plan` lists all programs"
        )
