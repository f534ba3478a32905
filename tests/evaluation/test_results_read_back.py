"""Results folders as users have them: repeated ids, unfinished runs, copies, other settings."""

import json
import random

import pytest
from test_score_and_compare import write_run

from videorft_jax import cli
from videorft_jax.data.records.opening import digest_records
from videorft_jax.evaluation.benchmarks.task import Item
from videorft_jax.evaluation.benchmarks.variants import Variant, write_records
from videorft_jax.evaluation.compare import compare
from videorft_jax.evaluation.headline import breakdown, headline
from videorft_jax.evaluation.outputs import read_outputs, rescore
from videorft_jax.evaluation.scoreboard import tabulate


def change(path, edit):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in edit(rows)))


def test_records_that_share_an_id_all_count(tmp_path):
    """Without records beside them the ids are those of the rows; that of a row that could not be
    read is its place, which is another row's id here."""
    folder = tmp_path / "run"
    write_run(folder, ["B", "A", "B", None])
    (folder / "toy/records.jsonl").unlink()
    ids = ["3", "7", "7", None]
    change(
        folder / "toy/completions.jsonl",
        lambda rows: [row | {"problem_id": name} for row, name in zip(rows, ids, strict=True)],
    )
    rows = rescore(read_outputs(folder), "robust")
    assert [row["id"] for row in rows] == ["3", "7", "7#2", "3#3"]
    table = tabulate(rows, "robust")["toy"]
    assert (table["rows"], table["scored"], table["absent"]) == (4, 3, 1)
    assert table["all_rows"] == 0.5


def test_rows_of_an_unfinished_run_stand_in_the_order_of_their_records(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, ["B", "A", "A", "A", "B", "B"])
    path = folder / "toy/completions.jsonl"
    change(path, lambda rows: random.Random(0).sample(rows, len(rows)))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    path.with_name("completions-1.jsonl").write_text("".join(lines[2:]))
    assert [row["id"] for row in read_outputs(folder)] == [f"q{number}" for number in range(6)]


def test_two_folders_of_one_benchmark_are_not_mixed(tmp_path, capsys, caplog):
    write_run(tmp_path / "run", ["B"])
    write_run(tmp_path / "other", ["A"])
    (tmp_path / "other/toy").rename(tmp_path / "run/toy_copy")
    assert cli.main(["score", str(tmp_path / "run")]) == 2
    assert "both answer toy; give one by itself" in capsys.readouterr().err
    assert cli.main(["score", str(tmp_path / "run/toy")]) == 0
    for name in ("records", "completions"):
        text = (tmp_path / f"run/toy/{name}.jsonl").read_text()
        (tmp_path / f"run/{name}.jsonl").write_text(text)
    caplog.clear()
    assert len(read_outputs(tmp_path / "run")) == 1
    assert "toy_copy are left out, give that folder by itself" in caplog.text


def test_damaged_files_are_named(tmp_path):
    write_run(tmp_path / "run", ["B", "A"])
    path = tmp_path / "run/toy/records.jsonl"
    whole = path.read_text()
    path.write_text(whole.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match=r"records\.jsonl: has no row 1, which .*completions"):
        read_outputs(tmp_path / "run")
    path.write_text("{\n" + whole)
    with pytest.raises(ValueError, match=r"records\.jsonl: .*; repeat its evaluation"):
        read_outputs(tmp_path / "run")
    path.write_text(whole[:40])  # Cut off in its first line, it holds none.
    with pytest.raises(ValueError, match=r"records\.jsonl: has no row 0, which .*completions"):
        read_outputs(tmp_path / "run")
    path.write_text(whole)
    answers = tmp_path / "run/toy/completions.jsonl"
    for line, said in (('{"index": 0, "outcome": "scored"}', "a row has no 'problem_id'; repeat"),
                       ("5", "holds a line that is no object; repeat")):  # fmt: skip
        answers.write_text(line + "\n")
        with pytest.raises(ValueError, match=rf"completions\.jsonl: {said}"):
            read_outputs(tmp_path / "run")


@pytest.mark.parametrize("settings", [{}, {"benchmark": {"benchmark": "toy", "name": "official"}}])
def test_a_refused_evaluation_leaves_the_records_of_the_one_that_is_there(tmp_path, settings):
    write_run(tmp_path / "run", ["B", "A"])
    folder = tmp_path / "run/toy"
    before = (folder / "records.jsonl").read_text()
    (folder / "results.json").write_text(json.dumps({"settings": settings, "results": None}))
    item = Item("a", "Q?", "multiple choice", "A", ({"type": "video", "path": "a.mp4"},), ("x",))
    with pytest.raises(ValueError, match=r"benchmark\.\w+ is .* use the same value or another"):
        write_records(folder / "records.jsonl", [item], "toy", Variant(), tmp_path)
    assert (folder / "records.jsonl").read_text() == before
    (folder / "completions.jsonl").write_text("")  # Nothing has been answered yet.
    write_records(folder / "records.jsonl", [item], "toy", Variant(), tmp_path)
    assert (folder / "records.jsonl").read_text() != before


