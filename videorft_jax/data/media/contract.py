"""The rules for media: contract, limits, reason codes, and opening a file safely.

One design decision is worth knowing: FFmpeg never sees a name that came from a record. A path is
resolved and checked, the file is opened by us without following links, `fstat` decides on the open
descriptor, and only `/dev/fd/N` is handed on. A record therefore cannot name a protocol, a
playlist, a pipe or a file outside the data root, whatever FFmpeg was built with.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator

REASONS = {
    "missing": "check the path and the data root",
    "not_regular": "replace the directory, pipe, socket or device by a plain file",
    "unreadable": "give this user read permission on the file and its directories",
    "outside_root": "keep media below the data root and write paths relative to it",
    "protocol": "download the media first; records hold plain relative paths only",
    "empty": "copy the file again, it holds zero bytes",
    "too_large": "shorten or re-encode the file, or raise Limits.max_bytes",
    "not_media": "re-encode as mp4, or as png or jpeg for images; playlists are never followed",
    "unsupported": "re-encode as H.264 mp4 without unusual rotation",
    "no_video": "drop the record, the file has no video stream",
    "cover_art": "drop the record, the only picture is the cover of an audio file",
    "too_many_pixels": "scale the file down, or raise Limits.max_source_pixels",
    "aspect_ratio": "crop the picture to an aspect ratio below 200",
    "too_long": "cut the clip, or raise Limits.max_seconds and Limits.max_packets",
    "too_few_frames": "use data_type image, widen start and end, or ask for fewer frames",
    "empty_range": "set 0 <= start < end, both within the clip, at least two frames apart",
    "truncated": "copy the file again, its end is missing",
    "corrupt": "copy or re-encode the file, its content is damaged",
    "timeout": "check the storage, or raise Limits.timeout_s",
    "memory": "scale the file down, or raise Limits.memory_bytes",
    "crashed": "report the file; the isolated decoder died on it",
}
URL_LIKE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:|subfile,|async:|cache:")


class MediaError(ValueError):
    """A clip that cannot be used. `reason` is a key of `REASONS`, `path` names the clip as the
    record does, `detail` says what was seen. `str()` is one line and ends in the remedy."""

    def __init__(self, reason: str, detail: str, path: str = ""):
        if reason not in REASONS:
            raise KeyError(f"MediaError: unknown reason {reason!r}; add it to REASONS")
        super().__init__(reason, detail, path)
        self.reason, self.detail, self.path = reason, detail, path

    def __str__(self) -> str:
        line = f"{self.path}: {self.reason}: {self.detail}; {REASONS[self.reason]}"
        return line.encode("unicode_escape").decode()


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on one clip. They protect the run and never change a pixel, so that they are no part
    of the contract. An hour-long file passes; what is above four hours does not.

    timeout_s is wall time for one clip, checked at every packet. memory_bytes is address space for
    decoding, on top of the libraries, and holds only with `isolate=True`.
    """

    max_bytes: int = 16 << 30
    max_source_pixels: int = 8192 * 4320
    max_seconds: float = 4 * 3600.0
    max_packets: int = 2_000_000
    timeout_s: float = 120.0
    memory_bytes: int = 2 << 30


@dataclasses.dataclass(frozen=True)
class MediaContract:
    """How a file becomes frames. Two runs with equal `digest` give the model equal pixels.

    sampling "qwen": n = total / native_fps * fps, clamped to [min_frames, max_frames] and to the
    clip, floored to even; `num_frames` fixes n instead; indices round(linspace(first, last, n)).
    min_pixels, max_pixels, total_pixels bound one frame and the whole clip as qwen-vl-utils does;
    image_* bound still images. mrope_rule names the position rule, see `data.layout`.
    """

    sampling: str = "qwen"
    fps: float = 2.0
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    total_pixels: int = 90_316_800  # 0.9 * 128000 tokens of 28 * 28 pixels
    image_min_pixels: int = 4 * 28 * 28
    image_max_pixels: int = 256 * 28 * 28
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    resize: str = "bicubic_antialias"
    mrope_rule: str = "qwen"

    FORMAT = 1  # raise when the meaning of a field changes

    def __post_init__(self):
        def require(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"MediaContract: {what}")

        object.__setattr__(self, "fps", float(self.fps))  # 2 and 2.0 are one contract
        require(self.sampling == "qwen", f"sampling must be 'qwen', got {self.sampling!r}")
        require(self.resize == "bicubic_antialias", f"unknown resize {self.resize!r}")
        require(self.mrope_rule in ("qwen", "hf5"), f"mrope_rule qwen or hf5: {self.mrope_rule!r}")
        require(0 < self.fps < 1000, f"fps must be in (0, 1000), got {self.fps}")
        require(self.num_frames is None or self.num_frames >= 2, "num_frames must be None or >= 2")
        require(2 <= self.min_frames <= self.max_frames, "need 2 <= min_frames <= max_frames")
        require(0 < self.min_pixels <= self.max_pixels, "need 0 < min_pixels <= max_pixels")
        require(0 < self.image_min_pixels <= self.image_max_pixels, "image pixels: need min <= max")

    @property
    def factor(self) -> int:
        """Pixels on a side of one visual token: patch_size * merge_size."""
        return self.patch_size * self.merge_size

    @property
    def digest(self) -> str:
        """sha256 over the fields and the format version, as 64 hexadecimal digits."""
        text = json.dumps({"format": self.FORMAT} | self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def train(cls) -> "MediaContract":
        """At most 16 frames of about 128 * 28 * 28 pixels. The original sets both its least and
        its greatest frame count to 16 and both pixel bounds to 128 * 28 * 28 (so that 1.05 times
        that is the true maximum): 16 frames for any clip that has them, fewer for shorter ones.
        Before 2025-08-31 its least count was 4. Unlike the original we return the true fps."""
        return cls(min_frames=16, max_frames=16, max_pixels=128 * 28 * 28)

    @classmethod
    def evaluate(cls) -> "MediaContract":
        """At most 32 frames of about 256 * 28 * 28 pixels, as the original's evaluation does by
        editing the constants of its vendored qwen-vl-utils; images as in training."""
        pixels = 256 * 28 * 28
        return cls(min_frames=32, max_frames=32, min_pixels=pixels, max_pixels=pixels)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "MediaContract":
        """Inverse of `to_dict`; ValueError names fields that are unknown or absent."""
        wrong = set(fields) ^ {field.name for field in dataclasses.fields(cls)}
        if wrong:
            raise ValueError(f"MediaContract: unknown or absent fields {sorted(wrong)}")
        return cls(**fields)

    def diff(self, other: "MediaContract") -> str:
        """The fields that differ, as "name: ours != theirs, ..."; empty when equal."""
        ours, theirs = self.to_dict(), other.to_dict()
        return ", ".join(f"{k}: {v} != {theirs[k]}" for k, v in ours.items() if v != theirs[k])


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
