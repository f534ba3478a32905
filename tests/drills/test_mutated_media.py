"""Mutated clips and pictures of many formats: decoded, or refused by name with a reason, and
measured as they are loaded; nothing crashes, hangs or grows."""

import functools
import io
import random
import struct
import time
import zlib

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import REASONS, Limits, MediaContract, MediaError
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.probe import probe_media

TRAIN = MediaContract.train()
LIMITS = Limits(timeout_s=60.0)
# The names give FFmpeg's container and codec.
CLIPS = {
    "mp4": ("mp4", "libx264"), "mov": ("mov", "libx264"), "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx"), "avi": ("avi", "mpeg4"), "ts": ("mpegts", "libx264"),
    "mpg": ("mpeg", "mpeg2video"), "flv": ("flv", "flv"), "3gp": ("3gp", "mpeg4"),
    "ogv": ("ogg", "libvpx"), "mjpeg.avi": ("avi", "mjpeg"), "vp9.webm": ("webm", "libvpx-vp9"),
    "hevc.mp4": ("mp4", "libx265"), "asf": ("asf", "msmpeg4"), "prores.mov": ("mov", "prores_ks"),
}  # fmt: skip
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")


@functools.cache
def clip(name):
    container, codec = CLIPS[name]
    target, rng = io.BytesIO(), np.random.default_rng(0)
    texture = rng.integers(0, 255, (9, 11, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(target, "w", format=container) as out:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = out.add_stream(codec, rate=25, options=quiet)
        stream.width, stream.height = 176, 144
        stream.pix_fmt = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
        for shift in range(20):
            image = np.roll(texture, 4 * shift, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return target.getvalue()


@functools.cache
def picture(form):
    pixels = np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)
    target = io.BytesIO()
    more = {"exif": Image.Exif().tobytes()} if form in ("PNG", "JPEG", "WEBP") else {}
    Image.fromarray(pixels).save(target, form, **more)
    return target.getvalue()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, overwritten or torn off, mostly near the head."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        size = len(changed)
        if size < 8:
            break
        place = rng.randrange(min(size, 600) if rng.random() < 0.5 else size)
        count = rng.choice((1, 4, 16, 300))
        kind = rng.randrange(6)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + count] = rng.randbytes(min(count, size - place))
        elif kind == 2:
            del changed[place : place + count]
        elif kind == 3:
            changed[place:place] = changed[place : place + count]
        elif kind == 4:
            value = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000))
            changed[place : place + 4] = struct.pack(">I", value)
        else:
            del changed[rng.randrange(size // 2, size) :]
    return bytes(changed)


def mend_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that the damage is read."""
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        out += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out)


def check(path, folder, kind):
    """True where it was decoded as it was measured, None where decoding alone showed that frames
    are missing, which the loader quarantines as `changed`, and False for a refusal, which names the
    file and gives a known reason."""
    began = time.monotonic()
    looked = probe_media(path, folder, TRAIN, kind=kind, limits=LIMITS)
    found = load_media(path, folder, TRAIN, kind=kind, limits=LIMITS)
    assert time.monotonic() - began < 600
    if isinstance(found, Clip):
        assert not looked.reason, (path, looked)
        return (looked.frames, looked.height, looked.width) == found.frames.shape[:3] or None
    assert isinstance(found, MediaError), path
    assert found.reason in REASONS
    assert found.path == path
    assert "\n" not in str(found)
    # What only decoding finds, the probe cannot know; else both say the same.
    assert looked.reason in ("", found.reason), (path, looked, str(found))
    return False


def run(names, make, kind, total, folder):
    rng, process = random.Random(0), psutil.Process()
    counts, sizes = {True: 0, False: 0, None: 0}, []
    for number in range(total):
        name = names[number % len(names)]
        data = mutate(make(name), rng)
        if name == "PNG" and number % 2:
            data = mend_checksums(data)
        path = f"{number}.{name.lower()}"
        (folder / path).write_bytes(data)
        counts[check(path, folder, kind)] += 1
        (folder / path).unlink()
        if number % max(1, total // 20) == 0:
            sizes.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    return counts, sizes


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    ("num_clips", "num_pictures"),
    [(15, 40), pytest.param(2000, 2000, marks=pytest.mark.slow)],
)
def test_mutated_media(num_clips, num_pictures, tmp_path):
    for names, make, kind, total in (
        (list(CLIPS), clip, "video", num_clips),
        (list(PICTURES), picture, "image", num_pictures),
    ):
        counts, sizes = run(names, make, kind, total, tmp_path)
        assert counts[True] > total // 10, counts
        assert counts[False] > total // 10, counts
        assert counts[None] <= total // 500, counts
        middle, end = sizes[len(sizes) // 2], sizes[-1]
        assert end[0] - middle[0] < 64 << 20, sizes  # The second half may take so many bytes.
        assert end[1] - middle[1] <= 2, sizes
        assert end[2] - middle[2] <= 2, sizes
