"""The same 40 records in each format of the field give the same batches, and bad rows one line."""

import csv
import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import feather, parquet

from videorft_jax.commands import convert, tfds
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.opening import digest_records, open_records
from videorft_jax.data.records.parts import read_chat
from videorft_jax.data.records.prompts import build_messages, build_target
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

CONTRACT = MediaContract(max_frames=6, min_pixels=4 * 784, max_pixels=16 * 784)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder, records, chats): 40 records and their chats as a template makes them."""
    folder = tmp_path_factory.mktemp("formats")
    source = RecordSource(write_dataset(folder, 40, 0, 0)["sft"])
    records = [source[i] for i in range(40)]
    chats = []
    for record in records:
        system, user = build_messages(record)
        text = user["content"][1]["text"]
        said = build_target(record)
        chats.append((record, system["content"][0]["text"], text, said))
    return folder, records, chats


def qwen(record, system, user, said):
    media = {"type": record.data_type, record.data_type: record.path}
    turns = [("system", system), ("user", [media, {"type": "text", "text": user}]),
             ("assistant", [{"type": "text", "text": said}])]  # fmt: skip
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": record.problem_id, "messages": messages}


def llama_factory(record, system, user, said):
    turns = [("system", system), ("user", f"<{record.data_type}>\n{user}"), ("assistant", said)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, f"{record.data_type}s": [record.path]}


def llava(record, system, user, said):
    turns = [("system", system), ("human", f"<image>\n{user}"), ("gpt", said)]
    said = [{"from": role, "value": text} for role, text in turns]
    return {"id": record.problem_id, record.data_type: record.path, "conversations": said}


def trl(record, system, user, said):
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    answer = [{"role": "assistant", "content": said}]
    return {"prompt": prompt, "completion": answer, f"{record.data_type}s": [record.path]}


def own(record, *_):
    return record.to_row()


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path, rows):
    path.write_text(json.dumps(rows))


def write_gz(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_zst(path, rows):
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(json.dumps(rows).encode())


def write_csv(path, rows):
    names = sorted({name for row in rows for name in row})
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            writer.writerow(cells)


def arrow(rows):
    names = sorted({name for row in rows for name in row})
    return pyarrow.Table.from_pylist([dict.fromkeys(names) | row for row in rows])


def write_parquet(path, rows):
    parquet.write_table(arrow(rows), path)


def write_feather(path, rows):
    feather.write_feather(arrow(rows), str(path))


def write_stream(path, rows):
    table = arrow(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


def write_folder(path, rows):
    """As `datasets` saves one: two shards in Arrow's stream format, named by state.json."""
    path.mkdir()
    table = arrow(rows)
    files = []
    for number, start in enumerate((0, 25)):
        name = f"data-{number:05d}-of-00002.arrow"
        part = table.slice(start, 25)
        with pyarrow.ipc.new_stream(str(path / name), table.schema) as stream:
            stream.write_table(part)
        files.append({"filename": name})
    (path / "state.json").write_text(json.dumps({"_data_files": files}))


def batches(source, tokenizer):
    options = LoaderOptions("sft", 4, 2048, 1, 128, 1, 3, 0.0, 2, 0, 60.0, False)
    with Loader(source, tokenizer, CONTRACT, options).steps() as steps:
        return [step.batch for step in steps]


@pytest.fixture(scope="module")
def tokenizer(place):
    return train_tiny_tokenizer([record.problem for record in place[1]], 400)


@pytest.fixture(scope="module")
def reference(place, tokenizer):
    return batches(RecordSource(place[0] / "sft.jsonl"), tokenizer)


@pytest.mark.parametrize(
    ("name", "write", "form"),
    [
        ("own.json", write_json, own), ("own.jsonl.gz", write_gz, own), ("own.csv", write_csv, own),
        ("own.tsv", write_csv, own), ("own.feather", write_feather, own),
        ("trl.arrow", write_stream, trl), ("llava.arrow", write_feather, llava),
        ("own.parquet", write_parquet, own), ("own.json.zst", write_zst, own),
        ("qwen.jsonl", write_jsonl, qwen), ("llama.jsonl", write_jsonl, llama_factory),
        ("llama.csv", write_csv, llama_factory), ("llama.parquet", write_parquet, llama_factory),
        ("llava.json", write_json, llava), ("llava.parquet", write_parquet, llava),
        ("trl.jsonl", write_jsonl, trl), ("trl", write_folder, trl), ("llava", write_folder, llava),
        ("llama", write_folder, llama_factory),
    ],
)  # fmt: skip
def test_batches_are_the_same_in_each_format(place, tokenizer, reference, name, write, form):
    folder, _, chats = place
    write(folder / name, [form(*chat) for chat in chats])
    source = open_records(folder / name, folder)
    found = batches(source, tokenizer)
    assert len(found) == len(reference)
    for ours, theirs in zip(found, reference, strict=True):
        assert all(map(np.array_equal, ours, theirs))


