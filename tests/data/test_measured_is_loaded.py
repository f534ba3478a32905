"""What the probe measures is what the reader loads, over random clips, ranges and contracts."""

import functools
import io
from fractions import Fraction

import av
import numpy as np
from clips import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.probe import probe_media


@functools.cache
def clip(kind):
    if kind == "constant":
        return encode(num=60, rate=15, container="matroska")
    if kind == "variable":  # 30 a second, then 10
        times = [i / 30 for i in range(90)] + [3 + i / 10 for i in range(30)]
        return encode(times=times, container="matroska", options={"g": "20"})
    if kind == "irregular":
        times = np.cumsum(np.random.default_rng(3).uniform(0.02, 0.4, 40)).tolist()
        return encode(times=times, options={"bf": "2", "preset": "veryfast"})
    if kind == "grows":  # Its frames have another size from the thirtieth on.
        return resized((64, 48), (160, 96))
    if kind == "shrinks":
        return resized((160, 96), (64, 64))
    return encode(num=45, container="mpegts", begin=7.0)


def resized(*sizes):
    """A stream that changes its size at a keyframe: two VP8 films, one behind the other."""
    target = io.BytesIO()
    parts = [encode(num=30, rate=10, size=size, codec="libvpx", container="ivf") for size in sizes]
    with av.open(target, "w", format="webm") as out:
        stream, number = None, 0
        for part in parts:
            with av.open(io.BytesIO(part)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.stream, packet.time_base = stream, Fraction(1, 1000)
                        packet.pts = packet.dts = 100 * number
                        number += 1
                        out.mux(packet)
    return target.getvalue()


KINDS = ("constant", "variable", "irregular", "grows", "shrinks", "transport")
CONTRACTS = st.builds(
    lambda fps, least, more, fixed, pixels: MediaContract(
        fps=fps, min_frames=least, max_frames=least + more, num_frames=fixed,
        min_pixels=pixels * 784, max_pixels=2 * pixels * 784,
    ),
    st.sampled_from([0.5, 1.0, 2.0, 7.3]), st.integers(2, 8), st.integers(0, 30),
    st.sampled_from([None, None, 4, 9]), st.integers(2, 20),
)  # fmt: skip
TIMES = st.one_of(st.none(), st.floats(0, 6))


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(KINDS), CONTRACTS, TIMES, TIMES)
def test_measured_is_loaded(kind, contract, start, end):
    data = clip(kind)
    looked = probe_media(data, "/", contract, start=start, end=end)
    found = load_media(data, "/", contract, start=start, end=end)
    if isinstance(found, Clip):
        assert (looked.frames, looked.height, looked.width) == found.frames.shape[:3]
        assert looked.fps == found.fps
        assert (looked.source_height, looked.source_width) == found.source_size
    else:
        assert (looked.reason, looked.detail) == (found.reason, found.detail)


def test_a_range_of_a_variable_rate_is_sampled_at_its_own_rate():
    contract = MediaContract(min_frames=4, max_frames=64)
    for start, end, num in ((3.0, 6.0, 6), (0.0, 3.0, 6)):  # two a second, whatever was recorded
        looked = probe_media(clip("variable"), "/", contract, start=start, end=end)
        assert looked.frames == num
    assert probe_media(clip("grows"), "/", contract, start=3.5).source_height == 96
    assert probe_media(clip("grows"), "/", contract).source_height == 48
