"""Records: schema faults, tag normalisation, and random access equal to reading line by line."""

import inspect
import json
import os
import pickle
import threading
from collections import Counter

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videorft_jax.data.records import source as source_file
from videorft_jax.data.records.records import (
    RecordError,
    find_errors,
    label_options,
    parse_row,
    unwrap,
)
from videorft_jax.data.records.source import RecordSource, write_records

ROW = {
    "problem_id": 7,
    "problem": "What opens?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. door", "B. window"],
    "process": "<think> A door opens. </think>",
    "solution": "<answer>A</answer>",
    "path": "./clips/a.mp4",
    "data_source": "STAR",
}


def write(path, *lines, end=b"\n"):
    path.write_bytes(end.join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def test_row_and_back():
    record = parse_row(ROW | {"start": 1, "end": 2.5, "original_question_type": "mc"})
    assert (record.process, record.solution) == ("A door opens.", "A")
    assert record.options == ("A. door", "B. window")
    assert (record.start, record.end) == (1, 2.5)
    assert record.extra == {"original_question_type": "mc"}
    row = record.to_row()
    assert row["process"] == "<think>A door opens.</think>"
    assert row["solution"] == "<answer>A</answer>"
    assert parse_row(row) == record
    assert parse_row(parse_row(ROW).to_row()).to_row().keys() == ROW.keys()
    with pytest.raises(AttributeError):
        record.solution = "B"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("A", "A"),
        (" <answer> A </answer>\n", "A"),
        ("<answer><answer>A</answer></answer>", "A"),
        ("<answer>A</answer>\n<answer>A</answer>", "A"),
        ("<ANSWER>a < b</Answer>", "a < b"),
        ("<answer></answer>", ""),
        ("", ""),
    ],
)
def test_unwrap(text, bare):
    assert unwrap(text, "answer") == bare


@pytest.mark.parametrize(
    "text",
    [
        "<answer>A",
        "A</answer>",
        "<answer>A</answer> B",
        "x <answer>A</answer>",
        "<answer>A</answer><answer>B</answer>",
        "<answer>A<answer>B</answer></answer>",
        "</answer><answer>",
    ],
)
def test_unwrap_refuses(text):
    with pytest.raises(ValueError, match="answer"):
        unwrap(text, "answer")


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"problem": ""}, "problem", "value"),
        ({"problem": 3}, "problem", "type"),
        ({"problem": "lone \ud800"}, "problem", "encoding"),
        ({"path": "a\0b.mp4"}, "path", "encoding"),
        ({"problem_id": True}, "problem_id", "type"),
        ({"data_type": "audio"}, "data_type", "value"),
        ({"problem_type": "Multiple choice"}, "problem_type", "value"),
        ({"options": "A. door"}, "options", "type"),
        ({"options": ["A. door", 2]}, "options", "type"),
        ({"options": [f"o{i}" for i in range(27)]}, "options", "value"),
        ({"solution": "C"}, "solution", "value"),
        ({"solution": "A. door"}, "solution", "value"),
        ({"solution": "  "}, "solution", "value"),
        ({"solution": "<answer> </answer>"}, "solution", "value"),
        ({"solution": "<answer>A"}, "solution", "tags"),
        ({"solution": "<think>x</think><answer>A</answer>"}, "solution", "tags"),
        ({"process": "<think>x</think><answer>A</answer>"}, "process", "tags"),
        ({"process": "x <answer>A</answer>"}, "process", "tags"),
        ({"problem_type": "regression", "solution": "NaN"}, "solution", "value"),
        ({"problem_type": "numerical", "solution": "-inf"}, "solution", "value"),
        ({"start": float("nan")}, "start", "value"),
        ({"start": -1}, "start", "value"),
        ({"start": 3, "end": 3}, "end", "value"),
        ({"end": "3"}, "end", "type"),
        ({"data_type": "image", "start": 0.5}, "start", "value"),
        ({"score": float("inf")}, "score", "value"),
    ],
)
def test_schema_fault_is_named_once(change, field, reason):
    errors = find_errors(ROW | change, "x.jsonl row 3")
    assert [(error.field, error.reason) for error in errors] == [(field, reason)]
    message = str(errors[0])
    assert message.startswith(f"x.jsonl row 3: {field}: bad {reason}: ")
    assert "\n" not in message
    assert "; " in message
    assert pickle.loads(pickle.dumps(errors[0])).reason == reason
    with pytest.raises(RecordError):
        parse_row(ROW | change)


