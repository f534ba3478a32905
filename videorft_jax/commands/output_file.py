"""The file that a command is told to write, looked at before the work that fills it."""

import pathlib


def check_output(path: str, flag: str = "--out", kinds: tuple[str, ...] = ()) -> None:
    """Raises ValueError, which names the flag, where no file can be made or replaced: in a folder
    that is not there, and in place of a folder or a device, which a finished file would replace,
    such as /dev/null. kinds: the ends that its name may have, so that a file of another kind than
    what is written is not asked for, such as .parquet; () for any."""
    place = pathlib.Path(path)
    if place.is_dir():
        raise ValueError(f"{flag}={path}: is a folder; name the file to write in it")
    if place.exists() and not place.is_file():
        raise ValueError(f"{flag}={path}: is no regular file; name one, or a new one")
    if not place.parent.is_dir():
        raise ValueError(f"{flag}={path}: no folder {place.parent}; make it first")
    if kinds and place.suffix.lower() not in kinds:
        raise ValueError(f"{flag}={path}: it is written as {kinds[0]}; name it so")
