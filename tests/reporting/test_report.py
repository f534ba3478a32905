"""What a report reads, counts and refuses, without a browser."""

import base64
import json
import re
import shutil

import pytest
from written_runs import grpo_row, write_grpo

from videorft_jax import cli
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.reporting.chunks import match
from videorft_jax.reporting.films import Clip, make_films
from videorft_jax.reporting.groups import Completion, Group, summarise
from videorft_jax.reporting.report import ReportOptions, find_films
from videorft_jax.reporting.runs import read_run


def group(*completions, step=1, problem_id="7"):
    return Group(step, problem_id, "numerical", "how many?", "3", (), completions)


def completion(total, accuracy, semantic, form=1.0, flags=()):
    rewards = {"accuracy": accuracy, "semantic": semantic, "format": form}
    return Completion("text", 3, rewards, total, 0.5, frozenset(flags))


def test_a_group_is_summed_up_by_hand():
    found = summarise(
        group(
            completion(3.0, 1.0, 0.5, flags=("truncated",)),
            completion(1.0, 0.0, 1.5, form=0.0, flags=("truncated", "gated")),
            completion(None, None, None),
        )
    )
    assert (found["mean"], found["spread"]) == (2.0, 1.0)
    assert found["disagreement"] == (0.5 + 1.0) / 2  # a semantic reward of 1.5 counts as 1
    assert found["format_failures"] == 1
    assert (found["truncated"], found["gated"], found["untrained"]) == (2, 1, 0)
    assert summarise(group())["mean"] is None


def test_flags_of_a_run(tmp_path):
    rows = [
        grpo_row(1, 0, 0),
        grpo_row(1, 0, 1),  # wrong: its semantic reward of 0.25 does not count
        grpo_row(1, 0, 2, stopped=False, completion="<think>and so on"),
        grpo_row(1, 0, 3, rewards={"accuracy": None, "format": 1.0, "semantic": 0.5}, total=None),
        grpo_row(1, 0, 4, advantage=0.0),
    ]
    (found,) = read_run(write_grpo(tmp_path / "run", rows)).groups
    assert [set(each.flags) for each in found.completions] == [
        set(), {"gated"}, {"truncated", "unparseable"}, {"untrained"}, {"untrained"},
    ]  # fmt: skip


def test_what_was_not_trained_on_is_what_the_run_says(tmp_path):
    """A group that found no place has advantages, and in one that did a mean reward has none."""
    rows = [
        grpo_row(1, 0, 0, not_trained="its group found no place"),
        grpo_row(1, 0, 1, not_trained="", advantage=0.0),
        grpo_row(1, 0, 2, not_trained="", given=True),
        grpo_row(1, 0, 4, not_trained="", given=False),
    ]
    folder = write_grpo(tmp_path / "run", rows)
    (found,) = read_run(folder).groups
    assert [each.why_untrained for each in found.completions] == [
        "its group found no place", "", "", "",
    ]  # fmt: skip
    assert [set(each.flags) - {"gated"} for each in found.completions] == [
        {"untrained"}, set(), {"given"}, set(),
    ]  # fmt: skip


def test_completions_that_are_masked_are_not_trained_on(tmp_path):
    rows = [grpo_row(1, 0, 0, stopped=False)]
    folder = write_grpo(tmp_path / "run", rows, grpo={"mask_truncated": True})
    (found,) = read_run(folder).groups
    assert "untrained" in found.completions[0].flags


def test_groups_of_several_processes_and_steps_stay_apart(tmp_path):
    folder = write_grpo(tmp_path / "run", [grpo_row(s, 0, r) for s in (1, 2) for r in range(2)])
    other = [grpo_row(1, 1, r) for r in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in other)
    (folder / "completions-1.jsonl").write_text(lines)
    groups = read_run(folder).groups
    assert sorted(each.key for each in groups) == ["1/0", "1/1", "2/0"]
    assert all(len(each.completions) == 2 for each in groups)


def test_groups_whose_ids_repeat_stay_apart(tmp_path):
    """Two files that were put together may both count from 1; a clip may have a second question."""
    rows = [
        grpo_row(1, 7, r, problem=problem, path=path)
        for problem, path in (("How many?", "a.mp4"), ("How many?", "b.mp4"), ("Which?", "b.mp4"))
        for r in range(2)
    ]
    groups = read_run(write_grpo(tmp_path / "run", rows)).groups
    assert [(each.problem, each.clips, len(each.completions)) for each in groups] == [
        ("How many?", ("a.mp4",), 2), ("How many?", ("b.mp4",), 2), ("Which?", ("b.mp4",), 2),
    ]  # fmt: skip