def test_convert_writes_records_of_our_own(place, tokenizer, reference, tmp_path, capsys):
    folder, records, chats = place
    write_json(tmp_path / "llava.json", [llava(*chat) for chat in chats])
    out = folder / "converted.jsonl"
    assert convert.main(["--data", str(tmp_path / "llava.json"), "--out", str(out)]) == 0
    assert "40 of 40 rows written" in capsys.readouterr().out
    source = RecordSource(out)
    assert source.form == "videorft"
    for i, record in enumerate(records):
        assert source[i].solution == record.solution
        assert source[i].process == record.process
    assert all(
        all(map(np.array_equal, ours, theirs))
        for ours, theirs in zip(batches(source, tokenizer), reference, strict=True)
    )


TURNS = [{"role": "user", "content": "<video> or <video>?"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": TURNS, "videos": ["a.mp4"]}, "a placeholder <video> without a video"),
        ({"messages": TURNS, "videos": list("abc")}, "2 placeholders, 3 media"),
        ({"messages": TURNS}, "a placeholder <video> without a video"),
        ({"messages": [{"role": "user"}], "videos": ["a"]}, "write turns of role and content"),
        ({"messages": [{"role": "tool", "content": "x"}], "videos": ["a"]}, "turn 0: 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "turn 0: part"),
        ({"messages": "hi", "videos": ["a"]}, "write a list of turns"),
        ({"conversations": [{"from": "human", "value": "hi"}], "video": {"bytes": "x"}}, "bytes"),
        ({"prompt": "hi", "images": ["a"]}, "write the completion, or one of solution"),
        ({"prompt": "hi", "images": ["a"], "answer": 5}, "answer: bad type: 5; write the answer"),
        ({"prompt": "a", "completion": "b", "images": ["a"], "videos": ["b"]}, "without placehol"),
        ({"prompt": "a", "completion": "b"}, "media"),
        (
            {"id": 7},
            "row: bad value: columns id; no known format has them; write problem",
        ),
        ({"query": "a", "response": "b"}, "columns query, response; no known format has them"),
        ({"path": "a.mp4", "data_type": "video"}, "problem_id: bad missing"),
        ({"messages": TURNS, "video": None}, "name its file in a column videos, or in a part of"),
        (
            {
                "messages": [{"role": "system", "content": "a"}, *TURNS],
                "videos": ["a", "b"],
                "system": "b",
            },
            "system: bad value: b; remove it, or the chat's own system turn",
        ),
    ],
)
def test_a_bad_row_is_one_line(tmp_path, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match="rows.jsonl row 0: ") as caught:
        open_records(path)[0]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_placeholders_within_parts_take_the_media_of_the_row_or_the_turn(tmp_path):
    """A clip of a column, and one of the turn itself, stand where the text of a part names them."""
    text = {"type": "text", "text": "First <video>, then <image>?"}
    media = [{"type": "image", "image": "b.png"}, {"type": "video", "video": "a.mp4"}]
    answer = {"role": "assistant", "content": "a"}
    turn = lambda *parts: {"role": "user", "content": list(parts)}  # noqa: E731
    write_jsonl(tmp_path / "rows.jsonl", [
        {"messages": [turn(text), answer], "videos": ["a.mp4"], "images": ["b.png"]},
        {"messages": [turn(*media, text), answer]},
        {"messages": [turn(media[0], text), answer]},
    ])  # fmt: skip
    source = open_records(tmp_path / "rows.jsonl")
    for index in (0, 1):
        assert [item.path for item in source[index].media] == ["a.mp4", "b.png"]
        assert source[index].turns[0] == ("user", "First <video>, then <image>?")
    with pytest.raises(RecordError, match="row 2: media: bad value: a placeholder <video> without"):
        source[2]


WRITTEN = {
    "roles": {"conversations": [{"from": "User", "value": "<video>Q?"},
                                {"from": "ChatGPT", "value": "A."}], "video": "a.mp4"},
    "keys": {"conversations": [{"role": "user", "content": "<video>Q?"},
                               {"role": "model", "content": "A."}], "video_path": "a.mp4"},
    "others": {"messages": [{"from": "human", "value": "Q?"}, {"from": "bot", "value": "A."}],
               "videos": ["a.mp4"]},
    "url": {"messages": [
        {"role": "user", "content": [
            {"type": "video_url", "video_url": {"url": "file://a.mp4"}},
            {"type": "input_text", "text": "Q?"}]},
        {"role": "assistant", "content": [{"text": "A."}]}]},
    "responses": {"messages": [
        {"role": "user", "content": [
            {"type": "input_video", "video_url": "a.mp4"}, {"type": "input_text", "text": "Q?"}]},
        {"role": "assistant", "content": "A."}]},
    "untyped": {"messages": [{"role": "user", "content": [{"video": "a.mp4"}, {"text": "Q?"}]},
                             {"role": "assistant", "content": "A."}]},
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_turns_and_parts_as_others_write_them(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [WRITTEN[name], WRITTEN[name] | {"system": "You are brief."}])
    plain, told = open_records(path)
    assert plain.turns == (("user", "<video>Q?"), ("assistant", "A."))
    assert told.turns == (("system", "You are brief."), *plain.turns)
    assert [item.path for item in plain.media] == ["a.mp4"]
    assert not plain.extra
    chat = read_chat(WRITTEN[name])  # as `prepare` reads it
    assert [turn["role"] for turn in chat] == ["user", "assistant"]
    parts = chat[0]["content"]
    assert [part["type"] for part in parts] == ["video", "text"]
    assert (parts[0]["video"], parts[1]["text"]) == ("a.mp4", "Q?")


def test_two_readings_are_refused_and_one_can_be_chosen(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "p", "completion": "c", "images": ["a.png"]}
    path.write_text(json.dumps(row | {"messages": TURNS}) + "\n")
    with pytest.raises(ValueError, match="fits the formats messages and trl; choose one"):
        open_records(path)
    assert open_records(path, form="trl")[0].solution == "c"
    with pytest.raises(ValueError, match="choose one of auto, videorft"):
        open_records(path, form="alpaca")
    other = {"messages": TURNS, "videos": ["a", "b"]}
    write_jsonl(path, [other, other | {"conversations": []}])
    assert len(open_records(path)[0].media) == 2
    with pytest.raises(RecordError, match="row 1: messages, conversations: .*; choose one as"):
        open_records(path)[1]  # also where the first row fits one format alone
    assert len(open_records(path, form="messages")[1].media) == 2
    mixed = [row, {"messages": TURNS, "videos": ["a", "b"]}]
    write_jsonl(path, mixed)
    with pytest.raises(RecordError, match="row 1: prompt: bad missing"):
        open_records(path)[1]


@pytest.mark.parametrize("embed", [(), ("--embed",)])
def test_a_tfds_data_set_is_built_and_read_by_name(place, tokenizer, reference, tmp_path,
                                                  monkeypatch, embed):  # fmt: skip
    folder, records, _ = place
    made = ["--name", "videorft_cot", "--data", str(folder / "sft.jsonl"), "--out", str(tmp_path)]
    assert tfds.main([*made, *embed]) == 0
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_records("tfds:videorft_cot", folder)
    assert [source[i] for i in range(40)] == records
    for ours, theirs in zip(batches(source, tokenizer), reference, strict=True):
        assert all(map(np.array_equal, ours, theirs))
    assert len(digest_records("tfds:videorft_cot")) == 64
    with pytest.raises(ValueError, match="build it by `videorft tfds`"):
        open_records("tfds:videorft_rl")


SEVERAL = {
    # What a row holds beside its turns -> the question, and (kind, path) of each item.
    "images": ({"image": ["a.png", "b.png"]}, "<image><image> Same?",
               [("image", "a.png"), ("image", "b.png")]),
    "images, no mark": ({"image": ["a.png", "b.png"]}, "Same?",
                        [("image", "a.png"), ("image", "b.png")]),
    "one image": ({"image": ["a.png"]}, "<image> What?", [("image", "a.png")]),
    "clips": ({"video": ["a.mp4", "b.webm"]}, "<video> and <video>",
              [("video", "a.mp4"), ("video", "b.webm")]),
    "frames": ({"video": ["a.png", "b.JPG"], "fps": 2.0}, "<video> What?",
               [("video", ["a.png", "b.JPG"])]),
    "frames of a path": ({"video_path": ["a.png", "b.png"], "fps": 2.0}, "<video> What?",
                         [("video", ["a.png", "b.png"])]),
    "files by name": ({"videos": [{"path": "a.mp4", "bytes": None}, {"video": "file://b.mp4"}]},
                      "<video><video>", [("video", "a.mp4"), ("video", "b.mp4")]),
    "none of one kind": ({"image": [], "video": "a.mp4"}, "<video> What?", [("video", "a.mp4")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_a_list_in_a_column_is_as_many_media(tmp_path, name):
    """As LLaVA's interleaved files have them, in a column without a plural."""
    fields, question, items = SEVERAL[name]
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]
    write_jsonl(tmp_path / "a.jsonl", [{"conversations": said} | fields])
    record = open_records(str(tmp_path / "a.jsonl"))[0]
    assert [(item.kind, item.path) for item in record.media] == [
        (kind, tuple(path) if isinstance(path, list) else path) for kind, path in items
    ]


def test_two_images_in_a_part_are_not_one(tmp_path):
    part = {"type": "image", "image": ["a.png", "b.png"]}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "Same?"}]},
             {"role": "assistant", "content": "Yes."}]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    with pytest.raises(RecordError, match="2 images as one; write each as a part of its own"):
        open_records(str(tmp_path / "a.jsonl"))[0]


def test_what_a_file_says_of_itself_counts(tmp_path):
    """A range beside a file's name is its own; what is not known is kept as a field of the row."""
    videos = [{"video": "a.mp4", "video_start": 1.0, "video_end": 2.5}, {"video": "b.mp4", "n": 7}]
    said = [{"role": "user", "content": "<video><video>?"}, {"role": "assistant", "content": "x"}]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": said, "videos": videos}])
    record = open_records(str(tmp_path / "a.jsonl"))[0]
    ranges = [(item.path, item.start, item.end) for item in record.media]
    assert ranges == [("a.mp4", 1.0, 2.5), ("b.mp4", None, None)]
    assert record.extra["video.n"] == 7
