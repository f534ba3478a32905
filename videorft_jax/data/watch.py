"""Nothing waits for ever: bounded calls, workers that die with their parent, and their process ids.

One design decision is worth knowing: a thread that hangs inside the operating system cannot be
stopped, only left behind. So each clip is decoded in a daemon thread of its own, which costs 0.1 ms
and lets the run go on (and end) without it.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class Progress:
    """Logs `what: done of total` at most every `every` seconds, and at the end if it took that
    long."""

    def __init__(self, what: str, total: int, every: float = 10.0):
        self.what, self.total, self.every = what, total, every
        self.start = self.last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last >= self.every or (done == self.total and now - self.start > self.every):
            self.last = now
            rate = done / max(now - self.start, 1e-9)
            logger.info("%s: %d of %d, %.1f a second", self.what, done, self.total, rate)


def call_within(seconds: float, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), or TimeoutError after `seconds`; the call is then left behind in
    its daemon thread. What it raises is raised."""
    answer: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            answer.append((True, function(*args, **kwargs)))
        except BaseException as error:
            answer.append((False, error))

    thread = threading.Thread(target=work, daemon=True, name="videorft-bounded-call")
    thread.start()
    thread.join(seconds)
    if not answer:
        raise TimeoutError(f"no answer within {seconds:g} s")
    done, value = answer[0]
    if done:
        return value
    raise value


def start_worker(folder: str, worker: int, num_workers: int) -> None:
    """Runs first in each worker process: leaves its process id in `folder`, and dies when the
    parent does. (PR_SET_PDEATHSIG would kill it when the *thread* that started it ends.)"""
    del worker, num_workers
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True, name="videorft-follow-parent").start()


def kill_workers(folder: str) -> int:
    """Kills the processes that left their id in `folder` and are still our children; returns how
    many."""
    ours = {child.pid for child in multiprocessing.active_children()}
    found = [int(name) for name in os.listdir(folder) if int(name) in ours]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)


def mark_flags_parsed() -> None:
    """grain's workers read absl flags, which outside `absl.app.run` nobody has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
