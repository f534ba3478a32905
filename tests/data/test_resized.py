"""`resized_height` and `resized_width` of records give clips the size that qwen-vl-utils gives."""

import json

import pytest
from clips import encode
from PIL import Image
from test_pipeline import CONTRACT, make_loader

from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.loader.cache_writer import write_cache
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.opening import open_records
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import RecordError, parse_row
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

SIZE = {"resized_height": 60, "resized_width": 110}  # rounded to 56 x 112, eight tokens
ROW = {
    "problem_id": 1, "problem": "What moves?", "problem_type": "free-form",
    "solution": "<answer>x</answer>",
}  # fmt: skip
ANSWER = {"role": "assistant", "content": "x"}
CLIP = {"type": "video", "video": "a.mp4"}
QUESTION = {"type": "text", "text": "What moves?"}


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


FORMS = {
    "field": ROW | {"data_type": "video", "path": "a.mp4"} | SIZE,
    "item": ROW | {"media": [{"type": "video", "path": "a.mp4"} | SIZE]},
    "part": user(CLIP | SIZE, QUESTION),
    "column": user(QUESTION) | {"videos": ["a.mp4"]} | SIZE,
    "fractions": user(QUESTION) | {"videos": ["a.mp4"]} | {k: float(v) for k, v in SIZE.items()},
    "image": ROW | {"data_type": "image", "path": "b.png"} | SIZE,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(num=50, size=(96, 64)))
    Image.new("RGB", (80, 60), (9, 200, 9)).save(tmp_path / "b.png")
    return tmp_path


def load(folder, *rows, **more):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_records(folder / "rows.jsonl")
    config = {"mode": "grpo", "rows": 1, "row_tokens": 4096, "max_buckets": 1, "epochs": 1}
    config["max_bad_fraction"] = 0.5
    loader = make_loader(source, train_tiny_tokenizer(["a"], 264), config, **more)
    with loader.steps() as steps:
        return source, sorted(steps, key=lambda step: step.indices[0])


@pytest.mark.parametrize("name", FORMS)
def test_a_row_may_name_its_size(folder, name):
    source, (step,) = load(folder, FORMS[name])
    (item,) = source[0].media
    assert item.resized == (60, 110)
    tokens = 8 * step.pairs[0][0]
    assert int((step.batch.visual_index >= 0).sum()) == tokens
    assert step.batch.patch_hw[0].max((0, 1, 2)).tolist() == [3, 7]  # 56 x 112 pixels
    part = next(p for turn in build_messages(source[0]) for p in turn["content"]
                if p["type"] != "text")  # fmt: skip
    assert {name: part[name] for name in SIZE} == SIZE  # `prepare` is told too
    assert parse_row(source[0].to_row()) == source[0]


def test_only_the_rows_that_ask_are_resized(folder):
    plain = ROW | {"data_type": "video", "path": "a.mp4"}
    source, steps = load(folder, plain, plain | SIZE)
    sizes = [int((step.batch.visual_index >= 0).sum()) for step in steps]
    assert sizes == [2 * 6, 2 * 8]  # two frame pairs of 84 x 56 pixels, and of 56 x 112
    assert source[0].items == ()


def test_the_frame_cache_keeps_both_sizes(folder):
    plain = ROW | {"data_type": "video", "path": "a.mp4"}
    source, _ = load(folder, plain, plain | SIZE)
    assert write_cache(source, CONTRACT, folder / "cache", threads=1) == (2, [])
    cache = FrameCache(folder / "cache", CONTRACT)
    shapes = [
        cache.get("a.mp4", source[i].media[0], str(folder)).frames.shape[1:3] for i in range(2)
    ]
    assert shapes == [(56, 84), (56, 112)]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"resized_height": 56}, "media 0: resized_height 56, resized_width None; write both"),
        ({"resized_height": 0, "resized_width": 56}, "resized_height 0, resized_width 56"),
        ({"resized_height": 56.5, "resized_width": 56}, "write both as whole numbers"),
        ({"resized_height": "56", "resized_width": 56}, "resized_height '56'"),
        ({"resized_height": True, "resized_width": 56}, "resized_height True"),
    ],
)
def test_half_a_size_is_one_line(keys, said):
    for row in (
        ROW | {"data_type": "image", "path": "b.png"} | keys,
        ROW | {"media": [{"type": "image", "path": "b.png"} | keys]},
    ):
        with pytest.raises(RecordError, match="x row 3: media: bad value: ") as caught:
            parse_row(row, "x row 3")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_ribbon_is_refused_with_the_name_of_the_row(folder):
    long = {"resized_height": 10, "resized_width": 4000}
    plain = ROW | {"data_type": "image", "path": "b.png"}
    _, steps = load(folder, plain, plain | long, quarantine_path=folder / "q.jsonl")
    assert [step.indices for step in steps] == [[[0]]]
    (line,) = (folder / "q.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "aspect_ratio"
    assert MediaItem("image", "b.png", resized=(10, 4000)).name == "b.png"