def test_clips_that_arrive_later_under_another_name_are_the_same_records(tmp_path, caplog):
    caplog.set_level("INFO")
    folder, clips = tmp_path / "run/toy", tmp_path / "clips"
    clips.mkdir()
    (clips / "there.mp4").touch()

    def ask(options=("x", "y")):
        names = [next((n for n in (f"{stem}.mp4", f"{stem}.mkv") if (clips / n).exists()),
                      f"{stem}.mp4") for stem in ("there", "late")]  # fmt: skip
        items = [Item(name[:4], "Q?", "multiple choice", "A", ({"type": "video", "path": name},),
                      options) for name in names]  # fmt: skip
        write_records(folder / "records.jsonl", items, "toy", Variant(), clips)
        return digest_records(folder / "records.jsonl")

    asked = {"benchmark": "toy", "name": "as_paper", "think": True, "with_subtitles": False}
    before = ask()
    results = {"settings": {"benchmark": asked, "records": {"sha256": before}}, "results": None}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "completions.jsonl").write_text("{}\n")
    (clips / "late.mkv").touch()
    with pytest.raises(ValueError, match="records.sha256 is"):
        ask(options=("x", "z"))  # That is another question.
    after = ask()
    assert "1 clips that were missing are there now" in caplog.text
    assert before != after
    path = folder / "results.json"
    assert json.loads(path.read_text())["settings"]["records"] == {"sha256": after}
    (clips / "late.mp4").touch()  # The clip that was seen is still there.
    with pytest.raises(ValueError, match="records.sha256 is"):
        ask()


def test_groups_are_of_the_benchmark_that_has_them():
    """A record file may have the name of Video-MME-v2, and its steps are no category."""
    common = {"question_type": "multiple choice", "benchmark": "videomme-v2", "cluster": "a",
              "categories": {"type": "mc"}, "variant": ""}  # fmt: skip
    rows = [common | {"id": str(i), "score": float(i == 0)} for i in range(4)]
    assert headline(rows, "videomme-v2", "robust") == (0.25, "mean of the rows")
    assert breakdown(rows, "videomme-v2") == {"type": {"mc": 0.25}}
    own = {"group": "1", "group_type": "logic", "group_structure": [1, [2, 3], 4], "level": 1}
    rows = [row | {"categories": own} for row in rows]
    assert headline(rows, "videomme-v2", "robust") == (1 / 12, "mean of the groups")
    parts = {line["category"] for line in compare({"a": [rows], "b": [rows]})}
    assert parts == {"", "group_type: logic", "level: 1"}


def test_one_folder_is_neither_two_runs_nor_two_seeds(tmp_path, capsys):
    first, second = (write_run(tmp_path / name, ["B", "A"]) for name in ("one", "two"))
    out = f"--out={tmp_path}/forest.png"
    for runs in ((first, f"{first}/"), (f"{first},{first}/.", second)):
        assert cli.main(["compare", *runs, out]) == 2
        assert "a run is given twice; give each once" in capsys.readouterr().err
    assert cli.main(["compare", f"{first},", second, out]) == 2  # Not the folder one is in.
    assert "the name of a run is empty" in capsys.readouterr().err
    assert cli.main(["compare", f"{first},{second}", second, out]) == 0


def test_a_run_without_any_score_is_named(tmp_path, caplog):
    folders = {"a": write_run(tmp_path / "a", ["B"]), "b": write_run(tmp_path / "b", [None])}
    folders["c"] = write_run(tmp_path / "c", ["B"])
    change(  # An evaluation of other records.
        tmp_path / "c/toy/records.jsonl",
        lambda rows: [row | {"benchmark": "other"} for row in rows],
    )
    runs = {name: [rescore(read_outputs(own), "robust")] for name, own in folders.items()}
    lines = [(line["run"], line["benchmark"]) for line in compare(runs) if not line["category"]]
    assert lines == [("c", "other"), ("a", "toy")]
    assert "b: has no score in toy; it has no line" in caplog.text
    assert "c: answers nothing of toy; it has no line" in caplog.text
