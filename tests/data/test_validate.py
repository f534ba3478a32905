"""`videorft validate` finds what is wrong, decodes as training does, and resumes."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from test_hostile_media import write_video
from test_pipeline import CONTRACT, make_loader

from videorft_jax.commands import validate as validate_command
from videorft_jax.data import validate
from videorft_jax.data.loader.measure import Measurer, measure
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.probe import probe_media
from videorft_jax.data.progress import Bar
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.geometry import PLAIN_16


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Twenty rows: 12 good, 2 schema faults, a missing, a truncated and a corrupt clip, one
    repeated id and one repeated question."""
    folder = tmp_path_factory.mktemp("data")
    files = write_dataset(folder, 16, 0, 0)
    source = RecordSource(files["sft"])
    rows = [source.row(i) for i in range(16)]
    videos = [i for i in range(16) if rows[i]["data_type"] == "video"]
    missing, cut, corrupt = videos[1], videos[2], videos[3]
    rows[missing]["path"] = "clips/gone.mp4"
    content = (folder / rows[cut]["path"]).read_bytes()
    (folder / rows[cut]["path"]).write_bytes(content[: len(content) // 2])
    rows[corrupt]["path"] = "long.mp4"
    content = bytearray(write_video(folder / "long.mp4").read_bytes())
    middle = len(content) // 2  # behind the keyframe that opens the clip
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    (folder / "long.mp4").write_bytes(content)
    lines = [json.dumps(row) for row in rows]
    lines.append(json.dumps(rows[0] | {"problem_type": "poem", "problem_id": 900}))
    lines.append("this line is not JSON, though long")
    lines.append(json.dumps(rows[videos[0]] | {"problem": "What else is there?"}))  # id again
    lines.append(json.dumps(rows[videos[0]] | {"problem_id": 901}))  # question again
    data = folder / "broken.jsonl"
    data.write_text("\n".join(lines) + "\n")
    reasons = {missing: "missing", cut: "truncated", corrupt: "corrupt", 16: "schema", 17: "schema"}
    return str(data), reasons


def run(data, tmp_path, *more):
    path = tmp_path / "report.json"
    answers = ["--answers", str(tmp_path / "answers")]
    sizes = ["--rows", "4", "--row_tokens", "4096", "--threads", "2"]
    code = validate_command.main(["--data", data, "--json", str(path), *answers, *sizes, *more])
    return code, json.loads(path.read_text())


def test_everything_wrong_is_reported(broken, tmp_path, capsys):
    data, reasons = broken
    code, report = run(data, tmp_path)
    assert code == 1
    assert {f["index"]: f["reason"] for f in report["failures"]} == reasons
    assert report["reasons"] == {"schema": 2, "missing": 1, "truncated": 1, "corrupt": 1}
    assert (report["num_records"], report["num_good"]) == (20, 15)
    assert report["duplicates"] == {"problem_id": [18], "question and media": [19]}
    assert report["mode"] == "sft"
    assert sum(report["types"].values()) == sum(report["frame_sizes"].values()) == 15
    videos = sum(n for kind, n in report["types"].items() if kind.startswith("video"))
    assert len(report["odd"]["fewer than 16 frames"]) == videos  # synthetic clips have 8
    out = capsys.readouterr()
    for text in ("15 of 20 records are good", "schema", "row 17", "compiled shapes", "padding"):
        assert text in out.out
    assert "20/20 records" in out.err


def test_statistics_are_those_of_the_samples(broken, tmp_path):
    data, reasons = broken
    _, report = run(data, tmp_path)
    source, contract = RecordSource(data), MediaContract.train()
    frames, tokens, seconds = [], [], []
    for i in range(20):
        if i not in reasons:
            record = source[i]
            clip = load_media(record.path, source.data_root, contract, kind=record.data_type)
            n, h, w = clip.frames.shape[:3]
            frames.append(n)
            tokens.append(-(-n // 2) * (h // 28) * (w // 28))
            seconds += [n / clip.fps] if n > 1 else []
    assert report["frames"] == validate.describe(np.array(frames))
    assert report["visual_tokens"] == validate.describe(np.array(tokens))
    assert report["seconds"] == validate.describe(np.array(seconds))
    assert report["seconds"]["max"] == 2.0  # 8 frames at 4 a second
    assert validate.describe(np.arange(101.0)) == {
        "min": 0, "mean": 50, "median": 50, "p95": 95, "max": 100,
    }  # fmt: skip


def test_a_stopped_check_goes_on_and_the_loader_uses_it(broken, tmp_path):
    data, _ = broken
    first = run(data, tmp_path)[1]
    source = RecordSource(data)
    hidden = tmp_path / "hidden"
    for folder in ("clips", "images"):
        for name in sorted(os.listdir(os.path.join(source.data_root, folder, "sft"))):
            path = os.path.join(source.data_root, folder, "sft", name)
            status = os.stat(path)
            os.makedirs(hidden, exist_ok=True)
            shutil.copy2(path, hidden / name)
            with open(path, "r+b") as file:
                file.write(bytes(status.st_size))  # unreadable now, but same size and time
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    answers = tmp_path / "answers" / "sizes-0.jsonl"
    with open(answers, "a") as file:
        file.write('["file|torn')  # killed while writing
    try:
        assert run(data, tmp_path)[1] == first  # nothing was looked at again
        train = Measurer(source, MediaContract.train(), None, DEFAULT_TEMPLATE, True, Limits())
        known = SizeCache(tmp_path / "answers")
        measured = measure(train, known, 2)
        known.close()
        assert len(measured.failures) == 5
    finally:
        for folder in ("clips", "images"):
            for name in os.listdir(os.path.join(source.data_root, folder, "sft")):
                shutil.copy2(hidden / name, os.path.join(source.data_root, folder, "sft", name))


def test_quick_finds_all_but_damage_inside(broken, tmp_path):
    data, reasons = broken
    _, report = run(data, tmp_path, "--quick")
    assert not report["decoded"]
    inside = [i for i, reason in reasons.items() if reason == "corrupt"]
    found = {f["index"]: f["reason"] for f in report["failures"]}
    assert found == {i: reason for i, reason in reasons.items() if i not in inside}
    _, full = run(data, tmp_path)  # a quick answer does not stand in for a full one
    assert {f["index"]: f["reason"] for f in full["failures"]} == reasons


def test_looking_tells_what_decoding_gives(broken):
    """The planner's sizes, and the times that a prompt names, are those of the decoded clips."""
    data, reasons = broken
    source = RecordSource(data)
    timed = MediaContract.train(PLAIN_16)
    for contract in (CONTRACT, MediaContract.train(), MediaContract.evaluate(), timed):
        measurer = Measurer(source, contract, None, DEFAULT_TEMPLATE, True, Limits(), full=True)
        for i in range(20):
            if i not in reasons:
                item = source[i].media[0]
                span = {"kind": item.kind, "start": item.start, "end": item.end}
                looked = probe_media(item.path, source.data_root, contract, **span)
                assert looked == measurer.media(i, item, SizeCache(None))


def test_the_plan_is_the_loaders(broken, tmp_path):
    data, reasons = broken
    source = RecordSource(data)
    tokenizer = train_tiny_tokenizer([source[0].process], 300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    _, report = run(data, tmp_path, "--tokenizer", str(tmp_path / "tokenizer"), "--mode", "grpo")
    config = {"mode": "grpo", "rows": 4, "row_tokens": 4096, "max_buckets": 4, "multiple": 128}
    config |= {"epochs": 1, "seed": 0, "max_bad_fraction": 0.5}
    answers = tmp_path / "answers"
    loader = make_loader(source, tokenizer, config, MediaContract.train(), sizes_dir=answers)
    plan = report["plan"]
    assert plan["num_batches"] == len(loader)
    assert plan["num_shapes"] == len(loader.buckets)
    keys = ("length", "pairs", "windows", "rows")
    assert [tuple(s[k] for k in keys) for s in plan["shapes"]] == [tuple(b) for b in loader.buckets]
    assert plan["padding_of_tokens"] == pytest.approx(loader.waste[0], abs=1e-4)
    assert sum(shape["batches"] for shape in plan["shapes"]) == len(loader)


def test_rows_that_are_too_long_and_files_that_cannot_be(broken, tmp_path, capsys):
    data, _ = broken
    code, report = run(data, tmp_path, "--row_tokens", "384")
    assert code == 1
    assert report["plan"]["too_many_tokens"]
    assert validate_command.main(["--data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    unsound = tmp_path / "unsound.jsonl"
    unsound.write_text('{"problem_id": 1, "nothing": "else"}\n')
    assert validate_command.main(["--data", str(unsound)]) == 1
    said = capsys.readouterr().out
    assert "0 of 1 records are good" in said
    assert "no row is sound" in said
    for field in ("problem", "data_type", "problem_type", "solution", "path"):
        assert f"row 0: {field}: missing: absent; " in said


def test_truths_that_no_reward_can_read_are_refused(broken, tmp_path):
    """Only where rewards will read them; each rule set reads its own."""
    source = RecordSource(broken[0])
    row = source[0].to_row() | {"problem_type": "numerical", "solution": "<answer>many</answer>"}
    data = tmp_path / "truths.jsonl"
    root = ("--data_root", source.data_root)
    sound = row | {"problem_id": 1, "problem": "And?", "solution": "<answer>5 m</answer>"}
    data.write_text("".join(json.dumps(each) + "\n" for each in (row, sound)))
    code, report = run(str(data), tmp_path, *root, "--mode", "grpo")
    (fault,) = report["faults"]
    assert code == 1
    assert (fault["index"], fault["where"], fault["reason"]) == (0, "solution", "truth")
    assert fault["detail"] == "numerical with the truth 'many'"
    code, report = run(str(data), tmp_path, *root, "--mode", "grpo", "--reward_mode", "repo")
    assert [fault["index"] for fault in report["faults"]] == [0, 1]  # a unit is no number there
    code, report = run(str(data), tmp_path, *root, "--mode", "evaluate")
    assert not report["faults"]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--json", "no/report.json", "--json=no/report.json: no folder no; make it first"),
        ("--json", ".", "--json=.: is a folder"),
        ("--answers", "file", "file: File exists; see that it can be read and written"),
        ("--rows", "0", "'0' is no count"),
        ("--multiple", "-1", "'-1' is no count"),
    ],
)
def test_flags_are_refused_before_anything_is_read(
    broken, tmp_path, monkeypatch, capsys, flag, value, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    try:
        code = validate_command.main(["--data", broken[0], f"{flag}={value}"])
    except SystemExit as end:  # This is how argparse ends.
        code = end.code
    assert code == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "records" not in shown.out + shown.err


def test_progress_away_from_a_terminal_ends_with_the_total():
    stream = io.StringIO()
    bar = Bar(30, stream)
    for done in range(1, 31):
        bar(done)
    assert stream.getvalue().splitlines()[-1].startswith(f"[{'#' * 30}] 30/30 records")
