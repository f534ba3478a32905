"""What a run has done so far, and how long the rest of it may take."""

import dataclasses
import time
from collections.abc import Callable

ENOUGH_UNITS = 20
RECENT_S = 60.0


@dataclasses.dataclass
class Progress:
    """Counts since this process started: replies by stage, failures by code, units finished, and of
    these how many had to be asked for and how many replies that took."""

    replies: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    units: int = 0
    asked_units: int = 0
    asked_replies: int = 0
    other_models: dict[str, int] = dataclasses.field(default_factory=dict)

    def finish(self, asked: int) -> None:
        """Counts a finished unit, `asked` of whose replies were not in the store before."""
        self.units += 1
        self.asked_units += asked > 0
        self.asked_replies += asked


class Meter:
    """Reads a `Progress` of `num_units` units and says how far it is, in one line.

    The time left is that of the replies that are still to come at the rate of the last minute. It
    is told once as many replies came as requests are in flight, `workers`: the first ones say how
    slow a reply is and nothing about the rate. What units need is counted from those that are
    finished; before there are enough, each is taken to need a description, `attempts` chains and
    half a revision.
    """

    def __init__(
        self, progress: Progress, num_units: int, workers: int, attempts: int,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._progress, self._num_units, self._workers = progress, num_units, workers
        self._prior, self._clock = attempts + 1.5, clock
        self._seen = [(clock(), 0)]  # (time, replies) of the last minute

    def seconds_left(self) -> float | None:
        """None where too little is known."""
        own, now = self._progress, self._clock()
        replies = sum(own.replies.values())
        self._seen.append((now, replies))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RECENT_S:
            self._seen.pop(0)
        left = self._num_units - own.units
        if not left:
            return 0.0
        if replies < min(self._workers, left):
            return None
        start, before = self._seen[0]
        rate = (replies - before) / max(now - start, 1e-9)
        if not rate:
            return None
        each = self._prior
        if own.asked_units >= ENOUGH_UNITS:
            each = own.asked_replies / own.asked_units
        under_way = max(replies - own.asked_replies, 0)
        return max(left * each - under_way, 0.0) / rate

    def describe(self) -> str:
        """One line: units, replies by stage, their rate, failures, time left."""
        own = self._progress
        left = self.seconds_left()
        by_stage = ", ".join(f"{name} {count:,}" for name, count in sorted(own.replies.items()))
        failed = sum(own.failures.values())
        (start, before), (now, replies) = self._seen[0], self._seen[-1]
        rate = (replies - before) / max(now - start, 1e-9)
        text = f"{own.units:,} of {self._num_units:,} records; replies: {by_stage or 'none'}"
        text += f", {rate:.1f} a second"
        text += f"; {failed:,} failed attempts" if failed else ""
        return f"{text}; {'time left unknown' if left is None else f'{_say(left)} left'}"


def _say(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
