"""Lines that stand between or behind the frames of a clip, and answers that the prompt opens."""

import dataclasses
import json

import numpy as np
import pytest
from clips import encode

from videorft_jax.data.batch.layout import make_sample
from videorft_jax.data.batch.patches import pair_planes
from videorft_jax.data.loader.load_sample import Load, lay_out
from videorft_jax.data.loader.measure import Measurer
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.records.lines import find_shown
from videorft_jax.data.records.parts import read_chat
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE
from videorft_jax.data.records.records import find_errors, parse_row
from videorft_jax.data.records.render import render
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.geometry import PLAIN_16, WINDOWED_14

# Frames are shown every 0.5 s from 0 to 3.5 s, so that pairs are shown around 0.25, 1.25, 2.25 and
# 3.25 s.
LINES = [[-3.0, -1.0, "before"], [9.0, 9.5, "after"],
         [1.1, 2.9, "in front of pair two"], [1.4, 2.6, "too"],
         [3.3, 3.8, "behind all"], [1.6, 1.7, "widened to one second"]]  # fmt: skip


def build(folder, geometry, **media):
    (folder / "a.mp4").write_bytes(encode(num=8, rate=2, size=(112, 84)))
    row = {
        "problem_id": 1, "problem": "Q", "problem_type": "free-form", "solution": "B",
        "media": [{"type": "video", "path": "a.mp4"} | media],
        "messages": [{"role": "user", "content": "Which?"},
                     {"role": "assistant", "content": "B", "opening": "Best option: ("}],
    }  # fmt: skip
    (folder / "records.jsonl").write_text(json.dumps(row) + "\n")
    contract = dataclasses.replace(MediaContract.evaluate(geometry), min_frames=8, max_frames=8)
    tokenizer = train_tiny_tokenizer(["Which? Best option: ( in front of pair two behind all"], 300)
    source = RecordSource(folder / "records.jsonl")
    made = (source, contract, tokenizer, DEFAULT_TEMPLATE, False, Limits())
    return Measurer(*made)


def test_a_line_is_shown_with_a_frame_inside_it():
    times = [0.5 * i for i in range(8)]
    shown = [text for *_, text in find_shown([tuple(line) for line in LINES], times)]
    assert shown == ["in front of pair two", "too", "behind all", "widened to one second"]


@pytest.mark.parametrize("geometry", [WINDOWED_14, PLAIN_16], ids=["one piece", "timestamps"])
def test_lines_between_frames_are_a_chat_of_several_clips(tmp_path, geometry):
    """The oracle is a chat that shows the parts of the clip one after another."""
    measurer = build(tmp_path, geometry, lines=LINES)
    record, (clip,) = Load(measurer, np.zeros((0, 3), np.int64), {}, None).read(0)
    found = lay_out(measurer, record, [clip])
    need = measurer(0, SizeCache(None))
    assert need.text_tokens + found.media[0].num_tokens == len(found.tokens)
    planes = list(clip.planes)
    parts = [pair_planes(planes[a:b], clip.fps, geometry) for a, b in ((0, 4), (4, 8))]
    words = ["in front of pair twotoowidened to one second", "behind allWhich?"]
    content = [{"type": "video"}, {"type": "text", "text": words[0]}, {"type": "video"},
               {"type": "text", "text": words[1]}]  # fmt: skip
    if geometry is PLAIN_16:
        parts = [pair_planes(planes[i : i + 2], clip.fps, geometry) for i in (0, 2, 4, 6)]
        stamps = [{"type": "text", "text": f"<{s:.1f} seconds>"} for s in clip.stamps]
        texts = [[], [], content[1:2], []]
        content = sum(
            ([*text, stamp, {"type": "video"}]
             for text, stamp in zip(texts, stamps, strict=True)), []
        ) + content[3:]  # fmt: skip
    counts = [part.num_tokens for part in parts]
    chat = [{"role": "user", "content": content}]
    tokenizer = measurer.tokenizer
    text = render(tokenizer, chat, counts, geometry=geometry, opening="Best option: (")
    assert found.tokens.tolist() == text.tokens.tolist()
    assert tokenizer.decode(found.tokens).endswith("<|im_start|>assistant\nBest option: (")
    plain = dataclasses.replace(geometry, timestamps=False)
    parts = [part._replace(geometry=plain) for part in parts]
    starts = [start for start, _ in text.visual_spans]
    wanted = make_sample(text.tokens, text.loss_mask, starts, parts)
    np.testing.assert_array_equal(found.positions, wanted.positions)
    np.testing.assert_array_equal(found.visual_slot, wanted.visual_slot)


def test_listed_lines_stand_behind_the_clip(tmp_path):
    measurer = build(tmp_path, WINDOWED_14, lines=LINES, listed="Subtitles:\n{lines}\n")
    record, clips = Load(measurer, np.zeros((0, 3), np.int64), {}, None).read(0)
    found = lay_out(measurer, record, clips)
    said = measurer.tokenizer.decode(found.tokens).rpartition("<|vision_end|>")[2]
    assert said.startswith(
        "Subtitles:\nin front of pair two\ntoo\nbehind all\nwidened to one second\nWhich?<|im_end|>"
    )
    need = measurer(0, SizeCache(None))
    assert need.text_tokens + found.media[0].num_tokens == len(found.tokens)


def test_a_row_keeps_its_lines_and_its_opening(tmp_path):
    measurer = build(tmp_path, WINDOWED_14, lines=LINES, listed="{lines}")
    record = measurer.source[0]
    assert record.opening == "Best option: ("
    again = parse_row(record.to_row())
    assert (again.items, again.turns, again.opening) == (record.items, record.turns, record.opening)
    with pytest.raises(ValueError, match="are of evaluations; leave them out"):
        read_chat(record)


@pytest.mark.parametrize(
    "media",
    [{"lines": [["0", 1, "x"]]}, {"lines": [[0, 1]]}, {"lines": 3}, {"listed": "no mark"},
     {"lines": [[0, 1, "x"]], "type": "image"}],
)  # fmt: skip
def test_lines_that_are_none_are_refused(media):
    row = {"problem_id": 1, "problem": "Q", "problem_type": "free-form", "solution": "B",
           "media": [{"type": "video", "path": "a.mp4"} | media]}  # fmt: skip
    (error,) = find_errors(row)
    assert "media" in str(error)
    chat = row | {"media": [{"type": "video", "path": "a.mp4"}]}
    chat["messages"] = [{"role": "user", "content": "Q"},
                        {"role": "assistant", "content": "B", "opening": 3}]  # fmt: skip
    assert "opening 3" in str(find_errors(chat)[0])
