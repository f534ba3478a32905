"""Says in one line why a checkpoint could not be saved, and what to do about it; what Orbax's own
threads say beside it is kept off the screen."""

import errno
import logging
import os
import re
import shutil
import sys

_CODE = re.compile(r"\[os_error_code='(\d+)'")  # TensorStore ends its long texts with it.
_STATUS = {"NOT_FOUND": errno.ENOENT, "PERMISSION_DENIED": errno.EACCES}  # It begins with one.
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
    text = " ".join(str(error).split())
    code = getattr(error, "errno", None) or _STATUS.get(text.partition(":")[0])
    if found := _CODE.search(text):
        code = int(found[1])
    remedy = next((text for text, codes in _REMEDIES.items() if code in codes), "mend the storage")
    reason = os.strerror(code) if code else f"{type(error).__name__}: {text[:_LONGEST]}"
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


def silence_threads() -> None:
    """Leaves out the traces that Orbax and TensorStore write where a save fails or is slow: Orbax
    reports every file and the errors of its threads to absl, asyncio the futures that nobody has
    asked, and TensorStore calls loops that are closed. What concerns the user comes as the
    exception of `Checkpointer.wait` too."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook
    if hasattr(before, "leaves_out_loops"):
        return

    def report(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    report.leaves_out_loops = True
    sys.unraisablehook = report