def test_a_group_shows_the_clip_of_its_own_record(tmp_path):
    """Also where its id and its words are those of another one; a file that has moved is found."""
    record = {
        "problem_id": 7, "problem": "How many?", "data_type": "video", "problem_type": "numerical",
        "options": [], "solution": "<answer>2</answer>",
    }  # fmt: skip
    others = [record | {"path": "a.mp4"}, record | {"path": "b.mp4"}]
    moved = record | {"problem_id": 8, "path": "new/c.mp4"}
    write_file(tmp_path / "rl.json", json.dumps([*others, moved]))
    rows = [
        grpo_row(1, number, 0, problem="How many?", path=path)
        for number, path in ((7, "b.mp4"), (7, "a.mp4"), (8, "old/c.mp4"), (9, "d.mp4"))
    ]
    run = read_run(write_grpo(tmp_path / "run", rows, str(tmp_path / "rl.json")))
    films, reasons = find_films(run, ReportOptions(), lambda done, total: None)
    assert films == {}
    assert sorted(reasons) == ["a.mp4", "b.mp4", "new/c.mp4"]
    assert [each.clips for each in run.groups] == [
        ("b.mp4",), ("a.mp4",), ("new/c.mp4",), ("d.mp4",),
    ]  # fmt: skip


def test_a_run_that_is_still_going_says_so(tmp_path):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)], train={"max_steps": 9})
    with (folder / "completions.jsonl").open("a") as file:
        file.write('{"step": 2, "problem')
    run = read_run(folder)
    assert run.notes == [
        "1 lines of completions.jsonl are torn and left out.",
        "The run is at step 1 of at most 9.",
    ]
    assert len(run.groups) == 1


def test_options_are_known_before_the_first_checkpoint(tmp_path):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0, stopped=False)])
    shutil.rmtree(folder / "checkpoints")
    (folder / "config.json").write_text(json.dumps({"grpo": {"mask_truncated": True}}))
    run = read_run(folder)
    assert "untrained" in run.groups[0].completions[0].flags
    assert run.notes == ["No checkpoint yet, and so no media contract: the clips are not shown."]


def test_an_evaluation_has_results_and_records_without_completions(tmp_path):
    row = {
        "index": 0, "rollout": 0, "problem_id": 5, "problem_type": "OCR", "problem": "read it",
        "path": "a.mp4", "solution": "AB", "completion": "AB", "answer": "AB", "score": 1.0,
        "outcome": "unparseable", "reason": "", "completion_tokens": 2, "stopped": True,
    }  # fmt: skip
    blank = dict.fromkeys(row) | {"index": 1, "path": "b.mp4", "outcome": "quarantined"}
    lines = [row, row | {"rollout": 1}, blank | {"reason": "cannot be decoded"}]
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    settings = {"media": MediaContract.train().to_dict() | {"digest": "0"}}
    results = {"accuracy": 1.0, "by_type": {"OCR": {"accuracy": 1.0}}}
    body = {"settings": settings, "results": results}
    (tmp_path / "results.json").write_text(json.dumps(body))
    run = read_run(tmp_path)
    assert run.kind == "evaluation"
    assert run.contract == MediaContract.train()
    first, second = run.groups
    assert (first.key, len(first.completions), first.clips) == ("5", 2, ("a.mp4",))
    assert first.completions[0].flags == {"unparseable"}
    assert (second.key, second.completions, second.reason) == ("1", (), "cannot be decoded")


def test_an_evaluation_that_goes_on_is_shown_as_far_as_it_is(tmp_path, capsys):
    """From its start an evaluation has results that are null."""
    write_file(tmp_path / "run/mmvu/completions.jsonl", "")
    write_file(tmp_path / "run/mmvu/results.json", json.dumps({"settings": {}, "results": None}))
    run = read_run(tmp_path / "run/mmvu")
    assert (run.kind, run.results) == ("evaluation", {})
    assert "The evaluation has not ended; its results are still missing." in run.notes
    assert cli.main(["report", str(tmp_path / "run/mmvu")]) == 0
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "it holds the runs mmvu, give one of them" in capsys.readouterr().err


def test_groups_are_matched_by_question_and_nearest_step():
    first = [group(step=5), group(step=9), group(problem_id="8")]
    second = [group(step=1), group(step=6), group(step=30)]
    assert match(first, second) == [1, 1, -1]


def write_file(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)


def report(capsys, *arguments):
    code = cli.main(["report", *map(str, arguments)])
    return code, capsys.readouterr()


def test_the_command_writes_one_file_and_says_where(tmp_path, capsys):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)])
    code, said = report(capsys, folder)
    assert code == 0
    assert said.out.splitlines()[-1].startswith(
        f"{folder / 'report.html'} is for a browser; next: "
    )
    text = (folder / "report.html").read_text()
    for remote in ("http://", "https://", "src=", "@import"):
        assert remote not in text.replace("image.src =", "")


def test_timelines_of_profiled_steps_are_on_the_page(tmp_path, capsys):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)])
    write_file(folder / "profile/00000007/timeline.png", "not looked at")
    write_file(folder / "profile/plugins/timeline.png", "JAX's own folder")
    code, _ = report(capsys, folder, folder)
    text = (folder / "report.html").read_text()
    picture = base64.b64encode(b"not looked at").decode()
    assert code == 0
    assert text.count(f'src="data:image/png;base64,{picture}"') == 2
    assert [*re.findall(r"<h2>(Step \d+)", text)] == ["Step 7", "Step 7"]


