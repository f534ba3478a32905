"""The profile of one step: a trace of host and devices, and a picture of who worked when.

A run asks for it by `log.profile=STEP`. Spans cost a microsecond where nobody records them.
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax

from videorft_jax.metrics.timeline import MARK, draw, read_trace

log = logging.getLogger(__name__)

FOLDER = "profile"


def span(name: str) -> jax.profiler.TraceAnnotation:
    """Gives a context manager that marks what a thread does inside, `lane: what`, in the trace of
    a profiled step."""
    return jax.profiler.TraceAnnotation(MARK + name)


def check_step(name: str, step: int, total: int) -> None:
    """Raises ValueError where a run of `total` steps never comes to the step to be profiled."""
    if step > total:
        raise ValueError(
            f"{name}: log.profile is {step} and the run has {total} steps; name one of them, best "
            "one after the first, which is compiled"
        )


def warn_of_passed_step(folder: str, step: int, start: int) -> None:
    """Warns where a run goes on from step `start` and the step to be profiled lies before, unless
    its trace is there: the command that began a run may go on with it."""
    if 0 < step <= start and not _folder_of(folder, step).exists():
        log.warning(
            "log.profile is %d and the run goes on after step %d: nothing is recorded; name a "
            "later step",
            step, start,
        )  # fmt: skip


@contextlib.contextmanager
def profiled(folder: str, step: int, number: int) -> Iterator[None]:
    """Records step `number` where it is `step`, as `folder`/profile/STEP; process 0 does.

    The folder holds what JAX's profiler writes, for TensorBoard and Perfetto, and timeline.png. A
    trace that cannot be written costs no step: a warning says why.
    """
    if number != step or jax.process_index():
        yield
        return
    target = _folder_of(folder, step)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Every call of a function would hide what was marked.
    jax.profiler.start_trace(str(target), profiler_options=options)
    try:
        yield
    finally:
        try:
            jax.profiler.stop_trace()
            picture = target / "timeline.png"
            draw(read_trace(target), picture, f"step {step}")
            log.info("step %d: the trace lies in %s; its picture is %s", step, target, picture)
        except Exception as error:
            reason = " ".join(str(error).split())
            log.warning(
                "step %d: no trace in %s (%s); make room or move what is in the way, and name a "
                "later step",
                step, target, reason,
            )  # fmt: skip


def _folder_of(folder, step):
    return pathlib.Path(folder) / FOLDER / f"{step:08d}"
