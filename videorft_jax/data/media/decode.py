"""Exact frames of a video by PyAV, decoding as little as possible.

Every packet is looked at once without decoding, which gives the true frame list, the keyframes and
the signs of damage. Wanted frames are then decoded group by group: the reader seeks to the keyframe
in front of them, and the decoder skips pictures that nobody refers to. The result is bit-identical
to decoding everything. Wherever that cannot be promised (a container without a trustworthy index,
odd timestamps, any surprise on the way) the file is decoded from its first packet to its last, and
only that reading may call a clip corrupt.

What a decoder does not notice, this reader does not either: of files with some bytes overwritten it
refused all but 4 of 30 for H.264, 1 for AV1, 2 for MPEG-4, but 19 for HEVC and 30 for VP9 decoded
without complaint. Whoever needs more compares file digests.
"""

import dataclasses
import time
from collections.abc import Callable, Container, Iterator
from io import BytesIO

import av
import numpy as np

from videorft_jax.data.media.contract import Limits, MediaError
from videorft_jax.data.media.streams import (
    MATROSKA,
    MOV,
    Seen,
    choose_stream,
    continue_clock,
    find_lack,
)

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,ivf,mxf"
# Audio decoders are left out on purpose: probing then decodes no sound. Neither are the still
# picture codecs, whose bombs cost gigabytes while probing.
CODECS = (
    "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,mpeg2video,mpeg1video,msmpeg4,msmpeg4v1,msmpeg4v2,h263,"
    "h263i,flv,wmv1,wmv2,wmv3,vc1,theora,mjpeg,prores,dnxhd,ffv1,gif,vp6,vp6f,svq1,svq3,cinepak,"
    "rawvideo,dvvideo,huffyuv,ffvhuff,utvideo,qtrle"
)
UNKNOWN_CONTAINER = "no allowed video container recognised"
WHOLE_FRAMES = ("hevc", "vp8", "vp9", "libdav1d", "av1")
SEEKABLE = (MOV, MATROSKA)  # Files of other containers are read from their start.
Convert = Callable[[av.VideoFrame], np.ndarray]
Choose = Callable[[np.ndarray, float], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """images[i] is frame indices[i] of num_frames, shown seconds[i] after the first frame."""

    images: list[np.ndarray]
    indices: np.ndarray  # int64 [n]
    seconds: np.ndarray  # float64 [n]
    num_frames: int
    rate: float  # native frames per second, of the whole file


@dataclasses.dataclass(frozen=True)
class Scan:
    """What the packets say: `pts` int64 [n] of every frame that will be shown, in order; `keys`
    int64 [k] of the keyframes; whether seeking by them can be trusted."""

    pts: np.ndarray
    keys: np.ndarray
    exact: bool


class _Unsure(Exception):
    """The fast reader met something it cannot vouch for."""


class VideoFile:
    """One opened video. Use as a context manager; every method respects the deadline.

    source: "/dev/fd/N", or the bytes of a file. Raises MediaError (without path) not_media,
    truncated, no_video, cover_art, too_many_pixels, unsupported while opening.
    """

    def __init__(self, source: str | bytes, limits: Limits):
        self.source, self.limits = source, limits
        self.deadline = time.monotonic() + limits.timeout_s
        self.container = None

    def __enter__(self) -> "VideoFile":
        self._open()
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def _close(self) -> None:
        if self.container is not None:
            self.stream = None  # must not outlive its container
            self.container.close()
            self.container = None

    def _open(self) -> None:
        """(Re)opens at the first packet."""
        self._close()
        pixels = {"max_pixels": str(self.limits.max_source_pixels)}
        try:
            self.container = av.open(
                BytesIO(self.source) if isinstance(self.source, bytes) else self.source,
                options=pixels,  # probing decodes too
                container_options={
                    "protocol_whitelist": "file",
                    "format_whitelist": FORMATS,
                    "codec_whitelist": CODECS,
                },
                metadata_errors="replace",
                timeout=self.limits.timeout_s,
            )
        except (av.FFmpegError, ValueError) as error:
            raise self._why_not_opened(error) from None
        try:
            self._pick_stream(pixels)
        except BaseException:
            self._close()
            raise

    def _why_not_opened(self, error: Exception) -> MediaError:
        if isinstance(error, av.error.ExitError | MemoryError):
            return self._translate(error, "")
        if isinstance(self.source, bytes):
            head = self.source[:12]
        else:
            with open(self.source, "rb") as file:
                head = file.read(12)
        if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":
            return MediaError("truncated", "the header is there, the index is not")
        return MediaError("not_media", UNKNOWN_CONTAINER)

    def _pick_stream(self, pixels: dict[str, str]) -> None:
        stream = choose_stream(self.container)
        context = stream.codec_context
        if context is None:
            raise MediaError("unsupported", "no decoder for the video stream")
        if context.width * context.height > self.limits.max_source_pixels:
            size = f"{context.width}x{context.height}"
            raise MediaError("too_many_pixels", f"{size} > {self.limits.max_source_pixels} pixels")
        if context.codec.name not in CODECS.split(","):
            raise MediaError("unsupported", f"video codec {context.codec.name}")
        context.options = pixels
        context.thread_count = 1  # parallel across clips, not inside one
        self.stream = stream

    def _translate(self, error: av.FFmpegError, reason: str, packet: int = 0) -> MediaError:
        """What a refused read means: `reason`, unless time or memory ran out."""
        if isinstance(error, av.error.ExitError):
            return MediaError("timeout", f"not read within {self.limits.timeout_s:g} s")
        if isinstance(error, MemoryError):
            return MediaError("memory", "no memory left while reading")
        return MediaError(reason, f"packet {packet} unreadable: {error.strerror}")

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise MediaError("timeout", f"not read within {self.limits.timeout_s:g} s")

    def scan(self) -> Scan:
        """Looks at all packets of all streams: the longest one tells whether the file is whole.
        Raises MediaError too_long, truncated, too_few_frames, timeout."""
        own, pts, keys = self.stream.index, [], []
        seen, odd = Seen(), False
        try:
            for packet in continue_clock(self.container, self.container.demux()):
                self._check_time()
                if packet.dts is None and not packet.size:
                    continue  # the end of a stream
                seen.add(packet)
                if packet.stream_index != own:
                    continue
                odd |= packet.pts is None or not packet.size
                odd |= seen.counts[own] == 1 and not packet.is_keyframe
                if seen.counts[own] > self.limits.max_packets:
                    raise MediaError(
                        "too_long", f"more than {self.limits.max_packets} video packets"
                    )
                if packet.is_keyframe:
                    keys.append(packet.pts)
                if not packet.is_discard:  # edit lists decode some frames and do not show them
                    pts.append(packet.pts)
        except av.FFmpegError as error:
            raise self._translate(error, "truncated", seen.counts[own]) from None
        lack = find_lack(self.container, self.source, seen)
        if lack:
            raise MediaError("truncated", lack)
        if not pts:
            raise MediaError("too_few_frames", "no video packets")
        if odd or None in pts:
            return Scan(np.zeros(len(pts), np.int64), np.zeros(0, np.int64), False)
        order, keys = np.sort(np.array(pts, np.int64)), np.sort(np.array(keys, np.int64))
        exact = self.container.format.name in SEEKABLE and len(np.unique(order)) == len(order)
        return Scan(order, keys, bool(exact and keys[0] <= order[0]))

    def read(self, choose: Choose, convert: Convert) -> Decoded:
        """Decodes the frames that `choose(seconds [num_frames], rate)` names (indices, rising).

        Raises MediaError as `scan` does, and corrupt, timeout, unsupported.
        """
        scan = self.scan()
        if scan.exact:
            seconds, rate = self._clock(scan.pts)
            indices = choose(seconds, rate)
            try:
                images = self._by_groups(scan, np.unique(indices), convert)
                images = [images[i] for i in indices]
                return Decoded(images, indices, seconds[indices], len(seconds), rate)
            except _Unsure:
                pass
        pts = scan.pts
        for _ in range(2):  # again only if the packets told other frames than the decoder shows
            guess = choose(*self._clock(pts))
            images, pts = self._from_start(set(guess.tolist()), convert)
            seconds, rate = self._clock(pts)
            indices = choose(seconds, rate)
            if images.keys() == set(indices.tolist()):
                images = [images[i] for i in indices]
                return Decoded(images, indices, seconds[indices], len(seconds), rate)
        raise MediaError("corrupt", "two readings gave different frames")

    def _clock(self, pts: np.ndarray) -> tuple[np.ndarray, float]:
        """Seconds since the first frame, float64 [n], and the native rate.

        The header's rate holds where the timestamps agree with it within 1 % (they may be rounded
        to milliseconds); of a variable rate, the mean of the timestamps counts. Timestamps that
        do not rise (AVI with B-frames) are replaced by frame number over the header's rate.
        """
        header = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        if not len(pts):
            raise MediaError("corrupt", "no frame can be decoded")
        rising = None not in pts.tolist() and bool(np.all(np.diff(pts) > 0))
        if not rising:
            if not header:
                raise MediaError("corrupt", "timestamps do not rise and no rate is known")
            return np.arange(len(pts)) / header, header
        seconds = (pts - pts[0]).astype(np.float64) * float(self.stream.time_base)
        if len(pts) < 2:
            return seconds, header or 1.0
        measured = (len(pts) - 1) / seconds[-1]
        return seconds, header if abs(header - measured) <= 0.01 * measured else measured

    def _by_groups(self, scan: Scan, indices: np.ndarray, convert: Convert) -> dict:
        """Wanted frames, each decoded from the keyframe in front of it: {index: image}."""
        images = {}
        wanted = {int(scan.pts[i]): int(i) for i in indices}
        behind = np.searchsorted(scan.keys, scan.pts[indices], side="right") - 1
        groups: dict[int, set[int]] = {}
        for key, i in zip(behind, indices, strict=True):
            groups.setdefault(int(scan.keys[key]), set()).add(int(scan.pts[i]))
        for key, targets in groups.items():  # seek only when the next wanted group lies ahead
            try:
                for frame in self._read_group(key, targets, wanted):
                    images[wanted[frame.pts]] = convert(frame)
            except MemoryError:
                raise  # some of FFmpeg's errors are this one too
            except av.FFmpegError:
                raise _Unsure from None
        return images

    def _read_group(self, key: int, targets: set[int], wanted: Container[int]) -> Iterator:
        """Frames with the timestamps `targets`, decoded from the keyframe `key` on; the decoder
        shows other frames too, and may drop those that are not wanted."""
        context, drains, unread = self.stream.codec_context, self._drains(), set(targets)
        first = last = None  # pts of the packet that the seek found, of the last frame shown
        self.container.seek(key, stream=self.stream, backward=True)
        for packet in self.container.demux(self.stream):
            self._check_time()
            if first is None:
                first = packet.pts
                if first is None or first > key or not packet.is_keyframe:
                    raise _Unsure  # the seek went elsewhere
                last, hidden = first - 1, packet.is_discard
            # dav1d reads skip_frame only once, at the first packet: a keyframe
            needed = packet.is_keyframe or packet.pts in wanted
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            frames = context.decode(packet)
            unread.discard(packet.pts)
            if drains and not unread:
                frames += context.decode(None)
            for frame in frames:
                if frame.pts is None or frame.pts <= last or frame.is_corrupt:
                    raise _Unsure
                if drains and frame.interlaced_frame and context.codec.name == "h264":
                    raise _Unsure  # the second field of the last frame may be missing
                if last < first and not hidden and frame.pts != first:
                    raise _Unsure  # a gradual refresh calls itself a keyframe
                last = frame.pts
                if frame.pts in targets:
                    yield frame
                    targets.discard(frame.pts)
            if not unread and (drains or not targets):
                break
        if targets:
            raise _Unsure

    def _drains(self) -> bool:
        """Whether a decoder that has got the packet of a frame can be asked for the frame at once,
        instead of by the packets behind it, of which it would decode two or more for nothing.

        That is so where one packet holds a whole frame. Interlaced H.264 may have a packet for each
        field.
        """
        context = self.stream.codec_context
        progressive = context.field_order == 1  # AV_FIELD_PROGRESSIVE
        return progressive if context.codec.name == "h264" else context.codec.name in WHOLE_FRAMES

    def _from_start(self, indices: set[int], convert: Convert) -> tuple[dict, np.ndarray]:
        """Decodes everything: ({index: image}, pts of all frames shown). MediaError corrupt."""
        self._open()
        images, pts, refused, damaged, packets = {}, [], 0, 0, 0
        try:
            for packet in continue_clock(self.container, self.container.demux(self.stream)):
                self._check_time()
                packets += bool(packet.size)
                try:
                    frames = packet.decode()
                except (av.error.ExitError, MemoryError):
                    raise
                except av.FFmpegError:
                    refused += 1
                    continue
                for frame in frames:
                    damaged += frame.is_corrupt
                    if len(pts) in indices:
                        images[len(pts)] = convert(frame)
                    pts.append(frame.pts)
        except av.FFmpegError as error:
            raise self._translate(error, "corrupt", packets) from None
        if refused or damaged:
            found = (
                f"{refused} of {packets} packets refused, {damaged} of {len(pts)} frames damaged"
            )
            raise MediaError("corrupt", found)
        return images, np.array(pts, object if None in pts else np.int64)


def read_single_frame(source: str | bytes, limits: Limits) -> np.ndarray:
    """The picture, uint8 [h, w, 3], of a video that has only one, as some cameras write stills.

    Raises MediaError as `VideoFile`, and not_media for a video of more frames.
    """

    def choose(seconds: np.ndarray, rate: float) -> np.ndarray:
        if len(seconds) > 1:
            raise MediaError("not_media", f"a video of {len(seconds)} frames is no still image")
        return np.zeros(1, np.int64)

    def convert(frame: av.VideoFrame) -> np.ndarray:
        if frame.width * frame.height > limits.max_source_pixels:
            raise MediaError("too_many_pixels", f"a frame of {frame.width}x{frame.height}")
        return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))

    with VideoFile(source, limits) as file:
        return np.ascontiguousarray(file.read(choose, convert).images[0])
