"""Batches of the loader, of which the next is copied to the devices while an update runs."""

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from videorft_jax.data.loader.steps import Step, Steps
from videorft_jax.metrics.profile import span

_POLL_S = 0.002

Placed = TypeVar("Placed")


class Fetched(NamedTuple, Generic[Placed]):
    """Holds a batch of the loader and what the devices hold of it."""

    item: Step
    placed: Placed


class Ahead(Generic[Placed]):
    """Iterates over the batches of `steps`; `fetch` takes the next one early.

    put: a function that begins to copy a batch to the devices and returns what will be there. The
    copies go on while the devices compute.
    """

    def __init__(self, steps: Steps, put: Callable[[Step], Placed]):
        self._steps, self._put = steps, put
        self._next: Fetched[Placed] | None = None

    def __iter__(self) -> "Ahead[Placed]":
        return self

    def __next__(self) -> Fetched[Placed]:
        """Gives the next batch. Raises what the loader raises, StopIteration at the end."""
        found, self._next = self._next, None
        return found or self._placed(next(self._steps))

    def fetch(self, is_done: Callable[[], bool]) -> None:
        """Takes the next batch and begins its copy, unless `is_done` says that the devices have
        nothing left to do before the loader has assembled it.

        What the loader raises is raised by `next`, when the present step has been logged.
        """
        while self._next is None and not self._steps.is_ready:
            if is_done():
                return
            time.sleep(_POLL_S)
        if self._next is None:
            try:
                item = next(self._steps)
            except Exception:  # The loader raises it again.
                return
            self._next = self._placed(item)

    def _placed(self, item: Step) -> Fetched[Placed]:
        with span("step: put a batch on the devices"):
            return Fetched(item, self._put(item))
