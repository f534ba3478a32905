"""Annotation files as users have them: other encodings, signs, forms and neighbours."""

import json

import pytest
from benchmark_layouts import table

from videorft_jax.evaluation.benchmarks.catalogue import (
    TASKS,
    count_problems,
    describe,
    find_task,
    load_items,
)
from videorft_jax.evaluation.benchmarks.subtitles import Subtitles, read_subtitles

ROW = {"id": 0, "dataset": "scannet", "scene_name": "s", "question_type": "object_counting",
       "question": "How many?", "ground_truth": "4", "options": None}  # fmt: skip


def test_separators_of_unicode_end_no_line(tmp_path):
    """JSON leaves these signs as they are inside a text, and Python's splitlines ends lines there.
    The file also has a byte order mark and the line ends of Windows."""
    path = tmp_path / "VSI-Bench/test.jsonl"
    path.parent.mkdir()
    question = "How\u2028many\u2029chairs\x85?"
    lines = [json.dumps(ROW | {"question": question}, ensure_ascii=False), json.dumps(ROW), ""]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    _, items = load_items(TASKS["vsibench"], tmp_path)
    assert [item.question for item in items] == [question, "How many?"]
    word = {"start_time": 0, "end_time": 1, "text": question}
    (tmp_path / "s.jsonl").write_text(json.dumps(word, ensure_ascii=False) + "\n", "utf-8")
    assert read_subtitles(tmp_path, Subtitles("s.jsonl")) == [(0.0, 1.0, question)]


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "VSI-Bench/test.jsonl"
    path.parent.mkdir()
    path.write_bytes(json.dumps(ROW).encode("utf-16"))
    with pytest.raises(ValueError, match=r"test\.jsonl: .*download the file again"):
        load_items(TASKS["vsibench"], tmp_path)


def test_files_of_one_benchmark_are_not_those_of_another(tmp_path):
    """VSI-Bench's first release lies where a pattern of MLVU and of Video-MMMU looks, too."""
    table(tmp_path / "VSI-Bench/test-00000-of-00001.parquet", [ROW])
    found = {name: describe(task, tmp_path) for name, task in TASKS.items()}
    assert [name for name, own in found.items() if own["rows"]] == ["vsibench"]
    for name, own in found.items():
        assert bool(own["missing"]), name
    assert "no */test-*.parquet in" in found["videommmu"]["problems"][0]
    table(tmp_path / "VSI-Bench/Perception/test-0.parquet", [ROW])
    assert TASKS["videommmu"].find_folder(tmp_path / "VSI-Bench") == tmp_path / "VSI-Bench"


@pytest.mark.parametrize(
    ("solution", "gold"), [(4, "4"), (2.5, "2.5"), ("<answer>4</answer>", "4"), (None, None)]
)
def test_solutions_of_record_files(tmp_path, solution, gold):
    row = {"problem": "Q?", "problem_type": "regression", "path": "a.mp4", "solution": solution}
    (tmp_path / "mine.json").write_text(json.dumps([row]))
    if gold is None:
        with pytest.raises(ValueError, match=r"mine\.json: row 0: solution is None; write"):
            load_items(find_task("mine.json"), tmp_path)
    else:
        _, (item,) = load_items(find_task("mine.json"), tmp_path)
        assert item.gold == gold


def test_rows_of_another_form_are_said_to_be(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"data": []}))
    with pytest.raises(ValueError, match=r"has rows of another form \('str' object"):
        load_items(find_task("mine.json"), tmp_path)


def test_a_subtitle_without_an_end_lasts_as_long_as_its_clip(tmp_path):
    lines = [{"start": "00:00:01.000", "end": None, "line": "one"}]
    (tmp_path / "s.json").write_text(json.dumps(lines))
    assert read_subtitles(tmp_path, Subtitles("s.json", duration=9.0)) == [(1.0, 9.0, "one")]


def test_files_that_come_with_a_download_are_no_annotations(tmp_path):
    sci = {"video_id": 1, "question": "Q?", "options": ["a", "b"], "answer": "A"}
    table(tmp_path / "SciVideoBench/data/test-0.parquet", [sci])
    charades = {"video": "a", "caption": "runs", "timestamp": [0.0, 1.0]}
    folder = tmp_path / "charades_sta"
    folder.mkdir()
    (folder / "charades_test.jsonl").write_text(json.dumps(charades) + "\n")
    for place in (tmp_path / "SciVideoBench", folder):
        (place / "dataset_infos.json").write_text("{}")
        (place / "a_log.jsonl").write_text('{"time": 1}\n')
    for name in ("scivideobench", "charades_sta"):
        assert len(load_items(TASKS[name], tmp_path)[1]) == 1


