"""One run of `videorft validate` over a file with one row of every fault, against a snapshot."""

import json
import pathlib

import pytest
from clips import encode
from PIL import Image
from test_pipeline import make_loader

from videorft_jax.commands import validate
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

SNAPSHOT = pathlib.Path(__file__).parent / "validate_snapshot.txt"
ROW = {
    "problem_id": 0, "problem": "What moves?", "data_type": "video", "problem_type": "free-form",
    "process": "<think>I look.</think>", "solution": "<answer>a ball</answer>", "path": "good.mp4",
}  # fmt: skip
CHOICE = {"problem_type": "multiple choice", "solution": "A"}
ROWS = [
    ROW,
    ROW | {"path": "gone.mp4"},
    ROW | {"path": "cut.mp4"},
    ROW | {"path": "text.mp4"},
    ROW | {"path": "folder"},
    ROW | {"path": "../good.mp4"},
    ROW | {"path": "https://host/a.mp4"},
    ROW | {"path": "C:\\clips\\a.mp4"},
    ROW | {"path": "empty.mp4"},
    ROW | {"path": "one.mp4"},
    ROW | {"path": "one.mp4", "data_type": "image"},  # which its remedy says, and which works
    ROW | {"path": "good.mp4", "data_type": "image"},
    ROW | {"path": "ribbon.png", "data_type": "image"},
    ROW | {"start": 90.0, "end": 95.0},
    ROW | {"path": "two\nlines.mp4"},
    ROW | {"problem": "<video> or <video>?"},
    ROW | {"solution": "<answer>x", "problem_type": "poem", "start": -1},
    ROW | CHOICE | {"options": ["A. red", "A. blue"]},
    ROW | CHOICE | {"options": ["B. blue", "A. red"]},
    ROW | {"process": ""},
    ROW | {"media": [{"type": "video", "path": "gone.mp4"}, {"type": "image", "path": "no.png"}]},
    ROW | {"media": [{"type": "video", "path": ["ribbon.png"]}]},
    ROW | {"messages": [{"role": "user", "content": "hi"}]},
    ROW | {"video_start": 0.5, "nframes": 8, "max_pixels": 9},
    ROW | {"problem": "word " * 9000},
    [1, 2],
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    good = encode(num=50, size=(96, 64))
    (folder / "good.mp4").write_bytes(good)
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "text.mp4").write_text("no video\n" * 20)
    (folder / "empty.mp4").touch()
    (folder / "one.mp4").write_bytes(encode(num=1))
    (folder / "folder").mkdir()
    Image.new("RGB", (4000, 10)).save(folder / "ribbon.png")
    rows = [row | {"problem_id": i} if isinstance(row, dict) else row for i, row in enumerate(ROWS)]
    lines = [json.dumps(row) for row in rows] + ["{this is no JSON, though long enough}"]
    path = folder / "faults.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(data, capsys, *flags):
    code = validate.main(["--data", str(data), "--threads", "1", *flags])
    return code, capsys.readouterr().out.replace(str(data.parent), "DIR")


def test_the_whole_output_is_as_it_was(data, capsys):
    """After a change that is meant, `videorft validate` on the same rows gives the new one."""
    code, out = run(data, capsys)
    assert code == 1
    assert out == SNAPSHOT.read_text()
    faults = [line for line in out.splitlines() if line.startswith("  row ")]
    assert all("; " in line for line in faults)  # each has a remedy
    named = {int(line.split()[1].rstrip(":")) for line in faults}
    assert named == set(range(len(ROWS) + 1)) - {0, 10, 18, 23}


def test_quick_says_the_same_of_all_that_packets_tell(data, capsys):
    assert run(data, capsys, "--quick") == (1, SNAPSHOT.read_text())


def test_no_run_is_proposed_where_no_row_is_good(data, capsys):
    path = data.parent / "bad.jsonl"
    path.write_text(json.dumps(ROW | {"path": "gone.mp4"}) + "\n")
    code, out = run(path, capsys)
    assert code == 1
    assert out.splitlines()[-1].endswith("; next: videorft validate --data=DIR/bad.jsonl ...")


def test_extra_fields_are_faults_unless_allowed(data, capsys, tmp_path):
    path = data.parent / "extra.jsonl"
    path.write_text(json.dumps(ROW | {"nframes": 8, "task": "count"}) + "\n")
    code, out = run(path, capsys)
    assert code == 1
    assert "1 records: nframes: changes nothing; remove it, or give --allow_extra nframes" in out
    assert run(path, capsys, "--allow_extra", "task")[0] == 1
    assert run(path, capsys, "--allow_extra", "task", "nframes")[0] == 0
    assert run(path, capsys, "--allow_extra")[0] == 0
    path.write_text(json.dumps(ROW | {"extra_note": "who asked"}) + "\n")
    assert run(path, capsys)[0] == 0


def test_limits_and_roots_are_flags(data, capsys, tmp_path):
    path = data.parent / "limits.jsonl"
    (data.parent / "linked.mp4").symlink_to(tmp_path / "blob")
    (tmp_path / "blob").write_bytes((data.parent / "good.mp4").read_bytes())
    path.write_text(json.dumps(ROW | {"path": "linked.mp4"}) + "\n")
    assert "outside_root" in run(path, capsys)[1]
    other = ("--answers", str(tmp_path / "sizes"))
    assert run(path, capsys, "--root", str(tmp_path), *other)[0] == 0
    path.write_text(json.dumps(ROW) + "\n")
    out = run(path, capsys, "--limit", "max_seconds=1", "--answers", str(tmp_path / "more"))[1]
    assert "too_long" in out
    assert "raise limits.max_seconds" in out
    assert validate.main(["--data", str(path), "--limit", "speed=1"]) == 2


def test_the_loader_reads_what_was_checked_and_says_the_remedy(data, tmp_path):
    source = RecordSource(data)
    sizes, quarantine = f"{data}.sizes", tmp_path / "quarantine.jsonl"
    config = {"rows": 1, "row_tokens": 8192, "max_bad_fraction": 1.0, "epochs": 1}
    make_loader(
        source, train_tiny_tokenizer(["a"], 264), config, shared_sizes=sizes,
        quarantine_path=quarantine,
    )  # fmt: skip
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert len(lines) >= 20
    assert all(line["remedy"] for line in lines)
    by_index = {line["index"]: line for line in lines}
    assert by_index[1]["remedy"] == "check the path and the data root"
    assert by_index[24]["remedy"].startswith("raise data.row_tokens")
