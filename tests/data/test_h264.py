"""Stand-ins for pictures that no wanted frame is predicted from, against decoding every frame."""

import av
import numpy as np
import pytest

from videorft_jax.data.media import h264
from videorft_jax.data.media.contract import Limits
from videorft_jax.data.media.decode import VideoFile, _replace
from videorft_jax.data.media.h264 import find_stand_ins

NUM, SIDE = 80, 64
# Settings of x264, and whether it then writes pictures that can be left out.
SETTINGS = {
    "plain": ("", True),
    "strict": ("b-pyramid=strict:b-adapt=0:bframes=3", True),
    "many": ("bframes=8:b-adapt=0", True),
    "flat": ("b-pyramid=none", False),
    "huffman": ("cabac=0:bframes=5:b-adapt=0", True),
    "slices": ("slices=3:bframes=4:b-adapt=0", True),
    "temporal": ("direct=temporal:bframes=5:b-adapt=0", True),
    "weights": ("weightp=2:weightb=1:bframes=5:b-adapt=0", True),
    "groups": ("keyint=20:min-keyint=20:bframes=5:b-adapt=0", True),
    "open": ("open-gop=1:keyint=20:bframes=3:b-adapt=0", True),
    "references": ("ref=3:bframes=8:b-adapt=0", False),
    "interlaced": ("tff=1", False),
    "parameters_in_packets": ("repeat-headers=1", False),
}


