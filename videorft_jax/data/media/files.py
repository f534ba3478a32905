"""Opens media files safely, and turns whatever a decoder raises into a named refusal.

FFmpeg and Pillow never see a name that came from a record. A path is resolved and checked, the file
is opened here without following links, `fstat` decides on the open descriptor, and only `/dev/fd/N`
is handed on. A record therefore cannot name a protocol, a playlist, a pipe or a file outside the
data root, whatever FFmpeg was built with.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from videorft_jax.data.media.contract import Limits, MediaError

T = TypeVar("T")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
URL_LIKE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:|subfile,|async:|cache:")


def resolve(path: str | os.PathLike, root: str | os.PathLike | None, limits: Limits) -> str:
    """The real place of a file or folder that a record names.

    With `root`, `path` must be relative to it, and what it resolves to must lie below it or below
    one of `limits.roots`, where also absolute paths may lead. Without, any place will do: the
    caller names it, no record. A name that is not there as it is written is looked for with other
    Unicode composition (macOS decomposes names) and with / for \\.

    Raises MediaError missing, outside_root, protocol.
    """
    name = os.fspath(path)
    if isinstance(name, bytes) or "\0" in name or not name:
        raise MediaError("missing", "the path is empty or holds a zero byte", repr(name))
    roots = [os.path.realpath(place) for place in limits.roots]
    if root is not None:
        real_root = os.path.realpath(root)
        if ".." in name.replace("\\", "/").split("/"):
            raise MediaError("outside_root", "climbs with '..'", name)
        if os.path.isabs(name) and not roots:
            raise MediaError("outside_root", "an absolute path", name)
        roots.append(real_root)
    base = "" if root is None else real_root
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        try:
            real = os.path.realpath(_spell(base, written))
            if root is not None and not any(os.path.commonpath([r, real]) == r for r in roots):
                raise MediaError("outside_root", "a path or link leads out of the data root", name)
            if os.path.lexists(real):
                return real
        except MediaError:
            raise
        except (ValueError, UnicodeEncodeError):
            raise MediaError("missing", "the path is no valid file name", repr(name)) from None
    if WINDOWS.match(name):
        raise MediaError("missing", "a Windows path; this machine has no drive letters", name)
    if URL_LIKE.match(name):
        raise MediaError("protocol", "looks like a URL or an FFmpeg protocol", name)
    return os.path.realpath(name if root is None else os.path.join(real_root, name))


def _spell(base: str, name: str) -> str:
    """The path of `name` below `base`, each part of it composed as it is on this disk."""
    place = os.path.join(base, name)
    if name.isascii() or os.path.lexists(place):
        return place
    place = base if not os.path.isabs(name) else "/"
    for part in name.split("/"):
        there = os.path.join(place, part)
        if not part.isascii() and not os.path.lexists(there):
            same = unicodedata.normalize("NFC", part)
            with contextlib.suppress(OSError):
                found = os.listdir(place or ".")
                alike = (entry for entry in found if unicodedata.normalize("NFC", entry) == same)
                there = os.path.join(place, next(alike, part))
        place = there
    return place


@contextlib.contextmanager
def open_media(
    path: str | os.PathLike, root: str | os.PathLike | None, limits: Limits
) -> Iterator[int]:
    """Opens one regular file that `resolve` finds for reading and yields its descriptor.

    Raises MediaError as `resolve`, and not_regular, unreadable, empty, too_large.
    """
    name, real = os.fspath(path), resolve(path, root, limits)
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
    """Calls read("/dev/fd/N") on a path that was opened safely, or read(bytes) on a file's bytes,
    and turns every exception into a MediaError as `guarded` does."""

    def open_and_read() -> T:
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

    return guarded(open_and_read, source)


def guarded(read: Callable[[], T], source) -> T:
    """What `read` returns. Decoders are other people's programs and raise anything at all on bad
    input: struct.error, TypeError, OverflowError. Every exception becomes a MediaError that names
    the clip, so that one file never ends a run; only KeyboardInterrupt and the like pass."""
    try:
        return read()
    except MediaError as error:
        raise MediaError(error.reason, error.detail, name_of(source)) from None
    except Exception as error:
        raise MediaError(*explain(error), name_of(source)) from None


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".heic", ".heif", ".tif", ".tiff")


def list_files(path, root: str | os.PathLike | None, limits: Limits) -> list[str]:
    """The files of a clip: the one it is, those of a list, or the pictures of a folder in the order
    of the numbers in their names, frame_2 before frame_10."""
    if isinstance(path, list | tuple):
        return list(path)
    place = resolve(path, root, limits)
    if not os.path.isdir(place):
        return [path]
    found = [name for name in os.listdir(place) if name.lower().endswith(PICTURES)]
    return [os.path.join(path, name) for name in sorted(found, key=_natural)]


def _natural(name: str) -> list:
    parts = re.split(r"(\d+)", name)  # every second one is a number
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def describe_file(path, root: str) -> tuple[str, int, int] | None:
    """(path, bytes, time of the last change in ns) of a file, by which it is known again; of a list
    or folder of frames the sum and the latest, and in the path a digest of each frame's name, size
    and time, as frames may change places. None where something is missing."""
    try:
        places = [os.path.join(root, part) for part in ([path] if isinstance(path, str) else path)]
        if len(places) == 1 and os.path.isdir(places[0]):
            places = [entry.path for entry in os.scandir(places[0])]
        found = [os.stat(place) for place in places]
    except (OSError, ValueError, TypeError):
        return None
    name = path if isinstance(path, str) else json.dumps(path)
    if not isinstance(path, str) or places != [os.path.join(root, path)]:
        facts = [
            (os.path.basename(place), f.st_size, f.st_mtime_ns)
            for place, f in zip(places, found, strict=True)
        ]
        facts = sorted(facts) if isinstance(path, str) else facts  # a list keeps its order
        name += f"|{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    size, changed = sum(f.st_size for f in found), max((f.st_mtime_ns for f in found), default=0)
    return name, size, changed


def name_of(source) -> str:
    """How messages name a clip."""
    if isinstance(source, bytes):
        return "<bytes>"
    if isinstance(source, list | tuple):
        first = name_of(source[0]) if source else "no frames"
        return f"{first} and {max(len(source) - 1, 0)} more"
    return str(source) if isinstance(source, str | os.PathLike) else f"<{type(source).__name__}>"


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
