"""Opens media files safely, and turns whatever a decoder raises into a named refusal.

FFmpeg and Pillow never see a name that came from a record. A path is resolved and checked, the file
is opened here without following links, `fstat` decides on the open descriptor, and only `/dev/fd/N`
is handed on. A record therefore cannot name a protocol, a playlist, a pipe or a file outside the
data root, whatever FFmpeg was built with.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from videorft_jax.data.media.contract import Limits, MediaError

T = TypeVar("T")
URL_LIKE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:|subfile,|async:|cache:")


@contextlib.contextmanager
def open_media(
    path: str | os.PathLike, root: str | os.PathLike | None, limits: Limits
) -> Iterator[int]:
    """Opens one regular file for reading and yields its descriptor.

    With `root`, `path` must be relative to it, and what it resolves to must lie below it; links
    inside the root are fine. Without, any regular file will do: the caller names it, no record.
    Raises MediaError missing, not_regular, unreadable, outside_root, protocol, empty, too_large.
    """
    name = os.fspath(path)
    if isinstance(name, bytes) or "\0" in name or not name:
        raise MediaError("missing", "the path is empty or holds a zero byte", repr(name))
    if URL_LIKE.match(name):
        raise MediaError("protocol", "looks like a URL or an FFmpeg protocol", name)
    if root is not None:
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise MediaError("outside_root", "absolute, or climbs with '..'", name)
        real_root = os.path.realpath(root)
        real = os.path.realpath(os.path.join(real_root, name))
        if os.path.commonpath([real_root, real]) != real_root:
            raise MediaError("outside_root", "a link leads out of the data root", name)
    else:
        real = os.path.realpath(name)
    with contextlib.ExitStack() as stack:
        try:
            if not stat.S_ISREG(os.lstat(real).st_mode):  # before open: opening a device can act
                raise MediaError("not_regular", "not a regular file", name)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(real, flags)
            stack.callback(os.close, descriptor)
            status = os.fstat(descriptor)
        except UnicodeEncodeError:
            raise MediaError("missing", "the path is no valid file name", repr(name)) from None
        except OSError as error:
            reason = {
                errno.ENOENT: "missing",
                errno.ENOTDIR: "missing",
                errno.ENAMETOOLONG: "missing",
                errno.ELOOP: "outside_root",
                errno.ENXIO: "not_regular",
            }.get(error.errno, "unreadable")
            raise MediaError(reason, error.strerror or "cannot be opened", name) from None
        if not stat.S_ISREG(status.st_mode):  # swapped since lstat
            raise MediaError("not_regular", "not a regular file", name)
        if not status.st_size:
            raise MediaError("empty", "zero bytes", name)
        if status.st_size > limits.max_bytes:
            raise MediaError("too_large", f"{status.st_size} > {limits.max_bytes} bytes", name)
        yield descriptor


def read_guarded(
    read: Callable[[str | bytes], T],
    source: str | os.PathLike | bytes,
    root: str | os.PathLike | None,
    limits: Limits,
) -> T:
    """Calls read("/dev/fd/N") on a path that was opened safely, or read(bytes) on a file's bytes.

    Decoders are other people's programs and raise anything at all on bad input: struct.error,
    TypeError, OverflowError. Every exception becomes a MediaError that names the clip, so that one
    file never ends a run; only KeyboardInterrupt and the like pass.
    """
    path = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            if not source:
                raise MediaError("empty", "zero bytes")
            if len(source) > limits.max_bytes:
                raise MediaError("too_large", f"{len(source)} > {limits.max_bytes} bytes")
            return read(source)
        if not isinstance(source, str | os.PathLike):
            raise MediaError("missing", f"a path is needed, got {type(source).__name__}")
        with open_media(source, root, limits) as descriptor:
            return read(f"/dev/fd/{descriptor}")
    except MediaError as error:
        raise MediaError(error.reason, error.detail, path) from None
    except Exception as error:
        raise MediaError(*explain(error), path) from None


def explain(error: Exception) -> tuple[str, str]:
    """The reason, a key of REASONS, and the detail of what a decoder raised."""
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, MemoryError):
        return "memory", "no memory left while decoding"
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not_media", "no picture of a known format"
    if isinstance(error, OSError | SyntaxError) and "truncated" in str(error).lower():
        return "truncated", detail
    return "corrupt", detail
