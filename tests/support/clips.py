"""Small clips as bytes, whose frames all differ."""

import io
from fractions import Fraction

import av
import numpy as np


def encode(
    num=50, rate=25, size=(64, 48), codec="libx264", container="mp4", begin=0.0, options=None,
    pix_fmt="yuv420p", times=None, level=None,
):  # fmt: skip
    """A clip of `num` frames of (width, height) pixels, shown from `begin` on at `rate`, or at
    `times`, seconds; of noise, or of one level of grey."""
    target, ticks = io.BytesIO(), 90_000
    if codec == "libx264":
        options = {"preset": "ultrafast"} | (options or {})
    times = [begin + i / rate for i in range(num)] if times is None else times
    texture = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    with av.open(target, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, ticks)
        for i, seconds in enumerate(times):
            image = np.roll(texture, 3 * i, 1)
            image[:8] = i % 256
            if level is not None:
                image[:] = level
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(seconds * ticks), Fraction(1, ticks)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target.getvalue()
