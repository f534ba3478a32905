"""The time that JAX spends on making programs, which says nothing of the steps still to come."""

import time
from typing import Any

import jax

# Tracing, lowering and compiling; a program that is found in the cache has the last one too.
_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class CompileClock:
    """Adds up the seconds in which programs were made, from any thread, until `close`."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event in _EVENTS:
            now = time.perf_counter()
            self._spans.append((now - seconds, now))

    def take(self) -> float:
        """Seconds since the last call. Spans overlap where a program is traced inside another, or
        in two threads at once, and count once."""
        spans, self._spans = sorted(self._spans), []
        total, end = 0.0, float("-inf")
        for start, stop in spans:
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
