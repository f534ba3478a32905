"""Nothing waits for ever: bounded calls, workers that die with their parent, and their process ids.

A thread that hangs inside the operating system cannot be stopped, it can only be left behind.
Therefore each thread that loads clips has a daemon thread decode them. When a clip hangs, it takes
a new daemon thread, and the run goes on and ends without the one that hangs.
"""

import functools
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


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
            log.info("%s: %d of %d, %.1f a second", self.what, done, self.total, rate)


class _Caller:
    """A daemon thread that makes one call after another, until this object is dropped."""

    def __init__(self):
        self.calls, self.answers = queue.SimpleQueue(), queue.SimpleQueue()
        arguments = (self.calls, self.answers)
        name = "videorft-bounded-call"
        self.thread = threading.Thread(target=_serve, args=arguments, daemon=True, name=name)
        self.thread.start()

    def __del__(self):
        self.calls.put(None)


def _serve(calls: queue.SimpleQueue, answers: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        answers.put(_answer(call))
        del call


def _answer(call: Callable) -> tuple[bool, Any]:
    try:
        return True, call()
    except BaseException as error:
        return False, error


def _wanted(function: Callable, then: Callable | None, claim: threading.Lock) -> Any:
    """then(function()), or None where the caller has stopped waiting and holds the claim."""
    value = function()
    if then is None:
        return value
    return then(value) if claim.acquire(blocking=False) else None


_OWN = threading.local()  # `caller`: of this thread, while it is idle


def call_within(
    seconds: float, function: Callable, *args: Any, then: Callable | None = None, **kwargs: Any
) -> Any:
    """then(function(*args, **kwargs)), or TimeoutError when `function` takes more than `seconds`;
    it is then left behind in its daemon thread. What it raises is raised.

    `then` runs in the same thread, never for a call left behind, and is waited for: the place for
    work on the value, while it is in that processor's cache, that writes where others will look.
    """
    caller = _OWN.__dict__.pop("caller", None)
    if caller is None or not caller.thread.is_alive():  # the thread does not survive a fork
        caller = _Caller()
    claim = threading.Lock()  # taken by whichever side is first, at the end of `function`
    function = functools.partial(function, *args, **kwargs)
    caller.calls.put(functools.partial(_wanted, function, then, claim))
    try:
        done, value = caller.answers.get(timeout=seconds)
    except queue.Empty:
        if claim.acquire(blocking=False):
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        done, value = caller.answers.get()
    _OWN.caller = caller
    if done:
        return value
    try:
        raise value
    finally:
        del value  # its traceback holds this frame, and so the thread


def start_worker(folder: str, worker: int, num_workers: int) -> None:
    """Runs first in each worker process: leaves its process id in `folder`, and dies when the
    parent does. (PR_SET_PDEATHSIG would kill it when the *thread* that started it ends.) A terminal
    sends Ctrl-C to workers too; only the trainer answers it, and workers go on until it ends."""
    del worker, num_workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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


def quieten_tracker() -> None:
    """Keeps Python's tracker of shared semaphores from a warning about those of a killed worker,
    which it removes: it would stand behind the last line of a command, which says what to do. The
    tracker is a process that takes its filters from ours as it starts."""
    option = "ignore:resource_tracker"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)
