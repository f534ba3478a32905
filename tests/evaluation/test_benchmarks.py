"""Benchmarks in the layouts of their releases: what is read, what is missing, what is asked."""

import dataclasses
import json
import pathlib

import pytest
from benchmark_layouts import clip, make_layouts, text

from videorft_jax import cli
from videorft_jax.data.records.records import parse_row
from videorft_jax.evaluation.benchmarks.catalogue import (
    TASKS,
    count_problems,
    describe,
    find_task,
    load_items,
)
from videorft_jax.evaluation.benchmarks.task import choose
from videorft_jax.evaluation.benchmarks.variants import Variant, write_records


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    return root, make_layouts(root)


def test_all_layouts_are_read(layouts):
    root, counts = layouts
    assert counts.keys() == TASKS.keys()
    for name, count in counts.items():
        found = describe(TASKS[name], root)
        assert found["rows"] == count, name
        missing = ["video/nturgbd/S001_rgb.avi"] if name == "mvbench" else []
        assert found["missing"] == missing, name
        other = f"{count} rows, its release has {TASKS[name].num_rows}: another split or version"
        assert other in found["problems"]


def items_of(root, name):
    return {item.id: item for item in load_items(TASKS[name], root)[1]}


def test_gold_answers_and_kinds(layouts):
    root, _ = layouts
    vsi = items_of(root, "vsibench")
    assert (vsi["0"].kind, vsi["0"].gold) == ("regression", "4")
    assert (vsi["1"].kind, vsi["1"].options) == ("multiple choice", ("left", "right"))
    mvbench = items_of(root, "mvbench")
    assert mvbench["action_sequence/0"].gold == "B"
    assert mvbench["moving_count/0"].problem == "its gold answer 'one' is no candidate"
    assert mvbench["episodic_reasoning/0"].media[0]["fps"] == 3.0
    assert items_of(root, "longvideobench")["a_0"].gold == "B"
    assert items_of(root, "lvbench")["0"].options == ("left", "right")
    assert items_of(root, "mmvu")["validation_0"].media[0]["path"] == "videos/Art/1.mp4"
    kinds = {item.kind for item in items_of(root, "tempcompass").values()}
    assert kinds == {"multiple choice", "yes_no", "caption_matching", "captioning"}
    assert {item.categories["track"] for item in items_of(root, "videommmu").values()} == {
        "Perception", "Comprehension", "Adaptation",
    }  # fmt: skip
    paths = {item.media[0]["path"] for item in items_of(root, "videomme").values()}
    assert paths == {"data/abc.MP4", "data/def.mkv"}


def test_records_are_those_of_the_loader(layouts, tmp_path):
    root, counts = layouts
    for name, count in counts.items():
        for variant in ("as_paper", "official"):
            path = tmp_path / f"{name}.jsonl"
            folder, items = load_items(TASKS[name], root)
            write_records(path, items, name, Variant(variant), folder)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert len(rows) == count
            for row in rows:
                parse_row(row)


def test_a_variant_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="variant is 'mine'; choose one of as_paper, official"):
        Variant("mine")


def test_faults_of_gold_answers_are_counted(layouts):
    root, _ = layouts
    items = load_items(TASKS["mvbench"], root)[1]
    assert count_problems(items) == "1 gold answers are no candidate"
    repeated = dataclasses.replace(items[0], problem=choose("up", ["up", "up"])[1])
    assert count_problems([repeated, repeated]) == "2 repeat a candidate"
    assert choose("up", ["down", "up", "up"])[0] == "B"  # The first of equal ones counts.
    assert count_problems([]) == ""


def test_mvbench_in_the_revision_of_cut_clips(tmp_path):
    """One file holds all tasks; a clip that is cut already has no bounds any more."""
    row = {"video": "A.mp4", "question": "Q?", "candidates": ["left", "right"], "answer": "right",
           "start": 0.2, "end": 0.8}  # fmt: skip
    webm = row | {"video": "1.webm", "start": None, "end": None}
    text(tmp_path / "MVBench/test.json", {
        "root": {"action_sequence": "star/Charades_segment", "action_antonym": "ssv2_video_mp4"},
        "meta": {"action_sequence": [row], "action_antonym": [webm]},
    })  # fmt: skip
    clip(tmp_path / "MVBench/star/Charades_segment/A.mp4")
    clip(tmp_path / "MVBench/video/ssv2_video_mp4/1.mp4")
    _, (first, second) = load_items(TASKS["mvbench"], tmp_path)
    assert dict(first.media[0]) == {"type": "video", "path": "star/Charades_segment/A.mp4"}
    assert second.media[0]["path"] == "video/ssv2_video_mp4/1.mp4"
    assert [item.id for item in (first, second)] == ["action_sequence/0", "action_antonym/0"]


def test_mvbench_with_its_later_archive_beside_the_others(tmp_path):
    """The clips of data0613.zip are found where they were not merged into those of star."""
    row = {"video": "A.mp4", "question": "Q?", "candidates": ["left", "right"], "answer": "right",
           "start": 0.2, "end": 0.8}  # fmt: skip
    text(tmp_path / "MVBench/json/action_sequence.json", [row, row | {"video": "B.mp4"}])
    clip(tmp_path / "MVBench/video/star/Charades_v1_480/A.mp4")
    clip(tmp_path / "MVBench/video/data0613/star/Charades_v1_480/B.mp4")
    _, items = load_items(TASKS["mvbench"], tmp_path)
    assert [item.media[0]["path"] for item in items] == [
        "video/star/Charades_v1_480/A.mp4", "video/data0613/star/Charades_v1_480/B.mp4",
    ]  # fmt: skip
    assert all(item.media[0]["start"] == 0.2 for item in items)


def test_what_is_wrong_ends_the_command_in_one_line(tmp_path, capsys):
    config = str(pathlib.Path(__file__).parents[2] / "configs/evaluate_7b.py")
    words = ["evaluate", f"--config={config}", f"--workdir={tmp_path}/run"]
    for names, said in (
        ("mme", "benchmarks: no 'mme'; choose among vsibench"),
        ("mmvu", "MMVU (validation): no validation.json or validation*.parquet in"),
        ("eval_mmvu.json", "eval_mmvu.json: no eval_mmvu.json in"),
    ):
        assert cli.main([*words, f"--benchmarks={names}", f"--data_root={tmp_path}"]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert not (tmp_path / "run").exists()


def test_command_lists_what_is_there(layouts, capsys):
    root, counts = layouts
    assert cli.main(["benchmarks", f"--data_root={root}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {own["name"]: own["rows"] for own in found} == counts
    assert set(found[0]) == {"name", "rows", "found", "missing", "problems"}
    assert cli.main(["benchmarks"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in TASKS)
    assert "OpenGVLab/MVBench" in out


def test_what_is_wrong_is_said_in_one_line(layouts, tmp_path):
    with pytest.raises(ValueError, match="no 'mme'; choose among vsibench"):
        find_task("mme")
    with pytest.raises(ValueError, match=r"no lvb_val.json or .*; get longvideobench/"):
        load_items(TASKS["longvideobench"], tmp_path)
    path = tmp_path / "LongVideoBench/lvb_val.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"id": "a", "question": "Q?"}]))
    with pytest.raises(ValueError, match="another split or version; get longvideobench"):
        load_items(TASKS["longvideobench"], tmp_path)
    found = describe(TASKS["longvideobench"], pathlib.Path(tmp_path))
    assert found["rows"] == 0
    assert "another split or version" in found["problems"][0]
