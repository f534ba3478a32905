"""How large each record will be, without decoding it: one look at the packets, remembered.

One design decision is worth knowing: sizes are exact, not estimates. The frame count and the frame
size after the resize follow from the packet scan and one keyframe by the same functions that the
decoder uses, and the text is tokenised for real. A record that then arrives in another shape has
changed on disk. Answers are kept in a folder of JSONL files (one per process), keyed by path, size
and modification time, so that a second start looks only at what is new.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from videorft_jax.data.batch.layout import num_windows, token_grid
from videorft_jax.data.loader.buckets import Sizes
from videorft_jax.data.loader.watchdog import Progress, call_within
from videorft_jax.data.media import decode, video
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError, open_media
from videorft_jax.data.records.prompts import PromptTemplate, build_messages, build_target, render
from videorft_jax.data.records.quarantine import Failure
from videorft_jax.data.records.records import Record, RecordError

logger = logging.getLogger(__name__)
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
CHUNK = 4096  # records submitted to the threads at a time


class Source(Protocol):
    """Random access to records. `source[i]` raises RecordError for a bad row. A source that may
    hold the media themselves also has `media(i)`, a file's bytes or None, and `fingerprint`, a
    string that changes when its contents do, or None where it holds only paths."""

    data_root: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def where(self, index: int) -> str: ...


def patience(limits: Limits, isolate: bool) -> float:
    """Seconds after which the thread of a clip is given up: past the clip's own deadline, which
    gives the better reason."""
    return 1.5 * limits.timeout_s + (20 if isolate else 1)


class Probe(NamedTuple):
    """What a clip becomes under one media contract: `frames` frames of height x width pixels at
    `fps` sampled frames per second; or a reason and detail why it cannot be used."""

    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    source_height: int = 0
    source_width: int = 0
    reason: str = ""
    detail: str = ""

    @property
    def num_pairs(self) -> int:
        return -(-self.frames // 2)

    @property
    def num_windows(self) -> int:
        return num_windows(self.height, self.width)

    @property
    def num_tokens(self) -> int:
        down, across = token_grid(self.height, self.width)
        return self.num_pairs * down * across


class Answers:
    """A dictionary str -> list that outlives the process: every file of `folder` is read, this
    process appends to its own. folder None: memory only. Thread-safe."""

    def __init__(self, folder: str | os.PathLike | None, process_index: int = 0):
        self._known: dict[str, list] = {}
        self._lock, self._file = threading.Lock(), None
        if folder is None:
            return
        os.makedirs(folder, exist_ok=True)
        for name in sorted(os.listdir(folder)):
            if name.startswith("sizes-") and name.endswith(".jsonl"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    for line in file:
                        try:
                            key, value = json.loads(line)
                        except ValueError:
                            continue  # cut off when the run was; it is looked up again
                        self._known[key] = value
        name = os.path.join(folder, f"sizes-{process_index}.jsonl")
        # Line by line, so that a run that is killed has lost nothing.
        self._file = open(name, "a", buffering=1, encoding="utf-8")  # noqa: SIM115, see close()
        if self._file.tell():
            self._file.write("\n")  # in case the last line was cut off

    def get(self, key: str) -> list | None:
        return self._known.get(key)

    def put(self, key: str, value: list) -> None:
        with self._lock:
            self._known[key] = value
            if self._file is not None:
                self._file.write(json.dumps([key, value]) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def media_of(source: Source, index: int, record: Record) -> str | bytes:
    """The record's path, or the bytes of its file where the source holds them."""
    read = getattr(source, "media", None)
    return record.path if read is None else read(index) or record.path


