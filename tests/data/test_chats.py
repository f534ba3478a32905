"""Several clips, several turns and placeholders, against Hugging Face.

The oracle for tokens is the chat template of the real tokenizer's format, for targets the template
of each prefix, for positions Hugging Face's own `get_rope_index`.
"""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch
from clips import encode
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.video import read_video
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, build_messages
from videorft_jax.data.records.records import RecordError, find_errors, parse_row
from videorft_jax.data.records.source import RecordSource, write_records
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

CONTRACT = MediaContract(
    min_frames=2, max_frames=6, min_pixels=4 * 784, max_pixels=12 * 784, image_max_pixels=8 * 784
)
CHAT = {
    "problem_id": "chat",
    "media": [
        {"type": "video", "path": "a.mp4"},
        {"type": "image", "path": "b.png"},
        {"type": "video", "path": "a.mp4", "start": 0.5, "end": 1.5},
    ],
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "<video>\nWhat moves?"},
        {"role": "assistant", "content": "A red ball."},
        {"role": "user", "content": "And in <image>, and then <video>?"},
        {"role": "assistant", "content": "<think>It stops.</think>\n<answer>nothing</answer>"},
    ],
}
ROW = {
    "problem_id": 1,
    "problem": "Which comes first?",
    "problem_type": "free-form",
    "process": "<think>I look.</think>",
    "solution": "<answer>the ball</answer>",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("chats")
    (root / "a.mp4").write_bytes(encode(num=50, size=(96, 64)))
    Image.new("RGB", (80, 60), (9, 200, 9)).save(root / "b.png")
    (root / "frames").mkdir()
    for i in range(12):  # frame_2 stands before frame_10
        Image.new("RGB", (56, 56), (20 * i, 0, 0)).save(root / "frames" / f"frame_{i}.png")
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = [turn["content"] for turn in CHAT["messages"]]
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tiny_tokenizer([*words, ROW["problem"]], 400).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def load(root, tokenizer, *rows, mode="sft", contract=CONTRACT, row_tokens=1024):
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = 0.5 if row_tokens < 1024 else 0.0
    options = LoaderOptions(
        mode, 1, row_tokens, 1, 32, 1, 0, bad, 0, 0, timeout_s=60.0, isolate=False
    )
    loader = Loader(RecordSource(root / "rows.jsonl"), tokenizer, contract, options)
    with loader.steps() as steps:
        return list(steps)


def template(messages, tokenizer, counts, prompt=False):
    """Hugging Face's text of a chat, each pad repeated as its processor does."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    counts = iter(counts)
    pieces = []
    for piece in text.split("<|vision_start|>"):
        for pad in ("<|video_pad|>", "<|image_pad|>"):
            if piece.startswith(pad):
                piece = pad * next(counts) + piece[len(pad) :]
        pieces.append(piece)
    return tokenizer("<|vision_start|>".join(pieces), add_special_tokens=False)["input_ids"]


def hugging_face():
    """The chat in Hugging Face's form, written by hand."""
    video, image = {"type": "video"}, {"type": "image"}
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    return [
        {"role": "system", "content": [text("You are brief.")]},
        {"role": "user", "content": [video, text("What moves?")]},
        {"role": "assistant", "content": [text("A red ball.")]},
        {"role": "user", "content": [
            text("And in "), image, text(", and then "), video, text("?")]},
        {"role": "assistant", "content": [
            text("<think>It stops.</think>\n<answer>nothing</answer>")]},
    ]  # fmt: skip


def test_a_chat_of_several_clips_equals_hugging_face(root, tokenizer):
    (step,) = load(root, tokenizer, CHAT)
    batch, messages = step.batch, hugging_face()
    used = int((batch.segment_ids[0] > 0).sum())
    visual = batch.visual_index[0] >= 0
    counts = [len(part) for part in np.split(np.flatnonzero(visual), np.flatnonzero(
        np.diff(np.flatnonzero(visual)) > 1) + 1)]  # fmt: skip
    assert len(counts) == 3
    ids = template(messages, tokenizer, counts)
    assert batch.tokens[0, :used].tolist() == ids[:used]
    assert tokenizer.decode(ids[used:]) == "\n"  # what follows the last target

    expected = np.zeros(used, bool)
    for turn, shown in ((2, 1), (4, 3)):  # from behind the role to <|im_end|>
        start = len(template(messages[:turn], tokenizer, counts[:shown], prompt=True))
        stop = len(template(messages[: turn + 1], tokenizer, counts[:shown])) - 1
        expected[start:stop] = True
    assert np.array_equal(batch.loss_mask[0, :used], expected)
    assert expected.sum() > 10


def test_positions_of_several_clips_equal_hugging_face(root, tokenizer):
    """transformers' own `get_rope_index`, of which the rule hf5 is the equal."""
    contract = dataclasses.replace(CONTRACT, mrope_rule="hf5")
    (step,) = load(root, tokenizer, CHAT, mode="grpo", contract=contract)
    used = int((step.batch.segment_ids[0] > 0).sum())
    tokens = torch.tensor(step.batch.tokens[:1, :used])
    clips = [load_media(item["path"], root, contract, kind=item["type"],
                        start=item.get("start"), end=item.get("end"))
             for item in CHAT["media"]]  # fmt: skip
    grids = [(-(-len(c.frames) // 2), c.frames.shape[1] // 14, c.frames.shape[2] // 14)
             for c in clips]  # fmt: skip
    pads = [tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")]
    sizes = {"spatial_merge_size": 2, "tokens_per_second": 2}
    twin = types.SimpleNamespace(
        config=types.SimpleNamespace(vision_config=types.SimpleNamespace(**sizes))
    )
    names = Qwen2_5_VLModel.get_vision_position_ids
    twin.get_vision_position_ids = types.MethodType(names, twin)
    expected, _ = Qwen2_5_VLModel.get_rope_index(
        twin,
        tokens.long(),
        (tokens == pads[0]).int() + 2 * (tokens == pads[1]).int(),
        torch.tensor([grids[1]]),
        torch.tensor([grids[0], grids[2]]),
        [2 / clips[0].fps, 2 / clips[2].fps],
        torch.ones_like(tokens).long(),
    )
    assert np.array_equal(step.batch.positions[0, :, :used], expected[:, 0].numpy())


def test_a_prompt_ends_before_its_last_answer(root, tokenizer):
    (step,) = load(root, tokenizer, CHAT, mode="grpo")
    used = int((step.batch.segment_ids[0] > 0).sum())
    text = tokenizer.decode(step.batch.tokens[0, :used])
    assert text.endswith("?<|im_end|>\n<|im_start|>assistant\n")
    assert "A red ball.<|im_end|>" in text
    record = step.records[0][0]
    assert (record.solution, record.process) == ("nothing", "It stops.")
    assert record.problem == "And in , and then ?"
    assert not step.batch.loss_mask.any()


def test_pixels_stand_where_the_placeholders_are(root, tokenizer):
    """Two clips and an image in one row: the pixels of each, found through the visual index."""
    (step,) = load(root, tokenizer, CHAT)
    batch, singles = step.batch, []
    for item in CHAT["media"]:
        row = ROW | {"media": [item]}
        (alone,) = load(root, tokenizer, row)
        flat = alone.batch.patches[0].reshape(-1, 4, 1176)
        at = alone.batch.visual_index[0]
        singles.append(flat[at[at >= 0]])
    at = batch.visual_index[0]
    ours = batch.patches[0].reshape(-1, 4, 1176)[at[at >= 0]]
    assert np.array_equal(ours, np.concatenate(singles))


@pytest.mark.parametrize("mode", ["sft", "grpo"])
def test_a_chat_above_the_limit_is_one_line(root, tokenizer, mode, caplog):
    """A chat of three items does not fit: its row, field and remedy are told,
    and the run goes on with the rest."""
    turns = [*CHAT["messages"][:1], {"role": "user", "content": "<image>?"}, CHAT["messages"][2]]
    single = {"problem_id": 2, "media": CHAT["media"][1:2], "messages": turns}
    (whole,) = load(root, tokenizer, CHAT, mode=mode)
    visual = int((whole.batch.visual_index[0] >= 0).sum())
    tokens = int((whole.batch.segment_ids[0] > 0).sum())
    steps = load(root, tokenizer, single, CHAT, mode=mode, row_tokens=64)
    assert [len(records) for step in steps for records in step.records] == [1]
    (line,) = [line for line in caplog.messages if "too_many_tokens" in line]
    assert line == (
        f"rows.jsonl row 1: too_many_tokens: media: 3 with {visual} of the record's {tokens}"
        f" tokens, row_tokens is 64; raise data.row_tokens, or ask for fewer or smaller"
        " frames"
    )


def test_frames_are_a_clip(root, tokenizer):
    listed = [f"frames/frame_{i}.png" for i in range(12)]
    rows = [
        ROW | {"media": [{"type": "video", "path": listed, "fps": 4.0}]},
        ROW | {"media": [{"type": "video", "path": "frames", "fps": 4}]},
        ROW | {"data_type": "video", "path": "frames", "fps": 4},
        ROW | {"data_type": "video", "path": listed, "fps": 4},
    ]
    steps = load(root, tokenizer, *rows, mode="grpo")
    first = steps[0].batch
    for step in steps[1:]:
        assert all(map(np.array_equal, step.batch, first))
    assert int(first.patch_valid[0].any((1, 2)).sum()) == 3  # 3 s at two frames a second
    red = first.patches[0, :, 0, 0].reshape(3, 3, 2, 196)[:, 0, :, 0].reshape(-1)
    assert red.tolist() == [0, 40, 80, 140, 180, 220]  # frames 0 2 4 7 9 11


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_clips(form, tmp_path):
    frames = [Image.new("RGB", (56, 56), (0, 25 * i, 0)) for i in range(10)]
    path = tmp_path / f"a.{form.lower()}"
    extra = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, **extra)
    contract = MediaContract(min_frames=4, max_frames=4, min_pixels=784, max_pixels=4 * 784)
    clip = read_video(path, contract)
    assert clip.indices.tolist() == [0, 3, 6, 9]
    assert np.abs(clip.timestamps - [0, 0.6, 1.2, 1.8]).max() < 1e-6
    green = clip.frames[:, 20, 20, 1].astype(int)
    assert np.abs(green - [0, 75, 150, 225]).max() <= 2
    assert clip.fps == pytest.approx(2.0)


def test_the_clip_stands_at_its_placeholder():
    plain = ROW | {"data_type": "video", "path": "a.mp4"}
    record = parse_row(plain | {"problem": "Look: <video> ok?"})
    content = build_messages(record, DEFAULT_TEMPLATE)[1]["content"]
    assert [part["type"] for part in content] == ["text", "video", "text"]
    assert content[0]["text"] == "Look: "
    llava = parse_row(plain | {"problem": "<image>\nWho?"})
    content = build_messages(llava, DEFAULT_TEMPLATE)[1]["content"]
    assert content[0] == {"type": "video", "video": "a.mp4"}
    assert content[1]["text"].startswith("Who?")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem": "<video> <video>?"}, "2 placeholders such as <video>, 1 media"),
        ({"media": []}, "media: bad value"),
        ({"media": [{"type": "sound", "path": "a"}]}, "media 0"),
        ({"media": [{"type": "video", "path": "a", "speed": 2}]}, "media 0: speed"),
        ({"media": [{"type": "video", "path": ["a.png", "b.png"]}]}, "media 0: fps; write fps, "),
        ({"media": [{"type": "video", "path": ["a.mp4"]}]}, "media 0: fps; write each video as an"),
        ({"media": [{"type": "image", "path": "a.png", "start": 1}]}, "media 0: start 1"),
        ({"media": [{"type": "video", "path": "a", "start": 2, "end": 1}]}, "media 0: end 1"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages: bad value: user"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages: bad value: turn 0"),
        ({"problem": "<image> or <video>?", "media": [
            {"type": "video", "path": "a"}, {"type": "image", "path": "b"}]}, "media video, image"),
    ],
)  # fmt: skip
def test_bad_chats_are_refused_in_one_line(change, said):
    row = ROW | {"data_type": "video", "path": "a.mp4"} | change
    errors = find_errors(row, "x row 3")
    assert errors
    assert any(said in str(error) for error in errors), [str(e) for e in errors]
    assert all("\n" not in str(error) and "; " in str(error) for error in errors)
    with pytest.raises(RecordError):
        parse_row(row)


@pytest.mark.parametrize("said", ["<think>a", "a</think>", "<think>a</think>", "<Think> </Think>"])
def test_a_last_turn_that_only_thinks_has_no_answer(said):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}]
    row = {"problem_id": 1, "messages": turns, "data_type": "video", "path": "a.mp4"}
    (error,) = find_errors(row, "x row 3")
    assert f"{said}; write the answer of the last turn behind one <think>" in str(error)
    assert parse_row(row | {"solution": "b"}).solution == "b"


def test_rows_go_there_and_back(tmp_path):
    rows = [CHAT, ROW | {"media": [{"type": "video", "path": ["a.png", "b.png"], "fps": 2.0}]}]
    records = [parse_row(row) for row in rows]
    write_records(tmp_path / "r.jsonl", records)
    source = RecordSource(tmp_path / "r.jsonl")
    assert [source[0], source[1]] == records
    assert parse_row(ROW | {"data_type": "video", "path": "a", "video_start": 1.0, "video_end": 2}
                     ).media[0].end == 2  # fmt: skip


def test_nothing_is_left_of_a_file_that_is_not_written_to_its_end(tmp_path):
    def interrupt():
        yield parse_row(CHAT)
        raise KeyboardInterrupt

    (tmp_path / "r.jsonl").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "r.jsonl", interrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
    assert (tmp_path / "r.jsonl").read_text() == "before"
