"""One run at a time in a work directory: a lock that names its holder and is freed by death.

The lock is one of POSIX on a file, which NFS knows too. Object stores have none: there a run leaves
a note while it goes, and one that finds the note of another says so and goes on, since machines
that are taken away leave their note behind.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import jax
from etils import epath

from videorft_jax.checkpoints.bucket import resolve

log = logging.getLogger(__name__)

NAME = ".lock"
_PATIENCE_S = 2.0  # how long a process that is ending is waited for


@contextlib.contextmanager
def lock_workdir(workdir: str, agree) -> Iterator[None]:
    """Holds the lock of a work directory; every process calls it, process 0 holds it.

    agree: gives the list of every process's text, `parallel.processes.gather`. Raises ValueError on
    every process when another run holds the lock.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if jax.process_index() == 0:
            hold = _note if "://" in resolve(workdir) else _hold
            problem = stack.enter_context(hold(resolve(workdir)))
        problem = agree(problem)[0]
        if problem:
            raise ValueError(problem)
        yield


@contextlib.contextmanager
def _hold(folder):
    """Holds the file's lock; yields what is wrong, or ""."""
    path = pathlib.Path(folder, NAME)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        yield f"{folder}: cannot be written ({error}); choose another workdir"
        return
    with file:
        if not _try_lock(file):
            file.seek(0)
            yield (
                f"{folder}: {_describe(file.read())} is running there; stop it, wait for it, or "
                "choose another workdir"
            )
            return
        file.truncate(0)
        file.write(json.dumps(_me()))
        file.flush()
        yield ""
        file.truncate(0)


def _try_lock(file):
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # POSIX allows both for a lock that is held.
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        except OSError as error:  # Some storages of clusters are mounted without locks.
            log.warning(
                "%s: the storage knows no locks (%s); see to it that no other run works there",
                os.path.dirname(file.name), error.strerror,
            )  # fmt: skip
            return True


@contextlib.contextmanager
def _note(folder):
    """Leaves a note in a bucket while the run goes; warns of one that is there."""
    path = epath.Path(folder) / NAME
    with contextlib.suppress(OSError):
        if path.exists() and (found := path.read_text()):
            log.warning(
                "%s: %s started there and left no word of its end; if it is still running, stop "
                "one of the two", folder, _describe(found),
            )  # fmt: skip
        path.write_text(json.dumps(_me()))
    yield ""
    with contextlib.suppress(OSError):
        path.write_text("")


def _me():
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}


def _describe(text):
    try:
        found = json.loads(text)
        return f"process {found['pid']} on {found['host']}, since {found['started']},"
    except (ValueError, KeyError, TypeError):
        return "another process"
