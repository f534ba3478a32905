"""The rules for media: how files become frames, bounds on one clip, and the reasons of refusals."""

import dataclasses
import hashlib
import json
import math
import numbers

from videorft_jax.models.geometry import WINDOWED_14, Geometry, find_geometry

_UNIT = WINDOWED_14.unit**2  # The pixels of a visual token under the default geometry.

# What the fields of a contract may say.
CHOICES = {
    "sampling": ("qwen", "hf"),
    "budget": ("frame", "clip"),
    "mrope_rule": ("qwen", "hf4", "hf5"),
    "stamps": ("index", "time"),
    "video_wrapper": ("qwen", "hf5"),
}
_MOST = 400  # characters of a path or of a detail in a message
REASONS = {
    "missing": "check the path and the data root",
    "not_regular": "replace the pipe or device by a plain file; a folder of frames needs fps",
    "unreadable": "give this user read permission on the file and its directories",
    "outside_root": "keep media below the data root and write paths relative to it;"
    " where links lead elsewhere, name that folder in limits.roots",
    "protocol": "download the media first; records hold plain relative paths only",
    "empty": "copy the file again, it holds zero bytes",
    "too_large": "shorten or re-encode the file, or raise limits.max_bytes",
    "not_media": "re-encode as mp4, or as png or jpeg for images; playlists are never followed",
    "unsupported": "re-encode as H.264 mp4 without unusual rotation, a picture as png or jpeg",
    "no_video": "drop the record, the file has no video stream",
    "cover_art": "drop the record, the only picture is the cover of an audio file",
    "too_many_pixels": "scale the file down, or raise limits.max_source_pixels",
    "aspect_ratio": "crop the picture to an aspect ratio below 200",
    "too_long": "cut the clip, or raise limits.max_seconds, limits.max_packets",
    "too_few_frames": "use data_type image, widen start and end, or ask for fewer frames",
    "empty_range": "set 0 <= start < end, both within the clip, at least two frames apart",
    "truncated": "copy the file again, its end is missing",
    "corrupt": "copy or re-encode the file, its content is damaged",
    "timeout": "check the storage, or raise limits.timeout_s",
    "memory": "scale the file down, or raise limits.memory_bytes",
    "crashed": "report the file; the isolated decoder died on it",
}


def cut_text(text: str, most: int = 120) -> str:
    """A text as messages show it, in one line: of a long one, such as a data URI, its begin and its
    length."""
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}... ({len(text)} characters)"


