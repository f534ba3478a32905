"""Gives Orbax a clock that does not jump.

Orbax ends a save that takes more than ten minutes, as the clock of the wall tells them. Where that
was set, or a machine woke, a save of a second was given up and the run ended.
"""

import contextlib
import importlib
from time import monotonic, perf_counter, sleep

_MODULES = (  # those that measure limits
    "futures.future",
    "futures.signaling_client",
    "checkpointers.async_checkpointer",
)


class _Steady:
    """What these modules use of `time`."""

    time = staticmethod(monotonic)
    perf_counter = staticmethod(perf_counter)
    sleep = staticmethod(sleep)


def use_steady_clock() -> None:
    """Puts the steady clock into Orbax's modules; a release that has others keeps its own."""
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"orbax.checkpoint._src.{name}").time = _Steady
