"""HEIC and AVIF photos: read by the field's own plug-ins, or refused with the plug-in's name."""

import io
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from videorft_jax.data.media import image
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.probe import probe_media

TRAIN = MediaContract.train()
HEIC = pathlib.Path(__file__).parent / "two_colours.heic"  # 112 x 56, red at the left, blue right
RED, BLUE = (200, 30, 30), (30, 30, 200)


def draw():
    pixels = np.zeros((56, 112, 3), np.uint8)
    pixels[:, :56], pixels[:, 56:] = RED, BLUE
    return Image.fromarray(pixels)


def avif(**options):
    file = io.BytesIO()
    draw().save(file, "AVIF", quality=95, **options)
    return file.getvalue()


def with_major_brand(data, brand):
    """The file with another first brand; those that it keeps to are listed after it."""
    return data[:8] + brand + data[12:]


def check_colours(clip, first, last):
    assert np.abs(clip.frames[0, 8, 8].astype(int) - first).max() <= 3
    assert np.abs(clip.frames[0, -8, -8].astype(int) - last).max() <= 3


def test_an_avif_photo_is_read_upright():
    for data in (avif(), with_major_brand(avif(), b"mif1")):
        clip = load_media(data, "/", TRAIN, kind="image")
        assert clip.frames.shape == (1, 56, 112, 3)
        check_colours(clip, RED, BLUE)
    turn = Image.Exif()
    turn[0x0112] = 6  # shown a quarter turn clockwise: what was left is on top
    data = avif(exif=turn)
    clip = load_media(data, "/", TRAIN, kind="image")
    assert clip.frames.shape == (1, 112, 56, 3)
    check_colours(clip, RED, BLUE)
    looked = probe_media(data, "/", TRAIN, kind="image")
    assert (looked.height, looked.width) == (112, 56)


def test_a_heic_photo_is_read_where_the_plug_in_is_installed():
    pytest.importorskip("pillow_heif", reason="HEIC needs the extra heic")
    for data in (HEIC.read_bytes(), with_major_brand(HEIC.read_bytes(), b"mif1")):
        clip = load_media(data, "/", TRAIN, kind="image")
        assert clip.frames.shape == (1, 56, 112, 3)
        check_colours(clip, RED, BLUE)


def test_without_the_plug_in_the_remedy_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(image.features, "check", lambda name: False)
    heic = HEIC.read_bytes()
    cases = ((HEIC.name, "pip install pillow-heif"), (heic, "pip install pillow-heif"),
             (avif(), "install pillow 11.3"))  # fmt: skip
    for source, remedy in cases:
        found = load_media(source, HEIC.parent, TRAIN, kind="image")
        looked = probe_media(source, HEIC.parent, TRAIN, kind="image")
        assert found.reason == looked.reason == "unsupported"
        assert remedy in str(found)
        assert str(found).endswith("a picture as png or jpeg")


def test_a_cut_photo_is_a_refusal():
    for data in (avif()[:200], HEIC.read_bytes()[:300]):
        found = load_media(data, "/", TRAIN, kind="image")
        assert found.reason in ("truncated", "corrupt", "not_media", "unsupported"), str(found)
