"""Attacks of media that other tests stop by a second line of defence: here the first one counts."""

import io

import numpy as np
import pytest
from clips import encode
from PIL import Image

from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.load import load_media

TRAIN = MediaContract.train()


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile good.mp4\n", "#EXTM3U\n#EXTINF:2,\ngood.ts\n#EXT-X-ENDLIST\n"],
)
def test_a_playlist_in_bytes_opens_no_file_of_the_working_directory(text, tmp_path, monkeypatch):
    """FFmpeg looks for a playlist's files in the working directory where it is given bytes."""
    (tmp_path / "good.mp4").write_bytes(encode())
    (tmp_path / "good.ts").write_bytes(encode(container="mpegts"))
    monkeypatch.chdir(tmp_path)
    found = load_media(text.encode(), tmp_path, TRAIN)
    assert isinstance(found, MediaError)
    assert found.reason == "not_media"


def test_a_picture_beyond_the_limit_is_refused_by_its_header():
    """Pillow's own limit of 179 million pixels is far above."""
    target = io.BytesIO()
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(target, "PNG")
    limits = Limits(max_source_pixels=60 * 80 - 1)
    found = load_media(target.getvalue(), "/", TRAIN, kind="image", limits=limits)
    assert isinstance(found, MediaError)
    assert found.reason == "too_many_pixels"
