"""What a drill does inside the process of a command: its recipe calls one of these as it is read.

A hook waits for a file that the drill makes, so that it strikes at a moment of the drill's choice.
"""

import builtins
import functools
import os
import pathlib
import time


def jump(mark: str, seconds: float) -> None:
    """The clock of the wall jumps by `seconds` once the file `mark` is there."""
    if hasattr(time.time, "jumps"):  # A recipe is read twice.
        return
    real = time.time

    def jumped():
        return real() + (seconds if os.path.exists(mark) else 0.0)

    jumped.jumps = True
    time.time = jumped


def answer_late(folder: str, mark: str, seconds: float) -> None:
    """One file below `folder` is opened `seconds` late once the file `mark` is there."""
    answered = pathlib.Path(f"{mark}.answered")

    def late(function):
        @functools.wraps(function)
        def opened(path, *more, **named):
            is_below = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder)
            if is_below and os.path.exists(mark) and not os.path.exists(answered):
                os.close(_open(str(answered), os.O_CREAT | os.O_WRONLY))
                time.sleep(seconds)
            return function(path, *more, **named)

        return opened

    _open = os.open
    os.open, builtins.open = late(os.open), late(builtins.open)


def hear_peers(seconds: int) -> None:
    """A process is taken for lost after `seconds` without a sign of life, instead of JAX's 100."""
    import jax

    jax.distributed.initialize = functools.partial(
        jax.distributed.initialize, heartbeat_timeout_seconds=seconds
    )
