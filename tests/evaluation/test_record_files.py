"""Record files named as benchmarks, the paper's prompt to the byte, prompts that scorers fit."""

import json
import pathlib

import pytest
from benchmark_layouts import clip, make_layouts
from evaluation_place import ROLLOUTS
from evaluation_place import read_completions as read
from test_score_and_compare import write_run

from videorft_jax import cli
from videorft_jax.commands import evaluate as evaluate_command
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import parse_row
from videorft_jax.data.records.render import render_text
from videorft_jax.evaluation.benchmarks.catalogue import describe, find_task, load_items
from videorft_jax.evaluation.benchmarks.variants import Variant, make_record
from videorft_jax.evaluation.outputs import read_outputs, rescore
from videorft_jax.evaluation.scoreboard import tabulate

THINK = (
    "Please think about this question as if you were a human pondering deeply. Engage in an"
    " internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see',"
    " 'let's break it down', etc, or other natural language thought expressions It's encouraged to"
    " include self-reflection or verification in the reasoning process. Provide your detailed"
    " reasoning between the <think> and </think> tags, and then give your final answer between the"
    " <answer> and </answer> tags."
)
LETTER = (
    " Please provide only the single option letter (e.g., A, B, C, D, etc.) within the <answer>"
    " </answer> tags."
)
NUMBER = (
    " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."
)


@pytest.fixture
def vsibench(tmp_path):
    """eval_vsibench.json as Video-R1-eval has it, its clips below Evaluation."""
    common = {"data_type": "video", "process": "", "data_source": "VSI"}
    rows = [
        {"problem_id": 0, "problem": "How many chairs?", "options": None, "solution":
         "<answer>4</answer>", "problem_type": "regression", "path": "./Evaluation/VSI/a.mp4",
         "original_question_type": "object_counting"},
        {"problem_id": 1, "problem": "Which way?", "options": ["A. left", "B. right"], "solution":
         "<answer>B</answer>", "problem_type": "multiple choice", "path": "./Evaluation/VSI/a.mp4",
         "original_question_type": "object_rel_direction_easy", "start": 0.1, "end": 0.9},
        {"problem_id": 1, "problem": "When?", "options": [], "solution":
         '<think>{"time": [0.0, 1.0], "boxes": {}}</think>', "problem_type": "temporal grounding",
         "path": "./Evaluation/VSI/b.mp4"},
    ]  # fmt: skip
    (tmp_path / "eval_vsibench.json").write_text(json.dumps([common | row for row in rows]))
    for name in "ab":
        clip(tmp_path / f"Evaluation/VSI/{name}.mp4")
    return tmp_path


def prompt_of(item, **settings):
    row = make_record(item, "vsibench", Variant(**settings), pathlib.Path())
    record = parse_row(row)
    return render_text(build_messages(record))


def test_the_papers_prompt_to_the_byte(vsibench):
    """The default system turn, the clip before the text, a blank line behind the options."""
    _, (number, letter, _) = load_items(find_task("eval_vsibench.json"), vsibench)
    head = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>"
    )
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(number) == f"{head}How many chairs?\n{THINK}{NUMBER}{end}"
    options = "A. left\nB. right\n"
    assert prompt_of(letter) == f"{head}Which way?\n{options}\n{THINK}{LETTER}{end}"
    direct = f"{head}Which way?\n{options}\n{LETTER.lstrip()}{end}"
    assert prompt_of(letter, think=False) == direct


def test_lettered_options_of_a_record_file_are_shown_as_they_are(tmp_path):
    """The paper's script writes them down unread; options without letters are given some."""
    row = {"problem": "Which?", "problem_type": "multiple choice", "path": "a.mp4",
           "solution": "<answer>B</answer>"}  # fmt: skip
    shown = {("A) left ", "B)  right"): "A) left \nB)  right\n", ("left", "right"):
             "A. left\nB. right\n"}  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([row | {"options": options} for options in shown]))
    _, items = load_items(find_task("mine.json"), tmp_path)
    for item, lines in zip(items, shown.values(), strict=True):
        assert item.options == ("left", "right")
        assert f"Which?\n{lines}\nPlease think" in prompt_of(item)


