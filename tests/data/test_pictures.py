"""Pictures in every mode and with every kind of odd side information: right colours, the right way
up, or a reason; never an exception of another kind."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import describe_file
from videorft_jax.data.media.image import open_image, read_image, to_rgb
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.probe import probe_media

TRAIN = MediaContract.train()
SIZE = (112, 56)  # width, height: a turned picture has another shape


def encoded(image, form="PNG", **options):
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def base(form):
    """Two colours side by side, so that a turn shows."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[:, :56], pixels[:, 56:] = (200, 30, 30), (30, 30, 200)
    return encoded(Image.fromarray(pixels), form)


PNG, JPEG = base("PNG"), base("JPEG")


def png_with(kind, body):
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return PNG[:33] + chunk + PNG[33:]


def jpeg_with(marker, body):
    return JPEG[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + JPEG[2:]


def exif(entries, order="<"):
    """An EXIF block of (tag, type, count, four bytes) entries, whatever they may mean."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count) + value
    return b"Exif\0\0" + head + body + bytes(4) + bytes(range(64))


def read(data):
    """The clip or the refusal; the probe must say the same."""
    found = load_media(data, "/", TRAIN, kind="image")
    looked = probe_media(data, "/", TRAIN, kind="image")
    if isinstance(found, Clip):
        assert not looked.reason, looked
        assert (looked.height, looked.width) == found.frames.shape[1:3]
    else:
        assert isinstance(found, MediaError), found
    return found


TAGS = st.sampled_from([0x0112, 0x8769, 0x8825, 0x010F, 0x0100, 0x927C, 0xA005, 0x9286, 0x02BC])
ENTRIES = st.lists(
    st.tuples(
        st.one_of(TAGS, st.integers(0, 65535)),
        st.integers(0, 14),
        st.sampled_from([0, 1, 2, 5, 64, 1 << 16, (1 << 32) - 1]),
        st.binary(min_size=4, max_size=4),
    ),
    max_size=6,
)
KINDS = st.sampled_from(
    [b"pHYs", b"gAMA", b"cHRM", b"tRNS", b"sRGB", b"acTL", b"fcTL", b"iCCP", b"tEXt", b"zTXt",
     b"iTXt", b"eXIf", b"sBIT", b"bKGD", b"tIME", b"PLTE"]
)  # fmt: skip
BODIES = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=20).map(lambda b: b"name\0\0" + zlib.compress(b * 100)),
    st.integers(1, 3).map(lambda n: b"x\0\1\0\0\0" + zlib.compress(b"x" * (n * 600_000))),
)


# Pillow warns of each odd tag that it skips; here they are odd on purpose, hundreds of them.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("many", [pytest.param(False), pytest.param(True, marks=pytest.mark.slow)])
def test_no_side_information_ends_a_run(many):
    """EXIF, PNG chunks and colour profiles of any content: a picture or a refusal."""
    counts = {"clips": 0, "refused": 0}

    @settings(max_examples=1700 if many else 120, deadline=None, derandomize=True, database=None)
    @given(ENTRIES, st.sampled_from("<>"), KINDS, BODIES, st.binary(max_size=200))
    def check(entries, order, kind, body, profile):
        block = exif(entries, order)
        icc = b"ICC_PROFILE\0\1\1" + profile
        for data in (
            jpeg_with(0xE1, block),
            png_with(kind, body),
            png_with(b"eXIf", block[6:]),
            jpeg_with(0xE2, icc),
        ):
            counts["clips" if isinstance(read(data), Clip) else "refused"] += 1

    check()
    assert counts["clips"] > counts["refused"] > 0  # most pictures are sound


def test_a_turned_photo_with_an_odd_tag_is_turned():
    """GPSDOP is the signed rational -1/0 (Pillow #8965)."""
    gps = struct.pack("<HHHIII", 1, 11, 10, 1, 56, 0) + struct.pack("<ii", -1, 0)
    tiff = struct.pack("<2sHIHHHIHHHHIII", b"II", 42, 8, 2, 0x0112, 3, 1, 6, 0, 0x8825, 4, 1, 38, 0)
    clip = read(jpeg_with(0xE1, b"Exif\0\0" + tiff + gps))
    assert clip.source_size == (112, 56)
    assert clip.frames[0][20, 28][0] > 150 > clip.frames[0][20, 28][2]  # red is above


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation):
    entry = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0))]
    clip = read(jpeg_with(0xE1, exif(entry)))
    straight = np.asarray(Image.open(io.BytesIO(JPEG)).convert("RGB"))
    turned = {
        1: straight, 2: straight[:, ::-1], 3: straight[::-1, ::-1], 4: straight[::-1],
        5: straight.transpose(1, 0, 2), 6: np.rot90(straight, -1),
        7: straight[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(straight),
    }[orientation]  # fmt: skip
    assert np.array_equal(clip.frames[0], turned)


def test_a_large_text_chunk_is_a_refusal_with_the_name(tmp_path):
    """1.2 MB of XMP, more than Pillow unpacks (LLaMA-Factory #5622)."""
    data = png_with(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 1_200_000))
    (tmp_path / "a.png").write_bytes(data)
    found = load_media("a.png", tmp_path, TRAIN, kind="image")
    assert isinstance(found, MediaError)
    assert (found.reason, found.path) == ("corrupt", "a.png")