def probe_media(
    media: str | bytes, record: Record, root: str, contract: MediaContract, limits: Limits
) -> Probe:
    """Looks at packets and one frame of a video, the header of an image. Never raises for bad
    input; damage further inside the file is found only by decoding (`check_media`)."""
    kind = record.data_type
    try:
        if isinstance(media, bytes):
            if not media:
                raise MediaError("empty", "zero bytes")
            return _probe(media, kind, record, contract, limits)
        with open_media(media, root, limits) as descriptor:
            return _probe(f"/dev/fd/{descriptor}", kind, record, contract, limits)
    except MediaError as error:
        return Probe(reason=error.reason, detail=error.detail)
    except Image.DecompressionBombError as error:
        return Probe(reason="too_many_pixels", detail=str(error))
    except UnidentifiedImageError:
        return Probe(reason="not_media", detail="no image recognised")
    except MemoryError:
        return Probe(reason="memory", detail="no memory left while looking at it")
    except (av.FFmpegError, OSError, SyntaxError) as error:
        return Probe(reason="corrupt", detail=f"{type(error).__name__}: {error}")


def _probe(
    name: str | bytes, kind: str, record: Record, contract: MediaContract, limits: Limits
) -> Probe:
    if kind == "image":
        from io import BytesIO

        file = BytesIO(name) if isinstance(name, bytes) else name
        with Image.open(file, "r", video.IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_source_pixels:
                what = f"{width}x{height} > {limits.max_source_pixels} pixels"
                raise MediaError("too_many_pixels", what)
            if image.getexif().get(0x0112) in SIDEWAYS:
                height, width = width, height
        size = video.target_size(height, width, 1, contract, image=True)
        return Probe(1, *size, 2.0, height, width)

    seen: dict[str, Any] = {}

    def choose(seconds: np.ndarray, rate: float) -> np.ndarray:
        first, last = video.frame_range(seconds, rate, record.start, record.end)
        total = last - first + 1
        seen["num"] = video.num_sampled(total, rate, contract)
        seen["fps"] = seen["num"] / total * rate
        return np.zeros(1, np.int64)  # a keyframe: the cheapest to decode

    def measure(frame: av.VideoFrame) -> np.ndarray:
        if frame.rotation % 90:
            raise MediaError("unsupported", f"rotated by {frame.rotation} degrees")
        size = (frame.height, frame.width)
        seen["size"] = size[::-1] if frame.rotation % 180 else size
        return np.zeros(0, np.uint8)

    with decode.VideoFile(name, limits) as file:
        file.read(choose, measure)
    size = video.target_size(*seen["size"], seen["num"], contract)
    return Probe(seen["num"], *size, float(seen["fps"]), *seen["size"])


def load_clip(
    measurer: "Measurer", index: int, record: Record, cache: Any = None
) -> video.Clip | MediaError:
    """The frames of a record: from the frame cache if it has them, else decoded."""
    media = media_of(measurer.source, index, record)
    root = measurer.source.data_root
    if cache is not None:
        clip = cache.get(media, record, root)
        if clip is not None:
            return clip
    return video.load_media(
        media,
        root,
        measurer.contract,
        kind=record.data_type,
        start=record.start,
        end=record.end,
        limits=measurer.limits,
        isolate=measurer.isolate,
    )


def check_media(measurer: "Measurer", index: int, record: Record) -> Probe:
    """As `probe_media`, by decoding all that the contract asks for, as the loader will."""
    clip = load_clip(measurer, index, record)
    if isinstance(clip, MediaError):
        return Probe(reason=clip.reason, detail=clip.detail)
    return Probe(len(clip.frames), *clip.frames.shape[1:3], float(clip.fps), *clip.source_size)


@dataclasses.dataclass(frozen=True)
class Measurer:
    """Measures records. tokenizer None: four bytes of text are counted as one token (for
    `validate`). target: the assistant's answer belongs to the sample (SFT). full: decode
    everything. Pickles, so that several processes measure alike."""

    source: Source
    contract: MediaContract
    tokenizer: Any
    template: PromptTemplate
    target: bool
    limits: Limits
    isolate: bool = False
    full: bool = False

    def media(self, index: int, record: Record, answers: Answers) -> Probe:
        key = self._media_key(index, record)
        known = answers.get(key) if key else None
        if known is not None and (known[0] or not self.full):
            return Probe(*known[1:])
        try:
            probe = call_within(patience(self.limits, self.isolate), self._look, index, record)
        except TimeoutError as error:
            probe = Probe(reason="timeout", detail=str(error))
        if key and probe.reason not in ("timeout", "memory"):  # those may pass
            answers.put(key, [bool(self.full or self.isolate), *probe])
        return probe

    def _look(self, index: int, record: Record) -> Probe:
        if self.full or self.isolate:
            return check_media(self, index, record)
        media = media_of(self.source, index, record)
        return probe_media(media, record, self.source.data_root, self.contract, self.limits)

    def _media_key(self, index: int, record: Record) -> str | None:
        span = f"{record.data_type}|{record.start}|{record.end}|{self.contract.digest[:16]}"
        fingerprint = getattr(self.source, "fingerprint", None)
        if fingerprint is not None:
            return f"row|{fingerprint}|{index}|{span}"
        try:
            status = os.stat(os.path.join(self.source.data_root, record.path))
        except (OSError, ValueError):
            return None
        return f"file|{record.path}|{status.st_size}|{status.st_mtime_ns}|{span}"

    def text(self, record: Record, answers: Answers) -> int:
        """Tokens besides the visual ones. Raises ValueError when it cannot be rendered."""
        messages = build_messages(record, self.template)
        target = build_target(record) if self.target else None
        content = json.dumps([messages, target], ensure_ascii=False)
        if self.tokenizer is None:
            return -(-len(content.encode()) // 4)
        key = f"text|{_digest(content + self._tokenizer_digest)}"
        known = answers.get(key)
        if known is None:
            known = [len(render(self.tokenizer, messages, [1], target).tokens) - 1]
            answers.put(key, known)
        return known[0]

    @property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer)

    def __call__(self, index: int, answers: Answers) -> tuple[Probe, int] | Failure:
        try:
            record = self.source[index]
        except RecordError as error:
            return Failure(index, self.source.where(index), "schema", str(error))
        try:
            text = self.text(record, answers)
        except ValueError as error:
            return Failure(index, record.path, "prompt", str(error))
        probe = self.media(index, record, answers)
        if probe.reason:
            return Failure(index, record.path, probe.reason, probe.detail)
        return probe, text


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()


_DIGESTS: dict[int, tuple[Any, str]] = {}


def tokenizer_digest(tokenizer: Any) -> str:
    """sha1 of everything that decides how the tokenizer cuts text."""
    known = _DIGESTS.get(id(tokenizer))
    if known is None or known[0] is not tokenizer:
        known = (tokenizer, _digest(tokenizer.backend_tokenizer.to_str()))
        _DIGESTS[id(tokenizer)] = known
    return known[1]


class Measured(NamedTuple):
    """Of all records: their needs (0 where bad), visual tokens int64 [N], and the bad ones."""

    sizes: Sizes
    visual_tokens: np.ndarray
    probes: list[Probe]
    failures: list[Failure]


def measure(
    measurer: Measurer,
    answers: Answers,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Measures every record of `measurer.source`, `threads` at a time."""
    total = len(measurer.source)
    progress = progress or Progress("measuring records", total)
    tokens, pairs, windows, visual = np.zeros((4, total), np.int64)
    probes, failures = [], []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, total, CHUNK):
            chunk = range(start, min(start + CHUNK, total))
            for index, found in zip(
                chunk, pool.map(lambda i: measurer(i, answers), chunk), strict=True
            ):
                if isinstance(found, Failure):
                    failures.append(found)
                    probes.append(Probe(reason=found.reason, detail=found.detail))
                else:
                    probe, text = found
                    visual[index], pairs[index] = probe.num_tokens, probe.num_pairs
                    windows[index], tokens[index] = probe.num_windows, text + probe.num_tokens
                    probes.append(probe)
                progress(index + 1)
    return Measured(Sizes(tokens, pairs, windows), visual, probes, failures)
