"""Trimmed and joined recordings give the frames that players show, whatever their headers say."""

import io
import random
import shutil
import struct
import subprocess

import av
import numpy as np
import pytest
from clips import encode

from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.decode import VideoFile
from videorft_jax.data.media.video import read_video

SCALE = 90_000  # ticks a second of the media
FIRST = 7200  # tick of the first frame shown: two frames later than it is decoded
TRAIN = MediaContract.train()


@pytest.fixture(scope="module")
def clip():
    """Six seconds with B-frames and a keyframe every second, the index behind the samples."""
    return encode(num=150, options={"preset": "veryfast", "bf": "2", "g": "25"})


def with_edits(data, edits):
    """The mp4 with another edit list: (duration in ms, first tick of the media or -1) pairs."""
    file = bytearray(data)
    at = file.index(b"elst") - 4
    size = struct.unpack_from(">I", file, at)[0]
    body = struct.pack(">I4sII", 16 + 12 * len(edits), b"elst", 0, len(edits))
    body += b"".join(struct.pack(">IiI", *edit, 1 << 16) for edit in edits)
    grown = len(body) - size
    file[at : at + size] = body
    for box in (b"edts", b"trak", b"moov"):
        place = file.rindex(box, 0, at) - 4
        struct.pack_into(">I", file, place, struct.unpack_from(">I", file, place)[0] + grown)
    assert file.index(b"mdat") < file.index(b"moov")  # so that no sample has moved
    return bytes(file)


def frames_shown(data):
    """Pictures of all frames in order, by PyAV's plain loop."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


def frames_read(data):
    with VideoFile(data, Limits()) as file:
        choose = lambda seconds, _: np.arange(len(seconds))  # noqa: E731
        found = file.read(choose, lambda frame: frame.to_ndarray(format="gray"))
    return found.images, found.seconds


def random_edits(rng):
    edits = [(rng.randrange(100, 3000), -1)] if rng.random() < 0.3 else []
    for _ in range(rng.randrange(1, 4)):
        edits.append((rng.randrange(200, 3000), rng.randrange(0, 5 * SCALE)))
    return edits


@pytest.mark.parametrize(
    ("edits", "num"),
    [
        ([(2000, FIRST)], 50),  # trimmed to its first two seconds
        ([(2000, FIRST), (1500, FIRST + 3 * SCALE)], None),  # two cuts
        ([(1000, FIRST)] * 3, 75),  # the same second three times
        ([(1000, -1), (2000, FIRST + 2 * SCALE)], 50),  # begins late, and inside
    ],
)
def test_an_edited_mp4_gives_the_frames_that_are_shown(clip, edits, num):
    data = with_edits(clip, edits)
    shown = frames_shown(data)
    assert num in (None, len(shown))
    images, seconds = frames_read(data)
    assert len(images) == len(shown)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(images, shown, strict=True))
    assert np.diff(seconds).min() > 0


def test_random_edits(clip):
    rng = random.Random(0)
    for _ in range(40):
        edits = random_edits(rng)
        data = with_edits(clip, edits)
        shown = frames_shown(data)
        if not shown:
            with pytest.raises(MediaError):
                read_video(data, TRAIN)
            continue
        images, _ = frames_read(data)
        assert len(images) == len(shown), edits
        assert all(map(np.array_equal, images, shown)), edits


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the oracle is ffmpeg itself")
def test_a_thousand_random_edits_equal_ffmpeg(clip, tmp_path):
    rng, path = random.Random(1), tmp_path / "edited.mp4"
    command = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:v", "-fps_mode", "passthrough"]
    for number in range(1000):
        edits = random_edits(rng)
        path.write_bytes(with_edits(clip, edits))
        run = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "gray", "-"], stdout=-1)
        shown = np.frombuffer(run.stdout, np.uint8)
        try:
            images, _ = frames_read(path.read_bytes())
        except MediaError:
            assert not len(shown), (number, edits)
            continue
        assert np.array_equal(np.concatenate([image.ravel() for image in images]), shown), edits


def test_cut_files_are_still_refused(clip, tmp_path):
    """The index lists more than the file holds."""
    path = str(tmp_path / "fast.mp4")
    with (
        av.open(io.BytesIO(clip)) as source,
        av.open(path, "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with open(path, "rb") as file:
        whole = file.read()
    assert len(read_video(whole, TRAIN).frames) == 16
    for share in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(MediaError, match="truncated"):
            read_video(whole[: int(share * len(whole))], TRAIN)


@pytest.mark.parametrize("lie", [60.0, 0.5])
def test_a_wrong_length_in_the_header_is_no_damage(clip, lie):
    """The movie says that it lasts a minute, or half a second; its index and samples say 6 s."""
    file = bytearray(clip)
    at = file.index(b"mvhd")
    scale = struct.unpack_from(">I", file, at + 16)[0]
    struct.pack_into(">I", file, at + 20, int(lie * scale))
    assert read_video(bytes(file), TRAIN).indices[-1] == 149


def joined(first, second):
    """Two transport streams in one file; each begins its clock where it likes."""
    return encode(**first, container="mpegts") + encode(**second, container="mpegts")


@pytest.mark.parametrize("jump", [0.0, 3.0, -1.0, 20_000.0])
def test_joined_transport_streams_go_on_with_the_clock(jump):
    begin = 30_000.0
    data = joined({"num": 50, "begin": begin}, {"num": 30, "begin": begin + 2.0 + jump})
    images, seconds = frames_read(data)
    assert len(images) == 80
    gaps = np.diff(seconds)
    assert gaps.min() > 0
    assert gaps.max() == pytest.approx(jump + 0.04 if 0 < jump < 10 else 0.04, abs=1e-3)
    assert read_video(data, TRAIN).indices[-1] == 79