@pytest.mark.parametrize("form", ["TIFF", "PPM", "JPEG2000", "BMP", "GIF", "WEBP"])
def test_pictures_of_other_formats(form):
    """Without loss, as told; the two colours of `base` come back."""
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(form, {})
    straight = np.asarray(Image.open(io.BytesIO(PNG)))
    clip = read(encoded(Image.fromarray(straight), form, **options))
    assert np.array_equal(clip.frames[0], straight)


def test_what_is_no_picture_is_called_so():
    found = read(b"no picture, and no video either")
    assert (found.reason, found.detail) == ("not_media", "no picture of a known format")


def test_pages_of_a_document_are_no_still():
    pages = [Image.new("L", (56, 56), level) for level in (0, 255)]
    found = read(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert (found.reason, found.detail) == (
        "unsupported", "an animation of 2 frames is no still image"
    )  # fmt: skip


GREY = np.array([[0, 64, 128], [192, 254, 255]], np.uint8)


def shown(data):
    with open_image(data, Limits()) as image:
        return to_rgb(image)


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "int32"])
def test_grey_of_16_bits_is_scaled(dtype):
    wide = GREY.astype(dtype) * 257
    assert np.array_equal(to_rgb(Image.fromarray(wide)), grey(GREY))
    near = np.clip(wide.astype(int) + 100, 0, 65535).astype(dtype)
    assert np.array_equal(to_rgb(Image.fromarray(near)), grey(np.round(near / 257)))


def test_a_grey_png_of_16_bits():
    data = encoded(Image.fromarray(GREY.astype(np.uint16) * 257))
    assert np.array_equal(shown(data), grey(GREY))
    at = data.index(b"IDAT") - 4
    body = struct.pack(">H", 64 * 257)  # this value is not to be seen
    chunk = struct.pack(">I", 2) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    expected = grey(np.where(GREY == 64, 255, GREY))
    assert np.array_equal(shown(data[:at] + chunk + data[at:]), expected)


@pytest.mark.parametrize("image", [
    Image.fromarray(np.array([[-5, 70_000]], np.int32)),
    Image.fromarray(np.array([[0.25, 3.5]], np.float32)),
], ids=["I", "F"])  # fmt: skip
def test_grey_without_a_range_is_refused(image):
    with pytest.raises(MediaError, match="no agreed range"):
        to_rgb(image)


def test_other_modes():
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)
    half = np.full((2, 2), 128, np.uint8)
    on_white = np.round(colours * (128 / 255) + 255 * (127 / 255))
    opaque = Image.fromarray(colours)
    assert np.array_equal(to_rgb(opaque), colours)
    rgba = opaque.copy()
    rgba.putalpha(Image.fromarray(half))
    assert np.abs(to_rgb(rgba) - on_white).max() <= 1
    assert np.array_equal(to_rgb(opaque.quantize(4)), colours)  # P
    palette = opaque.quantize(4)
    palette.info["transparency"] = int(np.asarray(palette)[0, 0])
    expected = colours.copy()
    expected[0, 0] = 255
    assert np.array_equal(to_rgb(palette), expected)
    pa = opaque.quantize(4).convert("PA")
    pa.putalpha(Image.fromarray(half))
    assert np.abs(to_rgb(pa) - on_white).max() <= 1
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(np.full_like(GREY, 128))])
    assert np.abs(to_rgb(la) - grey(np.round(GREY * (128 / 255) + 127))).max() <= 1
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    assert np.array_equal(to_rgb(bits), grey([[255, 0]]))


def test_cmyk_goes_without_its_profile():
    """As qwen-vl-utils does: 255 less ink and black, whatever profile the file carries."""
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0]], [[0, 100, 0, 50], [0, 0, 0, 255]]], np.uint8)
    ink = np.repeat(np.repeat(ink, 16, 0), 16, 1)
    image = Image.fromarray(ink, "CMYK")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(image, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    found = shown(data)[8::16, 8::16].astype(int)
    expected = [[[255, 255, 255], [0, 255, 255]], [[205, 124, 205], [0, 0, 0]]]
    assert np.abs(found - expected).max() <= 3


def test_an_animation_is_no_still():
    frames = [Image.new("L", (56, 56), level) for level in (0, 128, 255)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="animation of 3 frames"):
        read_image(data, TRAIN)


@pytest.mark.parametrize("is_list", [False, True], ids=["folder", "list"])
def test_frames_that_changed_places_are_other_media(tmp_path, is_list):
    """Sizes and times as a whole stay; what is remembered of the clip must not."""
    for number in range(3):
        path = tmp_path / "frames" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(8 + number))
        os.utime(path, ns=(1000 + number, 1000 + number))
    media = tuple(f"frames/{n}.png" for n in range(3)) if is_list else "frames"
    before = describe_file(media, tmp_path)
    assert describe_file(media, tmp_path) == before
    assert before[1:] == (27, 1002)
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        (tmp_path / "frames" / f"{old}.png").rename(tmp_path / "frames" / f"{new}.png")
    after = describe_file(media, tmp_path)
    assert after[1:] == before[1:]
    assert after != before
