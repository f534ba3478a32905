"""Chats as people pass them to `prepare`: rows, placeholders, and the keys of qwen-vl-utils."""

import numpy as np
import pytest

from videorft_jax.data.media.clip import resize_frames
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.sampling import target_size
from videorft_jax.data.records.parts import place_media, read_chat, read_keys
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import parse_row

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
    with pytest.raises(ValueError, match="message 0: 2 placeholders such as <video>, 1 media"):
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


@pytest.mark.parametrize("key", ["resized_heigth", "speed", "min_frame"])
def test_keys_that_would_change_nothing_are_refused(key):
    with pytest.raises(ValueError, match=f"video: {key}: not known here; use "):
        read_keys(VIDEO | {key: 3}, CONTRACT, True)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (VIDEO | {"nframes": "8"}, "video: nframes: '8' is no number"),
        (VIDEO | {"fps": 2, "nframes": 8}, "fps and nframes contradict each other; give one"),
        (IMAGE | {"resized_height": 56}, "resized_height and resized_width are .56, None.; give"),
        (IMAGE | {"resized_height": 56.5, "resized_width": 56}, "give both, in pixels"),
    ],
)
def test_keys_of_a_wrong_kind_are_refused(part, said):
    with pytest.raises(ValueError, match=said):
        read_keys(part, CONTRACT, True)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((280, 420), (280, 420)),
        ((300, 400), (308, 392)),  # rounded to whole tokens of 28 pixels
        ((10, 10), (56, 56)),  # at least four tokens
        ((28 * 200, 28 * 100), (28 * 181, 28 * 90)),  # at most 16,384
    ],
)
def test_a_part_may_name_its_size(asked, given):
    """The numbers are those of `smart_resize` in qwen-vl-utils, worked out by hand."""
    keys = dict(zip(("resized_height", "resized_width"), asked, strict=True))
    for part in (VIDEO, IMAGE):
        contract, _ = read_keys(part | keys, CONTRACT, True)
        frames = np.zeros((2, 64, 96, 3), np.uint8)
        still = part is IMAGE
        assert target_size(640, 480, 8, contract, image=still) == given
        if max(given) < 1000:
            assert resize_frames(frames, contract, image=still).shape == (2, *given, 3)
    assert contract.digest != CONTRACT.digest
    assert MediaContract.from_dict(contract.to_dict()) == contract
    assert "resized_height" not in CONTRACT.to_dict()


CHAT = user(VIDEO, words("What moves?"))
TOLD = [*CHAT, {"role": "assistant", "content": [words("A ball.")]}]
SHARED = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A ball."}]


@pytest.mark.parametrize(
    "chat",
    [
        TOLD,
        user({"type": "video", "path": "a.mp4"}, words("What moves?")) + TOLD[1:],
        user({"type": "video", "url": "file://a.mp4"}, words("What moves?")) + TOLD[1:],
        {"messages": TOLD},
        {"messages": user(words("<video>\nWhat moves?")) + TOLD[1:], "videos": ["a.mp4"]},
        {"messages": [{"role": "user", "content": "What moves?"}, TOLD[1]], "videos": ["a.mp4"]},
        {"conversations": SHARED, "video": "a.mp4", "id": 7},
        {"prompt": "What moves?", "completion": "A ball.", "videos": ["a.mp4"]},
    ],
)
def test_every_form_is_one_chat(chat):
    found = read_chat(chat)
    assert found[0] == CHAT[0]
    said = found[1]["content"]
    assert found[1]["role"] == "assistant"
    assert said in ("A ball.", [words("A ball.")])
    assert len(found) == 2


ROW = {
    "problem_id": 1, "problem": "What moves?", "problem_type": "free-form",
    "solution": "<answer>a ball</answer>", "data_type": "video", "path": "a.mp4",
}  # fmt: skip


def test_a_row_of_our_own_is_the_prompt_of_a_rollout():
    record = parse_row(ROW)
    assert read_chat(ROW) == read_chat(record) == build_messages(record)
    frames = ROW | {"media": [{"type": "video", "path": ["a.png", "b.png"], "fps": 2, "start": 1}]}
    part = read_chat(frames)[1]["content"][0]
    assert part == {"type": "video", "video": ["a.png", "b.png"], "fps": 2, "start": 1}
    assert read_chat({"messages": user(VIDEO | {"nframes": 8})}) == user(VIDEO | {"nframes": 8})
    spoken = [{"from": "human", "value": [VIDEO, words("What moves?")]}]
    assert read_chat(spoken) == CHAT
    times = {"prompt": "Q?", "completion": "A.", "videos": ["a.mp4"], "video_start": 1, "end": 3}
    assert read_chat(times)[0]["content"][0] == VIDEO | {"start": 1, "end": 3}


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (user({"type": "video"}, words("?")), "message 0: a part without its video; add a path"),
        (user({"type": "audio", "audio": "a"}), "message 0: part 'audio'; use text, image or"),
        (user("hello"), "message 0: part None; use text, image or video"),
        (user({"type": "text", "text": 3}), "message 0: a part of text whose text is a int; write"),
        (user({"type": "text"}), "message 0: a part of text whose text is a NoneType; write"),
        (user(words("<video>?")), "message 0: 1 placeholders such as <video>, 0 media; write one"),
        ([{"role": "user", "content": "<video>?"}], "message 0: 1 placeholders such as <video>"),
        (user(VIDEO, IMAGE, words("<image> <video>")), "placeholders image, video; media video"),
        ("What?", "a chat is a list of turns or a record; got something else"),
        (ROW | {"path": ""}, "prepare: path: bad value"),
        ({"messages": TOLD, "prompt": "Q?"}, "fits the formats messages and trl; choose one"),
        ({"prompt": "Q?", "images": ["a.png"]}, "prepare: completion: bad missing"),
        ({"messages": user(VIDEO | {"max_pixels": 9}), "images": ["a.png"]}, "prepare: "),
    ],
)
def test_chats_that_cannot_be_are_one_line(chat, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_chat(chat)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