def test_the_clips_that_are_read_are_counted(tmp_path, capsys, monkeypatch):
    """Not a line for every hundred, and with the time that is left."""
    clips = {name: Clip(MediaItem("video", name), name) for name in ("a.mp4", "b.mp4", "c.mp4")}
    calls = []
    make_films(clips, tmp_path, MediaContract.train(), 1, lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]

    def find(run, options, show):
        for number in range(300):
            show(number + 1, 300)
        return {}, {}

    monkeypatch.setattr("videorft_jax.reporting.report.find_films", find)
    _, said = report(capsys, write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)]))
    assert said.err.splitlines() == [f"[{'#' * 30}] 300/300 clips, 0 s left"]


def test_a_page_that_cannot_be_written_is_told_before_clips_are_read(tmp_path, capsys, monkeypatch):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)])
    monkeypatch.setattr("videorft_jax.reporting.report.find_films", None)
    for out, expected in (
        (tmp_path, "is a folder; name"),
        (tmp_path / "a/b.html", "make it first"),
    ):
        code, said = report(capsys, folder, f"--out={out}")
        assert code == 2
        assert expected in said.err
    (folder / "checkpoints/00000099").mkdir(parents=True)
    _, said = report(capsys, folder / "checkpoints/00000099")
    assert f"it is a step of the run {folder}, give that" in said.err


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "no such folder; give the work directory of a run"),
        (lambda folder: folder.mkdir(), "no metrics.jsonl and no completions; a run writes"),
        (
            lambda folder: write_grpo(folder / "grpo", [grpo_row(1, 0, 0)]),
            "it holds the runs grpo, give one of them",
        ),
        (
            lambda folder: write_grpo(folder, [{"step": 1, "problem_id": 3, "text": "old"}]),
            "completions of another version (KeyError: 'stopped')",
        ),
        (lambda folder: write_file(folder / "metrics.jsonl", ""), "no metrics.jsonl and no compl"),
        (
            lambda folder: write_file(folder / "metrics.jsonl", '{"global_step": 1, "loss": 2.0}'),
            "metrics.jsonl of another version (a line without the number of its step)",
        ),
        (
            lambda folder: write_file(folder / "results.json", '{"settings": ["train"]}'),
            "results.json of another version (settings: no table); report them with the",
        ),
        (
            lambda folder: write_file(folder / "results.json", '{"settings": {}, "results": [1]}'),
            "results.json of another version (results: no table)",
        ),
        (
            lambda folder: write_file(
                folder / "results.json", '{"settings": {}, "results": {"by_type": {"OCR": 1}}}'
            ),
            "results.json of another version (OCR: no table)",
        ),
        (
            lambda folder: (
                write_file(folder / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n'),
                write_file(folder / "config.json", '{"train": 5}'),
            ),
            "config.json of another version (train: no table)",
        ),
    ],
)
def test_folders_that_hold_no_run_are_refused(tmp_path, capsys, make, expected):
    make(tmp_path / "run")
    code, said = report(capsys, tmp_path / "run")
    assert code == 2
    assert expected in said.err
    assert said.err.count("\n") == 1


def test_a_contract_of_another_version_costs_the_frames_alone(tmp_path):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)])
    for path in folder.rglob("manifest.json"):
        body = json.loads(path.read_text())
        path.write_text(json.dumps(body).replace('"max_frames"', '"most_frames"'))
    run = read_run(folder)
    assert run.contract is None
    assert len(run.groups) == 1
    assert any("of another version" in note or "No checkpoint yet" in note for note in run.notes)


def test_live_follows_a_run_until_ctrl_c(tmp_path, capsys, monkeypatch):
    """The page is written again with what the run has added, and tells the browser to come back."""
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)])
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        page = (folder / "report.html").read_text()
        assert f'http-equiv="refresh" content="{seconds}"' in page
        assert f"<dt>groups</dt><dd>{len(waits)}</dd>" in page
        if len(waits) == 2:
            raise KeyboardInterrupt
        with (folder / "completions.jsonl").open("a") as file:
            file.write(json.dumps(grpo_row(2, 1, 0)) + "\n" + '{"step": 2, "prob')

    monkeypatch.setattr("videorft_jax.commands.report.time.sleep", sleep)
    code, said = report(capsys, folder, "--live")
    assert code == 130
    assert waits == [30, 30]
    assert said.out.count("report.html is for a browser") == 2
    assert "1 lines of completions.jsonl are torn and left out." in said.out
    assert "interrupted" in said.err


def test_wrong_usage_is_refused(tmp_path, capsys):
    folder = write_grpo(tmp_path / "run", [grpo_row(1, 0, 0)])
    for arguments, expected in (
        ([folder] * 3, "3 runs are given; give one, or two to compare them"),
        ([folder, "--films_mib=-1"], "--films_mib=-1; give at least 0"),
        ([folder, "--data=missing.jsonl"], "missing.jsonl: No such file or directory"),
    ):
        code, said = report(capsys, *arguments)
        assert code == 2
        assert expected in said.err
