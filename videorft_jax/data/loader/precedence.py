"""Lets decoding go first where the devices are the cores of the host.

XLA's threads for CPU devices and the loader's share the cores. Taken in turn, a step is done before
its successor is decoded and waits, while some cores have nothing to do. When the loader goes first,
the next batch is whole in time, and the devices fill up what it leaves.
"""

import contextlib
import os
import pathlib

_TASKS = pathlib.Path("/proc/self/task")
_DEVICES = "tf_XLAEigen"  # the name of the threads in which XLA computes on a CPU
# The scheduler of Linux then gives a thread that decodes three times the share of one that
# computes; where no thread decodes nothing changes.
_STEPS = 5


def go_before_devices() -> None:
    """Lowers the priority of the threads that compute on CPU devices below that of the caller.

    Calling it again changes nothing. Where the system does not list a process's threads, and before
    JAX has started its devices, nothing is done; where it forbids the change, the threads go on
    taking turns.
    """
    least = min(os.getpriority(os.PRIO_PROCESS, 0) + _STEPS, 19)
    for task in _TASKS.glob("*"):
        with contextlib.suppress(OSError):  # It has ended meanwhile, or the system forbids it.
            if (task / "comm").read_text().strip() != _DEVICES:
                continue
            thread = int(task.name)
            if os.getpriority(os.PRIO_PROCESS, thread) < least:
                os.setpriority(os.PRIO_PROCESS, thread, least)
