"""Every kind of bad input ends in a MediaError with its reason code, never in an exception of
another kind, a hang, a network access or a swapped frame. Files are made here."""

import http.server
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videorft_jax.data.media import decode
from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import REASONS, Limits, MediaContract, MediaError
from videorft_jax.data.media.load import load_media

TRAIN = MediaContract.train()


def write_video(path, num=50, rate=25, size=(64, 48), container=None, preset="veryfast"):
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": preset, "g": "25"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        texture = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        for i in range(num):
            image = np.roll(texture, i, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def add_audio(out, *first):
    """Two seconds of silence; packets of other streams go first, when all streams are known."""
    stream = out.add_stream("aac", rate=44100, layout="mono")
    out.mux(first)
    for i in range(80):
        samples = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 1024 * i, Fraction(1, 44100)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


def png_bomb(width=16384, height=16000):
    """A valid PNG of 786 MB of zeros in 3 MB."""
    pack, row = zlib.compressobj(1), bytes(1 + 3 * width)
    data = b"".join([pack.compress(row) for _ in range(height)]) + pack.flush()

    def chunk(name, body):
        return (
            len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        )

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("media") / "root"
    root.mkdir()
    good = write_video(root / "good.mp4")
    write_video(root.parent / "outside.mp4")
    data = good.read_bytes()
    (root / "sub").mkdir()
    os.mkfifo(root / "pipe.mp4")
    (root / "zero.mp4").touch()
    (root / "index_missing.mp4").write_bytes(data[: len(data) // 2])
    fast = write_video(root / "fast.mp4", container={"movflags": "faststart"}).read_bytes()
    (root / "half.mp4").write_bytes(fast[: len(fast) // 2])
    mkv = write_video(root / "good.mkv").read_bytes()
    (root / "half.mkv").write_bytes(mkv[: len(mkv) // 2])
    broken = bytearray(data)
    at = data.index(b"mdat") + 4
    middle = at + (len(data) - at) // 3
    broken[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    (root / "corrupt.mp4").write_bytes(broken)
    (root / "text.mp4").write_text("I am not a video.\n" * 50)
    (root / "wrong.avi").write_bytes(data)
    (root / "wrong.txt").write_bytes(data)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n"
    (root / "list.m3u8").write_text(playlist)
    (root / "list_named.mp4").write_text(playlist)
    (root / "concat_named.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (root / "link_out.mp4").symlink_to(root.parent / "outside.mp4")
    (root / "link_in.mp4").symlink_to("good.mp4")
    (root / "link_loop.mp4").symlink_to("link_loop.mp4")
    (root / "folder_out").symlink_to(root.parent)
    with av.open(str(root / "audio.m4a"), "w") as out:
        add_audio(out)
    write_video(root / "one.mp4", num=1)
    write_video(root / "large.mp4", num=2, size=(3200, 1800), preset="ultrafast")
    with av.open(str(root / "none.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        add_audio(out)
    png = png_bomb()
    (root / "bomb.png").write_bytes(png)
    with av.open(str(root / "bomb.mov"), "w") as out:
        stream = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16384, 16000, "rgb24"
        packet = av.Packet(png)
        packet.pts, packet.dts, packet.time_base = 0, 0, Fraction(1, 1)
        packet.stream, packet.is_keyframe = stream, True
        out.mux(packet)
    Image.new("RGB", (64, 64), (9, 99, 9)).save(root / "picture.png")
    (root / "half.png").write_bytes((root / "picture.png").read_bytes()[:80])
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(0, 200, 50)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (4000, 10)).save(root / "ribbon.png")
    with av.open(str(root / "cover.mp4"), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame(64, 64, "yuvj420p")
        image.pts, image.time_base = 0, Fraction(1, 1)
        add_audio(out, *cover.encode(image), *cover.encode())
    return root


CASES = [
    ("absent.mp4", "missing"),
    ("good.mp4/absent.mp4", "missing"),
    ("x" * 5000, "missing"),
    ("", "missing"),
    ("good.mp4\0.png", "missing"),
    ("sub", "not_regular"),
    (".", "not_regular"),
    ("pipe.mp4", "not_regular"),
    ("zero.mp4", "empty"),
    ("index_missing.mp4", "truncated"),
    ("half.mp4", "truncated"),
    ("half.mkv", "truncated"),
    ("corrupt.mp4", "corrupt"),
    ("audio.m4a", "no_video"),
    ("cover.mp4", "cover_art"),
    ("none.mkv", "too_few_frames"),
    ("one.mp4", "too_few_frames"),
    ("bomb.mov", "too_many_pixels"),
    ("text.mp4", "not_media"),
    ("picture.png", "not_media"),
    ("list.m3u8", "not_media"),
    ("list_named.mp4", "not_media"),
    ("concat_named.mp4", "not_media"),
    ("concat:good.mp4|good.mp4", "protocol"),
    ("file:good.mp4", "protocol"),
    ("subfile,,start,0,end,0,,:good.mp4", "protocol"),
    ("http://127.0.0.1:1/good.mp4", "protocol"),
    ("HTTPS://example.org/good.mp4", "protocol"),
    ("../outside.mp4", "outside_root"),
    ("sub/../../outside.mp4", "outside_root"),
    ("/etc/passwd", "outside_root"),
    ("link_out.mp4", "outside_root"),
    ("folder_out/outside.mp4", "outside_root"),
    ("link_loop.mp4", "not_regular"),
]


@pytest.mark.parametrize(("name", "reason"), CASES)
def test_reason_of_bad_video(name, reason, root):
    started = time.monotonic()
    found = load_media(name, root, TRAIN)
    assert isinstance(found, MediaError), f"{name} was read"
    assert found.reason == reason, str(found)
    assert time.monotonic() - started < 60
    line = str(found)
    assert "\n" not in line
    assert line.endswith(REASONS[reason])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bomb.png", "too_many_pixels"),
        ("half.png", "truncated"),
        ("moving.gif", "unsupported"),
        ("ribbon.png", "aspect_ratio"),
        ("good.mp4", "not_media"),
        ("zero.mp4", "empty"),
        ("pipe.mp4", "not_regular"),
        ("../root/picture.png", "outside_root"),
    ],
)
def test_reason_of_bad_image(name, reason, root):
    found = load_media(name, root, TRAIN, kind="image")
    assert isinstance(found, MediaError)
    assert found.reason == reason, str(found)


@pytest.mark.parametrize(
    "name", ["good.mp4", "wrong.avi", "wrong.txt", "link_in.mp4", "./good.mp4"]
)
def test_what_a_name_says_does_not_matter(name, root):
    """A wrong extension is read by what the file holds; links within the root are fine."""
    good = load_media("good.mp4", root, TRAIN)
    found = load_media(name, root, TRAIN)
    assert isinstance(found, Clip)
    np.testing.assert_array_equal(found.frames, good.frames)


def test_other_bad_arguments(root):
    assert load_media(None, root, TRAIN).reason == "missing"
    assert load_media(b"", root, TRAIN).reason == "empty"
    assert load_media(b"ffconcat version 1.0\nfile good.mp4", root, TRAIN).reason == "not_media"
    assert load_media("good.mp4", root, TRAIN, start=3.0, end=1.0).reason == "empty_range"
    short = MediaContract(num_frames=64)
    assert load_media("good.mp4", root, short).reason == "too_few_frames"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_bytes=1000), "too_large"),
        (Limits(max_source_pixels=64 * 47), "too_many_pixels"),
        (Limits(max_seconds=1.0), "too_long"),
        (Limits(max_packets=49), "too_long"),
        (Limits(timeout_s=0.0), "timeout"),
    ],
)
def test_limits(limits, reason, root):
    assert load_media("good.mp4", root, TRAIN, limits=limits).reason == reason


def test_damage_is_counted(root):
    detail = load_media("corrupt.mp4", root, TRAIN).detail
    assert "of 50 packets refused" in detail
    assert load_media("half.mp4", root, TRAIN).detail.endswith("of 50 video frames")


def test_hour_long_file_is_sampled(tmp_path):
    """An hour is within the limits (four hours): read from its first to its last frame, quickly."""
    write_video(tmp_path / "hour.mp4", num=3600, rate=1, size=(32, 32), preset="ultrafast")
    clip = load_media("hour.mp4", tmp_path, MediaContract.evaluate())
    assert isinstance(clip, Clip), clip
    assert len(clip.frames) == 32
    assert clip.timestamps[[0, -1]].tolist() == [0.0, 3599.0]
    assert clip.fps == 32 / 3600
    cut = load_media("hour.mp4", tmp_path, MediaContract.evaluate(), start=1800, end=1900)
    assert cut.indices[[0, -1]].tolist() == [1800, 1900]
    assert load_media("hour.mp4", tmp_path, TRAIN, limits=Limits(max_seconds=1800)).reason == (
        "too_long"
    )


def test_no_network_access(root):
    """A server counts its visitors: http names and playlists that point at it bring none."""
    visits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_error(404)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.ts"
        header = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
        (root / "net.m3u8").write_text(f"{header}{url}\n#EXT-X-ENDLIST\n")
        (root / "net.mp4").write_text(f"ffconcat version 1.0\nfile {url}\n")
        for name in (url, "net.m3u8", "net.mp4"):
            for kind in ("video", "image"):
                assert isinstance(load_media(name, root, TRAIN, kind=kind), MediaError)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert visits == []


def test_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s.mp4"))
        assert load_media("s.mp4", tmp_path, TRAIN).reason == "not_regular"
    assert load_media("null", "/dev", TRAIN).reason == "not_regular"


def test_unreadable_file():
    """Root may read everything, so that the test steps down for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "secret.mp4"
        path.write_bytes(b"secret")
        path.chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
            try:
                found = load_media("secret.mp4", folder, TRAIN)
            finally:
                os.seteuid(0)
        else:
            found = load_media("secret.mp4", folder, TRAIN)
        assert found.reason == "unreadable"


BOUNDED = """
import resource, sys
from videorft_jax.data.media import contract, load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kind = "image" if sys.argv[1].endswith("png") else "video"
found = load.load_media(sys.argv[1], sys.argv[2], contract.MediaContract.train(), kind=kind)
print(found.reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["bomb.mov", "bomb.png"])
def test_memory_of_a_bomb_is_bounded(name, root):
    """One frame is 786 MB of RGB; refusing it must cost next to nothing."""
    limit = 2 << 30
    run = subprocess.run(
        [sys.executable, "-c", BOUNDED, name, str(root)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    reason, grown = run.stdout.split()
    assert reason == "too_many_pixels"
    assert int(grown) < 100


def test_a_slow_decode_ends_in_an_error(root, monkeypatch):
    """Each frame takes 0.05 s; the deadline is looked at with every packet."""
    write_video(root / "slow.avi", num=200)

    def crawl(frame):
        time.sleep(0.05)
        return np.zeros((1, 1, 3), np.uint8)

    with (
        decode.VideoFile(str(root / "slow.avi"), Limits(timeout_s=0.5)) as file,
        pytest.raises(MediaError) as error,
    ):
        file.read(lambda seconds, rate: np.arange(len(seconds)), crawl)
    assert error.value.reason == "timeout"


def test_isolated_reading_gives_the_same_clip(root):
    for source in ("good.mp4", (root / "good.mp4").read_bytes()):
        here = load_media(source, root, TRAIN, start=0.5)
        there = load_media(source, root, TRAIN, start=0.5, isolate=True)
        for ours, theirs in zip(here, there, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    image = load_media("picture.png", root, TRAIN, kind="image", isolate=True)
    np.testing.assert_array_equal(
        image.frames, load_media("picture.png", root, TRAIN, kind="image").frames
    )


@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("corrupt.mp4", Limits(), "corrupt"),
        ("../outside.mp4", Limits(), "outside_root"),
        ("large.mp4", Limits(memory_bytes=1 << 20), "memory"),
    ],
)
def test_isolated_reading_gives_the_same_reasons(name, limits, reason, root):
    found = load_media(name, root, TRAIN, limits=limits, isolate=True)
    assert found.reason == reason, str(found)
    assert found.path == name


def test_a_hung_decoder_is_killed(root, monkeypatch, tmp_path):
    """The child hangs for good before it decodes (a stand-in for a decoder that never returns:
    none can be had on order); the parent must come back in time and leave no process behind."""
    from videorft_jax.data.media import isolate

    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(1000)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(isolate, "GRACE_S", 1.0)
    started = time.monotonic()
    found = load_media("good.mp4", root, TRAIN, limits=Limits(timeout_s=1.0), isolate=True)
    assert found.reason == "timeout"
    assert time.monotonic() - started < 100
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
