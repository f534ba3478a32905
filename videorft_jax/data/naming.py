"""Errors of files that grow while a run goes on."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str | os.PathLike | None) -> Iterator[None]:
    """Puts `path` into an OSError that names no file.

    Writing to an open file raises such errors where a disk is full. The command shows an error in
    one line, and a user has to learn from it where room is missing.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and path is not None:
            error.filename = str(path)
        raise
