"""What SIGTERM does to a run: the step is finished, a checkpoint is written, and the run ends."""

import logging
import os
import signal

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class PreemptionGuard:
    """Turns SIGTERM into a question that the training loop asks between steps.

        with PreemptionGuard() as guard:
            for step in ...:
                ...
                if guard.should_stop(step):
                    checkpointer.save(step, ...)
                    raise stopped()

    A second SIGTERM ends the process at once. With several processes it is JAX's own preemption
    service that listens, as one notice anywhere has to stop all of them on the same step.
    """

    def __init__(self):
        self._stop = False
        self._before = None

    def __enter__(self):
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, *_):
        log.warning("SIGTERM: stopping after this step; send it again to stop at once")
        self._stop = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def should_stop(self, step: int) -> bool:
        """Whether to save and leave after `step`; all processes ask once a step, and all agree."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._stop


def stopped() -> SystemExit:
    """What ends a run whose checkpoint is written after SIGTERM: exit code 0, or 75 under a
    supervisor (launch/supervise.sh), which could not tell 0 from the end of the data."""
    return SystemExit(75 if "VIDEORFT_UP" in os.environ else 0)