def test_a_record_file_is_read_as_a_benchmark(vsibench):
    task = find_task("eval_vsibench.json")
    folder, items = load_items(task, vsibench)
    assert (task.name, folder) == ("vsibench", vsibench)
    assert [item.id for item in items] == ["0", "1", "1#2"]
    assert [item.gold for item in items] == ["4", "B", '{"time": [0.0, 1.0], "boxes": {}}']
    assert items[1].options == ("left", "right")
    assert items[1].categories["question_type"] == "object_rel_direction_easy"
    problems = describe(task, vsibench)["problems"]
    assert problems == ["3 rows, its release has 5130: another split or version"]
    assert find_task(str(vsibench / "eval_vsibench.json")).find_folder(vsibench) == vsibench
    with pytest.raises(ValueError, match=r"no prompt of its own; give --variant=as_paper"):
        make_record(items[0], "vsibench", Variant("official"), vsibench)
    with pytest.raises(ValueError, match=r"no eval_mmvu.json in .*; get Video-R1/Video-R1-eval"):
        load_items(find_task("eval_mmvu.json"), vsibench)


def test_thinking_or_not_is_a_paired_comparison(place, vsibench, monkeypatch, capsys, caplog):
    """Two runs of a record file that differ in one flag, compared question by question."""
    monkeypatch.setattr(evaluate_command, "make_mesh", lambda _: place.mesh)
    monkeypatch.setattr(evaluate_command, "make_engine", lambda *_: place.engine)
    config, folders = place.config(data__row_tokens=1024), []
    for think in (True, False):
        folder = vsibench / f"think_{think}"
        evaluate_command.evaluate_benchmarks(
            config, str(folder), ["eval_vsibench.json"], str(vsibench), Variant(think=think)
        )
        folders.append(str(folder))
        assert len(read(folder / "vsibench").splitlines()) == 3 * ROLLOUTS
    assert "3 rows, its release has 5130" in caplog.text
    asked = []
    for folder in folders:
        first, *_ = pathlib.Path(folder, "vsibench/records.jsonl").read_text().splitlines()
        asked.append(json.loads(first)["messages"][0]["content"])
    assert (THINK in asked[0], THINK in asked[1]) == (True, False)
    capsys.readouterr()
    out = vsibench / "forest.png"
    assert cli.main(["compare", *folders, f"--out={out}", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    whole = [line for line in lines if line["benchmark"] == "vsibench" and not line["category"]]
    assert [line["questions"] for line in whole] == [3, 3]
    assert (whole[1]["only_here"], whole[1]["only_there"]) == (0, 0)
    assert whole[0]["published"]["VideoRFT-7B"] == 0.368


def test_records_beside_benchmarks_are_told_of(place, vsibench, caplog):
    """The files of --benchmarks are read instead, so a config that names records is answered."""
    said = "of tiny are not read beside --benchmarks"
    for options, expected in (({"data__root": "", "data__records": ""}, False), ({}, True)):
        caplog.clear()
        with caplog.at_level("WARNING"), pytest.raises(ValueError, match="no .absent.; choose"):
            evaluate_command.evaluate_benchmarks(
                place.config(name="tiny", **options), str(vsibench / "run"), ["absent"],
                str(vsibench), Variant(),
            )  # fmt: skip
        assert (said in caplog.text) is expected


def test_what_cannot_be_asked_is_said_before_anything_runs(place, vsibench):
    make_layouts(vsibench)
    names = ["vsibench", "eval_vsibench.json"]
    with pytest.raises(ValueError, match="name one twice"):
        evaluate_command.evaluate_benchmarks(
            place.config(), str(vsibench / "run"), names, str(vsibench), Variant()
        )
    with pytest.raises(ValueError, match="no reasoning to leave out in its own prompt"):
        evaluate_command.evaluate_benchmarks(
            place.config(), str(vsibench / "run"), ["mvbench"], str(vsibench),
            Variant("official", think=False),
        )  # fmt: skip
    with pytest.raises(ValueError, match="MVBench: has no subtitles; leave --subtitles out"):
        evaluate_command.evaluate_benchmarks(
            place.config(), str(vsibench / "run"), ["mvbench"], str(vsibench),
            Variant("official", with_subtitles=True),
        )  # fmt: skip
    with pytest.raises(ValueError, match="vsibench: has no prompt of its own"):
        evaluate_command.evaluate_benchmarks(
            place.config(), str(vsibench / "run"), ["mvbench", "eval_vsibench.json"],
            str(vsibench), Variant("official"),
        )  # fmt: skip
    assert not (vsibench / "run").exists()
    with pytest.raises(ValueError, match="as_paper shows no subtitles"):
        Variant(with_subtitles=True)


def test_flags_reach_the_evaluation(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(evaluate_command.flags, "parse", lambda argv, *_: (argv, "run"))
    monkeypatch.setattr(
        evaluate_command,
        "evaluate_benchmarks",
        lambda *values: asked.append(values),
    )
    config = "--config=configs/evaluate_7b.py"
    assert cli.main(["evaluate", config, "--no_think", "--benchmarks=mvbench,mmvu"]) == 0
    more = ["--data_root=d", "--variant=official", "--subtitles"]
    assert cli.main(["evaluate", "--benchmarks=a.json", *more]) == 0
    assert asked == [
        ([config], "run", ["mvbench", "mmvu"], ".", Variant(think=False)),
        ([], "run", ["a.json"], "d", Variant("official", with_subtitles=True)),
    ]
    spaced = ["--benchmarks", "mvbench", "--data_root", "~/d", "--no_think=false"]
    monkeypatch.setenv("HOME", "/home/one")
    assert cli.main(["evaluate", *spaced, config]) == 0
    assert asked[2] == ([config], "run", ["mvbench"], "/home/one/d", Variant())
    assert cli.main(["evaluate", config, "--no_think"]) == 2
    assert "are of --benchmarks; name some" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks=a", "--benchmarks=b"], "--benchmarks is given twice; give it once"),
        (["--benchmarks=a", "--variant="], "--variant= names none; choose as_paper or official"),
        (["--benchmarks=a", "--data_root"], "--data_root= names no folder; name that of"),
        (["--benchmarks", "--data_root=d"], "--benchmarks= names none; name some"),
        (["--benchmarks=a", "--no_think=maybe"], "--no_think is 'maybe'; give true, false or"),
    ],
)
def test_flags_that_say_nothing_are_refused(arguments, message, capsys):
    assert cli.main(["evaluate", "--config=evaluate_7b", "--workdir=run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_data_root_at_home_is_looked_into(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["benchmarks", "--data_root=~"]) == 0
    assert f"0 of 14 benchmarks are whole in {tmp_path}" in capsys.readouterr().out


def test_published_numbers_stand_beside_ours(tmp_path, capsys):
    """Headlines by hand: three of four right, and the paper's share."""
    folders = []
    for name, outputs in (("one", ["B", "B", "B", "A"]), ("two", ["A", "A", "B", "A"])):
        folders.append(write_run(tmp_path / name, outputs))
        path = tmp_path / name / "toy/records.jsonl"
        path.write_text(path.read_text().replace('"toy"', '"mvbench"'))
    out = tmp_path / "forest.png"
    assert cli.main(["compare", *folders, f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "| mvbench | 0.7500 | 0.2500 | 0.621 | 0.595 | 0.639 | 0.590 |" in said


@pytest.mark.parametrize(
    ("variant", "warned"),
    [("as_paper", {"official", "lmms"}), ("official", {"videorft"}), ("", set())],
)
def test_a_scorer_that_the_prompt_was_not_made_for_is_warned_of(tmp_path, capsys, variant, warned):
    folder = tmp_path / "run"
    write_run(folder, ["B", "A"])
    path = folder / "toy/records.jsonl"
    rows = [json.loads(line) | {"variant": variant} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = set()
    for scorer in ("robust", "official", "lmms", "videorft"):
        table = tabulate(rescore(read_outputs(folder), scorer), scorer)
        found |= {scorer} if table["toy"]["warning"] else set()
        assert cli.main(["score", str(folder), f"--scorer={scorer}"]) == 0
        said = capsys.readouterr().out
        assert ("warning: the prompt asks" in said) == (scorer in warned)
    assert found == warned
