"""What SIGTERM and Ctrl-C do to a run: the step is finished, a checkpoint is written, the run ends.

A second one ends the run at once. Signals are read by a thread of their own, since the main thread
may be inside a compiled program for minutes and Python runs handlers only between its own lines.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class PreemptionGuard:
    """Turns SIGTERM and Ctrl-C into a question that the training loop asks between steps.

        with PreemptionGuard() as guard:
            for step in ...:
                ...
                if guard.should_stop(step):
                    checkpointer.save(step, ...)
                    raise stopped()

    describe_kept: says what is kept when the run ends at once. With several processes it is JAX's
    own preemption service that listens, as one notice anywhere has to stop all of them on the same
    step; Ctrl-C is handed to it as SIGTERM.
    """

    def __init__(self, describe_kept: Callable[[], str] = lambda: ""):
        self._describe_kept = describe_kept
        self._stop = False
        self._before = {}
        self._wakeup_before = self._writer = -1

    def __enter__(self):
        if jax.process_count() > 1:
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._hand_on)}
            return self
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = {number: signal.signal(number, _ignore) for number in _NAMES}
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._writer >= 0:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._writer)  # ends the thread

    def _listen(self, reader):
        while number := os.read(reader, 1):
            if number[0] in _NAMES:
                self._notice(number[0])
        os.close(reader)

    def _notice(self, number):
        if self._stop:
            print(f"{_NAMES[number]} again: ended; {self._describe_kept()}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(128 + number)
        self._stop = True
        log.warning(
            "%s: stopping after this step, with a checkpoint; once more ends the run at once",
            _NAMES[number],
        )

    def _hand_on(self, *_):
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        log.warning("Ctrl-C: stopping all processes after a step, with a checkpoint")
        os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(self, step: int) -> bool:
        """Whether to save and leave after `step`; all processes ask once a step, and all agree."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._stop


def _ignore(*_):
    """A handler that leaves a signal to the thread, which Python wakes only if there is one."""


def stopped() -> SystemExit:
    """What ends a run whose checkpoint is written after SIGTERM: exit code 0, or 75 under a
    supervisor (launch/supervise.sh), which could not tell 0 from the end of the data."""
    return SystemExit(75 if "VIDEORFT_UP" in os.environ else 0)