def test_gold_answers_that_no_option_has_are_counted(tmp_path):
    """A place behind the options, one counted from the end, and a letter that there is not."""
    row = {"id": "a", "question": "Q?", "candidates": ["left", "right"], "video_path": "a.mp4",
           "question_category": "S2E", "duration_group": 15, "duration": 1.0}  # fmt: skip
    rows = [row | {"id": str(place), "correct_choice": place} for place in (1, 7, -1)]
    path = tmp_path / "LongVideoBench/lvb_val.json"
    path.parent.mkdir()
    path.write_text(json.dumps(rows))
    _, items = load_items(TASKS["longvideobench"], tmp_path)
    assert count_problems(items) == "2 gold answers are no candidate"
    assert [item.problem for item in items][:2] == ["", "its gold answer 'H' is no candidate"]
    record = {"problem": "Q?", "problem_type": "multiple choice", "path": "a.mp4"}
    answers = [("C", ["A. up", "B. down"]), ("down", ["A. up", "B. down"]), ("C", [])]
    rows = [record | {"solution": gold, "options": options} for gold, options in answers]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    _, items = load_items(find_task("mine.json"), tmp_path)
    assert [bool(item.problem) for item in items] == [True, False, False]


def test_files_without_a_question_are_said_to_be(tmp_path):
    (tmp_path / "MLVU/json").mkdir(parents=True)
    (tmp_path / "MLVU/json/9_summary.json").write_text("[{}]")  # only what a judge reads
    task = TASKS["mlvu"]
    (tmp_path / "MLVU/json/1_plotQA.json").write_text("[]")
    with pytest.raises(ValueError, match="MLVU hold no question; get MLVU/MVLU"):
        load_items(task, tmp_path)
    found = describe(task, tmp_path)
    assert (found["rows"], found["missing"]) == (0, [])
    assert "hold no question" in found["problems"][0]


def test_a_row_of_mmvu_without_metadata_has_the_subject_of_its_clip(tmp_path):
    row = {"id": "v", "video": "https://x/videos/Art/1.mp4", "question_type": "multiple-choice",
           "question": "Q?", "choices": {"A": "up", "B": "down"}, "answer": "A"}  # fmt: skip
    (tmp_path / "validation.json").write_text(json.dumps([row, row | {"metadata": None}]))
    _, items = load_items(TASKS["mmvu"], tmp_path)
    assert [item.categories["subject"] for item in items] == ["Art", "Art"]


def test_links_that_lead_out_of_the_folder_are_told(tmp_path):
    """A loader follows none but those into `limits.roots`; one within the folder is no matter."""
    row = {"id": 0, "dataset": "scannet", "scene_name": "a", "question_type": "route_planning",
           "question": "Q?", "options": ["A. up", "B. down"], "ground_truth": "A"}  # fmt: skip
    folder, other = tmp_path / "VSI-Bench", tmp_path / "disk/scannet"
    (folder / "here").mkdir(parents=True)
    other.mkdir(parents=True)
    rows = [row, row | {"id": 1, "dataset": "arkitscenes"}]
    (folder / "test.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows))
    for place in (other, folder / "here"):
        (place / "a.mp4").touch()
    (folder / "arkitscenes").symlink_to(folder / "here")
    (folder / "scannet").symlink_to(other)
    found = describe(TASKS["vsibench"], tmp_path)
    assert (found["found"], found["missing"]) == (2, [])
    assert found["problems"][-1] == (
        "1 files lie outside of the folder, such as scannet/a.mp4; name the folder that holds "
        f"them, {other}, in limits.roots"
    )
    (folder / "scannet").unlink()
    assert "outside" not in " ".join(describe(TASKS["vsibench"], tmp_path)["problems"])


def test_lvbench_as_lmms_lab_has_it(tmp_path):
    """A table of questions, each with its clip and its options, and all clips in one folder."""
    row = {"question": "Q?\n(A) up\n(B) down", "answer": "B", "video_path": "k.mp4"}
    apart = {"question": "W?", "options": ["left", "right"], "answer": "A", "video_path": "k.mp4"}
    rows = [own | {"question_type": "reasoning"} for own in (row | {"options": []}, apart)]
    table(tmp_path / "lvbench/data/train-00000-of-00001.parquet", rows)
    (tmp_path / "lvbench/all_videos").mkdir()
    (tmp_path / "lvbench/all_videos/k.mp4").touch()
    folder, items = load_items(TASKS["lvbench"], tmp_path)
    assert [(item.id, item.question, item.gold) for item in items] == [
        ("0", "Q?", "B"), ("1", "W?", "A"),
    ]  # fmt: skip
    assert {item.media[0]["path"] for item in items} == {"all_videos/k.mp4"}
    assert items[0].categories["question_type"] == ["reasoning"]
    assert items[1].wording.prompt.startswith("W?\n(A) left\n(B) right\nAnswer")
    assert describe(TASKS["lvbench"], tmp_path)["found"] == 1
