"""Says in one line why a checkpoint could not be saved, and what to do about it."""

import errno
import os
import re
import shutil

_CODE = re.compile(r"\[os_error_code='(\d+)'")  # TensorStore ends its long texts with it.
_LONGEST = 160
_REMEDIES = {
    "free space there": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "make the folder writable": (errno.EROFS, errno.EACCES, errno.EPERM),
    "keep everything else from changing that folder": (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ESTALE,
    ),
}


def describe_failure(folder, error: BaseException) -> str:
    """Gives what failed, why, and the remedy. The reason is that of the operating system where it
    gave one, and else the beginning of what the storage library says."""
    code = getattr(error, "errno", None)
    if code is None and (found := _CODE.search(str(error))):
        code = int(found[1])
    remedy = next((text for text, codes in _REMEDIES.items() if code in codes), "mend the storage")
    if code is None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"
    else:
        reason = os.strerror(code)
    if remedy == "free space there" and (free := _find_free(folder)) is not None:
        reason += f", {free / 2**30:.2f} GiB free"
    return (
        f"{folder}: could not be saved ({reason}); {remedy}, then the same command goes on from "
        "the last whole checkpoint"
    )


def _find_free(folder) -> int | None:
    """Gives the free bytes of the local disk that holds the folder, or should."""
    try:
        return shutil.disk_usage(os.path.dirname(os.fspath(folder))).free
    except OSError:
        return None