def write(path, settings: str, seed: int) -> None:
    """Blurred noise that drifts, brightens and darkens, so that every frame differs from others."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 255, (SIDE // 8, SIDE // 8, 3)).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "crf": "20", "x264-params": settings}
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for i in range(NUM):
            image = np.roll(noise, (3 * i, i), (0, 1)) * (0.6 + 0.4 * np.sin(i / 9))
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def pixels(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


def read_packets(path) -> tuple[bytes, list[tuple[int, bytes]]]:
    with av.open(str(path)) as container:
        packets = [(p.pts, bytes(p)) for p in container.demux(video=0) if p.size]
        return bytes(container.streams.video[0].codec_context.extradata), packets


@pytest.mark.parametrize("name", SETTINGS)
def test_wanted_frames_equal_sequential_decoding(name, tmp_path, monkeypatch):
    settings, leaves_out = SETTINGS[name]
    path, found = tmp_path / ("clip.mkv" if name == "plain" else "clip.mp4"), []
    write(path, settings, seed=len(name))
    with av.open(str(path)) as container:
        frames = [pixels(frame) for frame in container.decode(video=0)]
    assert len(frames) == NUM

    def count(*args):
        found.append(find_stand_ins(*args))
        return found[-1]

    def replace(packet, content):
        other = _replace(packet, content)
        assert content is None or bytes(other) == content
        return other

    def never(*args):
        raise AssertionError("read from the start")

    monkeypatch.setattr("videorft_jax.data.media.decode.find_stand_ins", count)
    monkeypatch.setattr("videorft_jax.data.media.decode._replace", replace)
    monkeypatch.setattr(VideoFile, "_from_start", never)
    monkeypatch.setattr(h264, "_LONGEST", 3)  # Longer lists are read too, where nothing is won.
    random = np.random.default_rng(0)
    several = [np.sort(random.choice(NUM, n, replace=False)) for n in (2, 3, 5, 8, 16) * 2]
    for wanted in [*np.arange(0, NUM, 3)[:, None], *several]:
        with VideoFile(str(path), Limits()) as file:
            got = file.read(lambda seconds, rate, wanted=wanted: wanted, pixels)
        for image, i in zip(got.images, wanted, strict=True):
            np.testing.assert_array_equal(image, frames[i], err_msg=f"{name} {wanted} frame {i}")
    assert any(found) == leaves_out


def test_stand_ins_leave_the_buffer_as_the_pictures_do(tmp_path):
    """Number, order and marking are read back off the packets, by way of another parameter set."""
    write(tmp_path / "clip.mp4", "bframes=8:b-adapt=0", 1)
    header, packets = read_packets(tmp_path / "clip.mp4")
    own = h264._read_parameters(header)
    other = own._replace(picture=h264._STAND_IN_PPS, weighted=(False, False), active=(1, 1))
    read = dict(packets)
    found = find_stand_ins(header, packets, {max(pts for pts, _ in packets)})
    heads = {
        pts: next(unit for unit in h264._split(read[pts], 4) if unit[0] & 31 == 1) for pts in found
    }
    forgotten = 0
    for pts, content in found.items():
        parameters, unit = h264._split(content, 4)
        assert (parameters[0] & 31, unit[0] & 31) == (8, 1)
        theirs, ours = h264._read_slice(heads[pts], own), h264._read_slice(unit, other)
        fields = ("is_idr", "is_reference", "first", "frame_num", "order", "forgets")
        for name in fields:
            assert getattr(ours, name) == getattr(theirs, name), name
        forgotten += len(ours.forgets or ())
    assert len(found) > 5
    assert forgotten > 3


def test_references_of_a_picture_by_hand():
    """Three pictures shown at 0, 8 and 4 are stored. By 8.2.4.2.3 a picture of type B at 12 has the
    lists 8, 4, 0 and, because both would be alike, 4, 8, 0; one at 6 has 4, 0, 8 and 8, 4, 0."""
    own = h264._Parameters(0, 4, 6, 4, 16, 0, (1, 1), (False, False), 4)
    stored = ((0, 2, 0, 0), (1, 0, 1, 8), (2, 1, 2, 4))  # timestamp, type, number, order

    def refer(order: int, *slices: tuple) -> set[int]:
        buffer = h264._Buffer(own)
        for pts, kind, number, place in stored:
            part = h264._Slice(pts == 0, True, 0, kind, number, place, (1, 1), ([], []), None)
            buffer.add(pts, [part])
        parts = [
            h264._Slice(False, False, i, h264.B, 3, order, active, changes, None)
            for i, (active, changes) in enumerate(slices)
        ]
        return set(buffer.add(9, parts).needs)

    assert refer(12, ((1, 1), ([], []))) == {1, 2}
    assert refer(6, ((1, 1), ([], []))) == {2, 1}
    assert refer(6, ((2, 1), ([], []))) == {2, 0, 1}
    assert refer(6, ((1, 1), ([(-1, 3)], []))) == {0, 1}  # number 3 - 3 comes first
    assert refer(6, ((1, 1), ([], [])), ((1, 1), ([(-1, 3)], []))) == {2, 0, 1}
    assert refer(6, ((1, 1), ([(-1, 3), (1, 2)], []))) == {0, 1}


def test_units_hold_no_begin_of_another():
    """Annex B of the standard begins a unit with 00 00 01; 03 keeps such bytes apart."""
    assert h264._unit(0x61, "0" * 24, 4) == b"\0\0\0\6\x61\0\0\3\0\x80"
    assert h264._unit(0x61, "0" * 23, 2) == b"\0\5\x61\0\0\3\1"


def test_damaged_headers_end_in_no_stand_in_or_a_whole_packet(tmp_path, monkeypatch):
    """Bits of the header and of the packets are turned over: nothing is raised, and what comes is
    made of two units."""
    write(tmp_path / "clip.mp4", "", 0)
    header, packets = read_packets(tmp_path / "clip.mp4")
    last, random = {max(pts for pts, _ in packets)}, np.random.default_rng(2)
    assert find_stand_ins(header, packets, last)
    for _ in range(200):
        damaged = [bytearray(header), *(bytearray(data) for _, data in packets)]
        for _ in range(random.integers(1, 4)):
            data = damaged[random.integers(0, len(damaged)) if random.random() < 0.5 else 0]
            data[random.integers(0, min(len(data), 60))] ^= 1 << random.integers(0, 8)
        given = [(pts, bytes(data)) for (pts, _), data in zip(packets, damaged[1:], strict=True)]
        for content in find_stand_ins(bytes(damaged[0]), given, last).values():
            assert len(content) < 100
    (first, data), *others = packets
    filling = b"\0\0\0\2\x0c\x80"  # A unit without content may stand in a packet, but not often.
    assert find_stand_ins(header, [(first, filling * 200 + data), *others], last)
    assert find_stand_ins(header, [(first, filling * 300 + data), *others], last) == {}
    for cut in (b"", b"\1", header[:9], header[:20]):
        assert find_stand_ins(cut, packets, last) == {}
    monkeypatch.setattr(h264, "_MOST_PICTURES", 30)
    assert find_stand_ins(header, packets, last) == {}
