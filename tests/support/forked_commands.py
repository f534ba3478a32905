"""Commands as processes of their own that skip the seconds in which Python loads the libraries.

A server loads them once and forks itself for each command, so that a command has its own process,
folder, output, signals and exit code, as one started from a shell has.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_LOADED = ("sft", "grpo", "evaluate", "ablate", "export", "validate", "ask")
_BYTES = 1 << 16  # the longest command line


class CommandServer:
    """The process that forks. `environment` is that of every command."""

    def __init__(self, environment: dict[str, str]):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(
        self, words: Sequence[str], cwd: pathlib.Path, *, merged: bool = True, is_read: bool = True
    ) -> "Command":
        """Starts `videorft WORDS`; what it says on stderr goes to stdout if `merged`, and stdout
        breaks at once unless it `is_read`."""
        out, their_out = os.pipe()
        if not is_read:
            os.close(out)
            out = os.open(os.devnull, os.O_RDONLY)
        err, their_err = os.pipe() if not merged else (None, their_out)
        status, their_status = os.pipe()
        message = json.dumps({"words": list(map(str, words)), "cwd": str(cwd)}).encode()
        socket.send_fds(self._socket, [message], [their_out, their_err, their_status])
        for number in {their_out, their_err, their_status}:
            os.close(number)
        return Command(int(self._socket.recv(_BYTES)), out, err, status)

    def end(self):
        self._socket.close()  # ends the loop of the server
        self._process.wait()


class Command:
    """A command that was started: what `subprocess.Popen` gives of its own."""

    def __init__(self, pid, out, err, status):
        self.pid, self.returncode = pid, None
        self.stdout = os.fdopen(out, encoding="utf-8")
        self.stderr = None if err is None else os.fdopen(err, encoding="utf-8")
        self._status = status

    def poll(self):
        """The exit code, minus the signal's number for one that was killed; None while it runs."""
        return self.wait(0) if self.returncode is None else self.returncode

    def wait(self, timeout=None):
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 64))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout=None):
        """(what it said on stdout, what on stderr), once it has ended."""
        files = {file.fileno(): b"" for file in (self.stdout, self.stderr) if file}
        left, end = set(files), timeout and time.monotonic() + timeout
        while left:
            rest = end and max(0.0, end - time.monotonic())
            ready = select.select(left, [], [], rest)[0]
            if not ready:
                raise subprocess.TimeoutExpired(str(self.pid), timeout, self._texts(files)[0])
            for number in ready:
                part = os.read(number, _BYTES)
                files[number] += part
                if not part:
                    left.discard(number)
        self.wait()
        return self._texts(files)

    def _texts(self, files):
        both = (file and files[file.fileno()].decode() for file in (self.stdout, self.stderr))
        return tuple(both)

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _serve(channel):
    """Forks for each message; returns the words of a command, in the child alone."""
    running, (wake, waker) = {}, os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([channel, wake], [], [])[0]
        if wake in ready:
            os.read(wake, _BYTES)
            _tell_ends(running)
        if channel not in ready:
            continue
        message, given, *_ = socket.recv_fds(channel, _BYTES, 3)
        if not message:
            os._exit(0)
        out, err, status = given
        if pid := os.fork():
            running[pid] = status
            os.close(out)
            os.close(err)
            channel.send(str(pid).encode())
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also of tests in the background
        for number in (wake, waker, status, channel.detach(), *running.values()):
            os.close(number)
        os.setsid()
        for number, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
            os.dup2(number, place)
            os.close(number)
        found = json.loads(message)
        os.chdir(found["cwd"])
        return found["words"]


def _tell_ends(running):
    """Writes the exit code of each command that has ended to the one who started it."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = found
            number = running.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(number, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(number)


if __name__ == "__main__":
    import gc
    import importlib

    from videorft_jax import cli

    for name in _LOADED:
        importlib.import_module(f"videorft_jax.commands.{name}")
    importlib.import_module("transformers.models.auto.tokenization_auto")
    importlib.import_module("videorft_jax.api")
    gc.freeze()  # a child does not look through what it shares with the server
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.argv = ["videorft", *_serve(socket.socket(fileno=int(sys.argv[1])))]
    sys.exit(cli.main())
