"""Chats as people pass them to `prepare`: placeholders, and the keys of qwen-vl-utils."""

import pytest

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.parts import place_media, read_keys

CONTRACT = MediaContract.evaluate()
VIDEO = {"type": "video", "video": "a.mp4"}
IMAGE = {"type": "image", "image": "b.png"}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def words(text):
    return {"type": "text", "text": text}


def test_media_stand_at_their_placeholders():
    chat = user(VIDEO, IMAGE, words("First <video>, then <image>?"))
    expected = user(words("First "), VIDEO, words(", then "), IMAGE, words("?"))
    assert place_media(chat) == expected
    plain = user(VIDEO, words("What moves?"))
    assert place_media(plain) == plain
    with pytest.raises(ValueError, match="message 0: 2 placeholders, 1 media"):
        place_media(user(VIDEO, words("<video> <video>")))


def test_keys_change_the_contract_of_their_part():
    part = VIDEO | {"video_start": 1.0, "video_end": 3, "max_pixels": 300 * 784, "nframes": 8}
    contract, times = read_keys(part, CONTRACT, True)
    assert (contract.num_frames, contract.max_pixels) == (8, 300 * 784)
    assert times == {"start": 1.0, "end": 3}
    contract, _ = read_keys(VIDEO | {"fps": 1.0}, CONTRACT, True)
    assert (contract.fps, contract.min_frames, contract.max_frames) == (1.0, 4, 768)
    assert read_keys(VIDEO | {"fps": 1.0}, CONTRACT, False)[0] == CONTRACT  # frames' own rate
    contract, _ = read_keys(IMAGE | {"max_pixels": 10 * 784}, CONTRACT, True)
    assert contract.image_max_pixels == 10 * 784
    assert read_keys(VIDEO, CONTRACT, True) == (CONTRACT, {})


@pytest.mark.parametrize("key", ["resized_height", "speed", "min_frame"])
def test_keys_that_would_change_nothing_are_refused(key):
    with pytest.raises(ValueError, match=f"video: {key}: not known here; use "):
        read_keys(VIDEO | {key: 3}, CONTRACT, True)