class MediaError(ValueError):
    """A clip that cannot be used. `reason` is a key of `REASONS`, `path` names the clip as the
    record does, `detail` says what was seen. `str()` is one line and ends in the remedy."""

    def __init__(self, reason: str, detail: str, path: str = ""):
        if reason not in REASONS:
            raise KeyError(f"MediaError: unknown reason {reason!r}; add it to REASONS")
        super().__init__(reason, detail, path)
        self.reason, self.detail, self.path = reason, detail, path

    def __str__(self) -> str:
        path, detail = cut_text(self.path, _MOST), cut_text(self.detail, _MOST)
        line = f"{path}: {self.reason}: {detail}; {REASONS[self.reason]}"
        return line.encode("unicode_escape").decode()


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on one clip. They protect the run and never change a pixel, so that they are no part
    of the contract. An hour-long file passes; what is above four hours does not.

    roots are folders besides the data root into which paths and links of records may lead, such as
    the cache of a hub. timeout_s is wall time for one clip, checked at every packet. memory_bytes
    is address space for decoding, on top of the libraries, and holds only with `isolate=True`.
    """

    max_bytes: int = 16 << 30
    max_source_pixels: int = 8192 * 4320
    max_seconds: float = 4 * 3600.0
    max_packets: int = 2_000_000
    timeout_s: float = 120.0
    memory_bytes: int = 2 << 30
    roots: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MediaContract:
    """How a file becomes frames. Two runs with equal `digest` give the model equal pixels.

    sampling: how many frames n are taken of a range; their indices are round(linspace(first, last,
      n)). "qwen" (qwen-vl-utils): n = total / native_fps * fps, clamped to [min_frames, max_frames]
      and to the clip, floored to even. "hf" (transformers' processor of models that read
      timestamps): the same truncated to a whole number, which may be odd. `num_frames` fixes n.
    budget: what the pixel bounds hold for. "frame" (qwen-vl-utils): min_pixels and max_pixels for
      one frame, which shrinks further where a clip would exceed total_pixels. "clip" (the
      processor): min_pixels and total_pixels for all frames together, and max_pixels times n.
    image_min_pixels, image_max_pixels: bounds of a still image.
    resized_height, resized_width: the size that every frame and image gets whatever its own is,
      rounded to whole visual tokens, in place of all pixel bounds; None, both, in most contracts.
    mrope_rule: the position rule, see `data.batch.layout`.
    stamps: the time that is written before each frame pair, where the model reads it. "index" is a
      frame's number over the container's average rate, as in the processor; "time" the moment at
      which the frame is shown, which differs where the rate varies.
    video_wrapper: "qwen" (transformers < 5.10, how the weights were released) writes each frame
      pair behind its time; "hf5" (later ones) puts a pair of vision markers around the whole clip.
    """

    sampling: str = "qwen"
    fps: float = 2.0
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int = 128 * _UNIT
    max_pixels: int = 768 * _UNIT
    total_pixels: int = 115_200 * _UNIT  # nine tenths of 128,000 visual tokens
    image_min_pixels: int = 4 * _UNIT
    image_max_pixels: int = 256 * _UNIT
    patch_size: int = WINDOWED_14.patch
    merge_size: int = WINDOWED_14.merge
    temporal_patch_size: int = WINDOWED_14.temporal_patch
    resize: str = "bicubic_antialias"
    mrope_rule: str = "qwen"
    budget: str = "frame"
    stamps: str = "index"
    video_wrapper: str = "qwen"
    resized_height: int | None = None
    resized_width: int | None = None

    FORMAT = 1  # raise when the meaning of a field changes
    # Fields that came later. They are left out of the dict and the digest while they say what was
    # so before them, so that contracts of before keep both.
    LATER = ("budget", "stamps", "video_wrapper", "resized_height", "resized_width")

    def __post_init__(self):
        def require(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"MediaContract: {what}")

        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_none = field.default is None and value is None
            if isinstance(field.default, str) or may_be_none:
                continue
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            shown = cut_text(repr(value), 40)
            require(is_number and abs(value) < math.inf, f"{field.name} is {shown}; give a number")
        object.__setattr__(self, "fps", float(self.fps))  # 2 and 2.0 are one contract
        for name, known in CHOICES.items():
            found = getattr(self, name)
            shown = cut_text(repr(found), 40)
            require(found in known, f"{name} is {shown}; choose one of {known}")
        require(self.resize == "bicubic_antialias", f"unknown resize {self.resize!r}")
        require(0 < self.fps < 1000, f"fps must be in (0, 1000), got {self.fps}")
        require(self.num_frames is None or self.num_frames >= 2, "num_frames must be None or >= 2")
        require(2 <= self.min_frames <= self.max_frames, "need 2 <= min_frames <= max_frames")
        require(0 < self.min_pixels <= self.max_pixels, "need 0 < min_pixels <= max_pixels")
        cut = find_geometry(self.patch_size)
        sizes = (self.merge_size, self.temporal_patch_size)
        require(
            sizes == (cut.merge, cut.temporal_patch),
            f"merge_size and temporal_patch_size must be {cut.merge} and {cut.temporal_patch}",
        )
        sides = (self.resized_height, self.resized_width)
        require(
            sides == (None, None) or all(isinstance(s, int) and s > 0 for s in sides),
            f"resized_height and resized_width are {sides}; give both, in pixels, or none",
        )
        require(0 < self.image_min_pixels <= self.image_max_pixels, "image pixels: need min <= max")

    @property
    def geometry(self) -> Geometry:
        """How the frames are cut into patches."""
        return find_geometry(self.patch_size)

    @property
    def factor(self) -> int:
        """Pixels on a side of one visual token."""
        return self.geometry.unit

    @property
    def digest(self) -> str:
        """sha256 over the fields and the format version, as 64 hexadecimal digits."""
        text = json.dumps({"format": self.FORMAT} | self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def train(cls, geometry: Geometry = WINDOWED_14) -> "MediaContract":
        """At most 16 frames of about 128 visual tokens each. The original sets both its least and
        its greatest frame count to 16 and both pixel bounds to 128 tokens (so that 1.05 times that
        is the true maximum): 16 frames for any clip that has them, fewer for shorter ones. Before
        2025-08-31 its least count was 4. Unlike the original we return the true fps."""
        return cls(min_frames=16, max_frames=16, **_scaled(geometry, max_pixels=128))

    @classmethod
    def evaluate(cls, geometry: Geometry = WINDOWED_14) -> "MediaContract":
        """At most 32 frames of about 256 visual tokens each, as the original's evaluation does by
        editing the constants of its vendored qwen-vl-utils; images as in training."""
        pixels = _scaled(geometry, min_pixels=256, max_pixels=256)
        return cls(min_frames=32, max_frames=32, **pixels)

    def to_dict(self) -> dict:
        """The fields; those of LATER only where they differ from the default."""
        fields = dataclasses.asdict(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in self.LATER or value != getattr(MediaContract, name)
        }

    @classmethod
    def from_dict(cls, fields: dict) -> "MediaContract":
        """Inverse of `to_dict`; ValueError names fields that are unknown or absent."""
        if not isinstance(fields, dict):
            raise ValueError("MediaContract: fields are no dict; give name -> value")
        wrong = set(fields) ^ {field.name for field in dataclasses.fields(cls)}
        wrong -= set(cls.LATER) - set(fields)
        if wrong:
            names = cut_text(str(sorted(map(str, wrong))), _MOST)
            raise ValueError(f"MediaContract: unknown or absent fields {names}")
        return cls(**fields)

    def with_frames(self, most: int | None) -> "MediaContract":
        """The same contract with at most `most` frames a clip; itself where that is None."""
        if most is None:
            return self
        fixed = None if self.num_frames is None else min(most, self.num_frames)
        least = min(most, self.min_frames)
        return dataclasses.replace(self, min_frames=least, max_frames=most, num_frames=fixed)

    def describe(self) -> str:
        """The numbers that decide most about a clip, as a line for people."""
        frames = self.num_frames or f"{self.min_frames} to {self.max_frames}"
        if self.min_frames == self.max_frames and not self.num_frames:
            frames = self.min_frames
        rate = f" at {self.fps:g} a second" if isinstance(frames, str) else ""
        pixels = f"{self.min_pixels} to {self.max_pixels} pixels"
        if self.resized_height:
            pixels = f"{self.resized_height} x {self.resized_width} pixels"
        of = "each" if self.budget == "frame" else "a frame of a clip"
        return f"{frames} frames{rate}, {pixels} {of}, positions {self.mrope_rule}"

    def diff(self, other: "MediaContract") -> str:
        """The fields that differ, as "name: ours != theirs, ..."; empty when equal."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return ", ".join(f"{k}: {v} != {theirs[k]}" for k, v in ours.items() if v != theirs[k])


def _scaled(geometry: Geometry, **tokens: int) -> dict[str, int]:
    """The fields of a contract that depend on the geometry. Its pixel bounds are the defaults in
    visual tokens, but for those that `tokens` gives."""
    bounds = {
        field.name: field.default // _UNIT
        for field in dataclasses.fields(MediaContract)
        if field.name.endswith("_pixels")
    }
    sizes = {
        "patch_size": geometry.patch,
        "merge_size": geometry.merge,
        "temporal_patch_size": geometry.temporal_patch,
    }
    return sizes | {name: count * geometry.unit**2 for name, count in (bounds | tokens).items()}
