"""Among several video streams the one that players show is read."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from clips import encode

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.video import read_video

TRAIN = MediaContract.train()


def test_ten_bits_are_rounded_to_eight_and_nothing_is_tone_mapped():
    """Grey in 10 bits, flagged as HDR (PQ, BT.2020)."""
    flags = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    for level in (20, 100, 180, 250):
        deep = read_video(encode(options=flags, pix_fmt="yuv420p10le", level=level), TRAIN)
        assert np.abs(deep.frames.astype(int) - level).max() <= 2  # shown as SDR: 100 is not 4


def write(streams, container="mov"):
    """A file of (codec, width, height, frames, disposition) streams of mid grey, 10 a second."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as out:
        made = []
        for codec, width, height, num, disposition in streams:
            stream = out.add_stream(codec, rate=10)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            made.append((stream, num))
        packets = []
        for stream, num in made:
            image = np.full((stream.height, stream.width, 3), 128, np.uint8)
            for i in range(num):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                packets += stream.encode(frame)
            packets += stream.encode()
        for packet in packets:
            out.mux(packet)
    return target.getvalue()


FILM = ("libx264", 192, 128, 20, Disposition.default)
STILL = ("mjpeg", 64, 48, 1, Disposition(0))


@pytest.mark.parametrize("container", ["mov", "matroska"])
@pytest.mark.parametrize(
    ("streams", "taken"),
    [
        ([STILL, FILM], 1),  # a thumbnail in front of the film
        ([FILM, STILL], 0),
        ([("libx264", 320, 240, 20, Disposition(0)), FILM], 1),  # the flag before the size
        ([("libx264", 96, 64, 40, Disposition.default), FILM], 1),  # the size before the length
        ([("libx264", 192, 128, 12, Disposition.default), FILM], 1),  # the length
        ([FILM, FILM], 0),
        ([("mjpeg", 640, 480, 1, Disposition.attached_pic), FILM], 1),
    ],
)
def test_the_film_is_taken(streams, taken, container):
    clip = read_video(write(streams, container), TRAIN)
    _, width, height, num, _ = streams[taken]
    assert clip.source_size == (height, width)
    assert clip.indices[-1] == num - 1