def test_all_faults_are_collected():
    errors = find_errors({"problem_id": 1, "data_type": "x", "solution": "</answer>", "options": 3})
    assert Counter(error.reason for error in errors) == {
        "missing": 3,
        "value": 1,
        "type": 1,
        "tags": 1,
    }
    assert [error.field for error in find_errors([1])] == ["row"]


@pytest.mark.parametrize(
    "style",
    ["{}. ", "({}) ", "[{}] ", "{}: ", "{}) ", "{} - ", "{} – ", "Option {}: ", "**{}.** ", "{}、",
     "{}．", "（{}）", "【{}】", "<{}> "],
)  # fmt: skip
@pytest.mark.parametrize("letters", ["CAB", "cab", "ＣＡＢ"])
def test_labels_of_every_style_hold_in_any_order(style, letters):
    texts = ("green", "red", "blue")
    options = [style.format(letter) + text for letter, text in zip(letters, texts, strict=True)]
    assert label_options(options) == [("C", "green"), ("A", "red"), ("B", "blue")]


@pytest.mark.parametrize(
    "options", [["B* tree", "A* search"], ["B-movie", "A-frame"], ["Bell", "Axe"], ["B", "A"]]
)
def test_texts_that_begin_with_a_letter_keep_it(options):
    assert label_options(options) == list(zip("AB", options, strict=True))


def test_options_of_other_forms():
    row = ROW | {"problem_type": "multiple choice", "solution": "<answer>B</answer>"}
    given = parse_row(row | {"options": {"A": "red", "B": "blue"}})
    assert given.options == ("A. red", "B. blue")
    assert parse_row(row | {"options": ["1. red", "2. blue"]}).options == ("1. red", "2. blue")
    with pytest.raises(RecordError, match="label all options, A to B"):
        parse_row(row | {"options": ["2. red", "1. blue"]})


def test_labels():
    assert label_options(["A. red", "(B) blue"]) == [("A", "red"), ("B", "blue")]
    assert label_options(["J. Doe", "A. Smith"]) == [("A", "J. Doe"), ("B", "A. Smith")]
    assert label_options(["red", "blue"]) == [("A", "red"), ("B", "blue")]
    shuffled = [("C", "green"), ("A", "red"), ("B", "blue")]
    assert label_options(["C. green", "A. red", "b) blue"]) == shuffled


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        (["C. green", "A. red", "B. blue"], "A", "red"),
        (["B: x", "A: y"], "B", "x"),
        (["J. Doe", "K. Lee"], "A", "J. Doe"),
        (["J. Doe", "A. Smith"], "B", "A. Smith"),
        (["J. Doe", "A. Smith"], "A", None),  # which of the two is A?
        (["B. x", "C. y", "D. z"], "B", None),
        (["A. red", "A. blue"], "A", None),
        (["B. red", "blue"], "B", None),
        (["A. red", "blue"], "A", "A. red"),
        (["red", "A. A. Milne"], "B", "A. A. Milne"),
    ],
)
def test_a_letter_means_one_option_or_the_row_is_refused(options, answer, right):
    row = ROW | {"options": options, "solution": answer, "problem_type": "multiple choice"}
    if right is not None:
        assert dict(label_options(parse_row(row).options))[answer] == right
        return
    with pytest.raises(RecordError, match="label all options, A to") as caught:
        parse_row(row)
    assert caught.value.field == "options"


@given(st.permutations("ABCDEF"), st.integers(1, 6), st.sampled_from([".", ")", ":"]))
def test_labels_hold_whatever_their_order(order, num, mark):
    letters = [letter for letter in order if letter < "ABCDEFG"[num]]
    labelled = label_options(f"{letter}{mark} text {letter}" for letter in letters)
    assert labelled == [(letter, f"text {letter}") for letter in letters]


def many_rows(num):
    rows = []
    for i in range(num):
        text = "é\u2028 😀" * (i % 7) + "x" * (i % 113)
        rows.append(ROW | {"problem_id": i, "problem": f"{i}: {text}?"})
    return rows


@pytest.mark.parametrize("style", ["plain", "crlf_bom_blank", "list"])
def test_source_equals_plain_reading(tmp_path, style):
    rows = many_rows(300)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if style == "plain":
        path = write(tmp_path / "a.jsonl", *lines)
    elif style == "list":
        path = tmp_path / "a.json"
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    else:
        spaced = [b"\xef\xbb\xbf", *(piece for line in lines for piece in (line, "  ", ""))]
        path = write(tmp_path / "a.jsonl", *spaced, end=b"\r\n")
    source = RecordSource(path)
    assert len(source) == 300
    assert source.data_root == str(tmp_path)
    order = np.random.default_rng(0).permutation(300)
    for i in order:
        assert source[i] == parse_row(rows[i])
    copy = pickle.loads(pickle.dumps(source))
    assert copy[299] == source[299]
    assert repr(copy) == repr(source)
    assert list(source.iter_errors()) == []
    with pytest.raises(IndexError):
        source[300]
    with pytest.raises(IndexError):
        source[-1]


