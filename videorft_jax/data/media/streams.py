"""What a container says of itself, and how far it can be believed.

Which of several streams is the film, whether the file is whole, and what time it is after two
recordings were joined. Headers count only where nothing better is known: an mp4 that a phone has
trimmed keeps the length and the frame count of the whole recording in them.
"""

import collections
from collections.abc import Iterable, Iterator
from io import BytesIO

import av
from av.stream import Disposition

from videorft_jax.data.media.contract import MediaError

MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
JOINED = ("mpegts", "mpeg")  # may be files put one behind the other, each with a clock of its own
JUMP_S, BACK_S = 10.0, 0.1  # steps of a clock that FFmpeg, too, takes for a new clock
UNKNOWN_SIZES = {(1 << 7 * n) - 1 for n in range(1, 9)}  # EBML: all bits set


def choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that players show: one that can be decoded, is flagged as the default, is
    more than a still picture, is the largest, and then the longest; the first among equals.

    Raises MediaError no_video and cover_art.
    """
    videos = container.streams.video
    if not videos:
        raise MediaError("no_video", f"{len(container.streams)} streams, none is video")
    shown = [stream for stream in videos if not stream.disposition & Disposition.attached_pic]
    if not shown:
        raise MediaError("cover_art", "the video stream is an attached picture")

    def rank(stream: av.VideoStream) -> tuple:
        context = stream.codec_context
        still = stream.frames == 1 or bool(
            stream.disposition & (Disposition.still_image | Disposition.timed_thumbnails)
        )
        return (
            context is not None,
            bool(stream.disposition & Disposition.default),
            not still,
            context.width * context.height if context else 0,
            _length(stream),
            -stream.index,
        )

    return max(shown, key=rank)


def _length(stream: av.VideoStream) -> float:
    """Seconds of a stream by its header, 0 where it does not say. Matroska writes a tag such as
    00:01:02.500000000."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


class Seen:
    """What the packets of a file have told: their number in each stream, the end of the last one
    in seconds, and whether the very last was shorter than announced."""

    def __init__(self):
        self.counts: collections.Counter[int] = collections.Counter()
        self.end, self.is_cut = 0.0, False

    def add(self, packet: av.Packet) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.time_base:
            self.end = max(self.end, float((stamp + (packet.duration or 0)) * packet.time_base))
        self.is_cut = packet.is_corrupt
        self.counts[packet.stream_index] += 1


def find_lack(container: av.container.InputContainer, source: str | bytes, seen: Seen) -> str:
    """What a file announces and does not hold, "" when it is whole.

    An mp4's index lists each sample that its edit lists leave; a fragmented one has no index before
    its fragments are read, so that its announced length must do. Matroska tells how many bytes it
    has.
    """
    name, announced = container.format.name, (container.duration or 0) / av.time_base
    if name == MOV and any(stream.frames for stream in container.streams):
        for stream in (*container.streams.video, *container.streams.audio):
            still = stream.disposition & Disposition.attached_pic
            listed = len(stream.index_entries) if stream.frames and not still else 0
            if seen.counts[stream.index] < listed:
                return f"{seen.counts[stream.index]} of {listed} {stream.type} frames"
    elif name == MOV:
        frames = max(seen.counts.values(), default=1)
        if announced - seen.end - 2 * announced / frames > 0.5 + 0.02 * announced:
            return f"{seen.end:.2f} s of {announced:.2f} s"
    elif name == MATROSKA:
        end, size = _segment_end(source)
        if end > size:
            return f"{size} of {end} bytes"
    return "the last packet is cut" if seen.is_cut else ""


def _segment_end(source: str | bytes) -> tuple[int, int]:
    """(bytes that a Matroska file should have, bytes that it has); the first is 0 where its writer
    left it open, as live recordings do. https://www.rfc-editor.org/rfc/rfc8794"""
    with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        for _ in range(2):  # the EBML header, the segment
            kind = _read_number(file, keep_marker=True)
            length = _read_number(file)
            if kind == 0x18538067:
                return (0 if length in UNKNOWN_SIZES else file.tell() + length), size
            file.seek(length, 1)
    return 0, size


def _read_number(file, keep_marker: bool = False) -> int:
    """An EBML number: the leading zero bits of its first byte say how many bytes follow."""
    first = file.read(1)
    if not first or not first[0]:
        return 0
    more = 8 - first[0].bit_length()
    head = first[0] if keep_marker else first[0] & ((1 << (7 - more)) - 1)
    return int.from_bytes(bytes([head]) + file.read(more), "big")


def continue_clock(
    container: av.container.InputContainer, packets: Iterable[av.Packet]
) -> Iterator[av.Packet]:
    """The packets, with timestamps that go on where those of a transport stream jump.

    Such streams may be recordings put one behind the other. A jump of more than 10 s, or back by
    more than 0.1 s, is a new clock (FFmpeg's own rule), and the frame after it follows the frame
    before it.
    """
    if container.format.name not in JOINED:
        yield from packets
        return
    shift: dict[int, int] = collections.defaultdict(int)  # Each stream has one, in its ticks.
    following: dict[int, int] = {}  # The next packet of a stream should stand here.
    for packet in packets:
        index, tick = packet.stream_index, packet.time_base
        if packet.dts is not None and tick:
            step = packet.dts + shift[index] - following.get(index, packet.dts + shift[index])
            if step * tick > JUMP_S or step * tick < -BACK_S:
                shift[index] -= step
            moved = shift[index]
            packet.dts += moved
            if packet.pts is not None:
                packet.pts += moved
            following[index] = packet.dts + (packet.duration or 0)
        yield packet
