"""The file that a command is told to write, looked at before the work that fills it."""

import pathlib


def check_output(path: str, flag: str = "--out") -> None:
    """Raises ValueError, which names the flag, where no file can be made or replaced: in a folder
    that is not there, and in place of a folder or a device, which a finished file would replace,
    such as /dev/null."""
    place = pathlib.Path(path)
    if place.is_dir():
        raise ValueError(f"{flag}={path}: is a folder; name the file to write in it")
    if place.exists() and not place.is_file():
        raise ValueError(f"{flag}={path}: is no regular file; name one, or a new one")
    if not place.parent.is_dir():
        raise ValueError(f"{flag}={path}: no folder {place.parent}; make it first")