def test_source_is_thread_safe_and_feeds_grain(tmp_path):
    rows = many_rows(400)
    source = RecordSource(write(tmp_path / "a.jsonl", *map(json.dumps, rows)))
    failures = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 400, 1500):
            if source[i].problem_id != i:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == []
    dataset = grain.MapDataset.source(source).shuffle(seed=1).map(lambda record: record.problem_id)
    assert sorted(dataset.to_iter_dataset()) == list(range(400))


def test_index_holds_no_rows(tmp_path):
    """A pickled source of a 3 MB file is a few tens of kilobytes: offsets, no text."""
    line = json.dumps(ROW | {"problem": "x" * 1000})
    source = RecordSource(write(tmp_path / "a.jsonl", *[line] * 2500))
    assert os.path.getsize(source.path) > 2_900_000
    assert len(pickle.dumps(source)) < 2500 * 16 + 1000


def test_bad_rows_are_errors_at_their_row(tmp_path):
    good = json.dumps(ROW)
    path = write(
        tmp_path / "bad.jsonl",
        good,
        good + " tail",
        "{" + "[" * 100_000,
        b'{"problem": "\xff\xfe latin"}',
        b"\0" * 40,
        good[:-1] + ', "problem": "again"}',
        '{"a":NaN,"b":"................"}',
        "[1,2]",
        good,
    )
    source = RecordSource(path)
    assert len(source) == 9
    faults = {}
    for error in source.iter_errors():
        assert "\n" not in str(error)
        assert str(error).startswith("bad.jsonl row ")
        faults.setdefault(int(error.where.split()[-1]), []).append(error.reason)
    assert sorted(faults) == list(range(1, 9))
    assert [faults[i][0] for i in (1, 2, 3, 4, 5, 7, 8)] == [
        "json",
        "json",
        "encoding",
        "json",
        "value",
        "type",
        "duplicate",
    ]
    assert faults[8] == ["duplicate"]
    assert source[0] == source[8]
    with pytest.raises(RecordError, match=r"bad.jsonl row 1: row: bad json"):
        source[1]


def test_row_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("videorft_jax.data.records.source.MAX_ROW_BYTES", 100)
    source = RecordSource(write(tmp_path / "a.jsonl", json.dumps(ROW)))
    with pytest.raises(RecordError, match="length"):
        source[0]


def test_bad_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"\n\r\n  \n")
    (tmp_path / "gzip").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "utf16").write_text("{}", encoding="utf-16")
    (tmp_path / "list").write_text('[{"a": 1}, ')
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "nothing").write_text("[]")
    for name, remedy in [
        ("missing", "give the record file's path"),
        (".", "regular file"),
        ("fifo", "regular file"),
        ("empty", "no records"),
        ("gzip", "let it end in .gz"),
        ("utf16", "convert"),
        ("list", "repair"),
        ("deep", "repair"),
        ("nothing", "no records"),
    ]:
        with pytest.raises(ValueError, match=remedy) as info:
            RecordSource(tmp_path / name)
        assert "\n" not in str(info.value)


def test_changed_file_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps(ROW))
    data = pickle.dumps(RecordSource(path))
    write(path, json.dumps(ROW), json.dumps(ROW))
    with pytest.raises(ValueError, match="changed"):
        pickle.loads(data)


def test_write_records(tmp_path):
    records = [parse_row(row) for row in many_rows(50)]
    assert write_records(tmp_path / "out.jsonl", records) == 50
    source = RecordSource(tmp_path / "out.jsonl")
    assert [source[i] for i in range(50)] == records
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("gone", [{"os"}, set()], ids=["all modules", "all but os"])
def test_a_source_is_silent_at_the_end_of_a_program(tmp_path, monkeypatch, gone):
    """Python takes the names of modules away one by one, in any order."""
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"problem": "Q"}) + "\n")
    source = RecordSource(path)
    held = source._file
    modules = {name for name, each in vars(source_file).items() if inspect.ismodule(each)}
    with monkeypatch.context() as ending:
        for name in (modules - {"os"}) | gone:
            ending.setattr(source_file, name, None)
        source.__del__()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)
