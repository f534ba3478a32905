"""Headlines by hand, outputs read back and scored anew, and runs side by side."""

import json

import pytest

from videorft_jax import cli
from videorft_jax.evaluation.benchmarks.reasoning import MMVU_AREAS
from videorft_jax.evaluation.compare import compare
from videorft_jax.evaluation.headline import (
    breakdown,
    group_score,
    headline,
)
from videorft_jax.evaluation.outputs import read_outputs, rescore
from videorft_jax.evaluation.scoreboard import tabulate


def row(score, kind="multiple choice", **categories):
    return {"score": score, "question_type": kind, "categories": categories}


def test_vsi_bench_is_the_mean_of_eight():
    kinds = ["object_counting", "object_abs_distance", "object_size_estimation",
             "room_size_estimation", "object_rel_distance", "route_planning",
             "obj_appearance_order"]  # fmt: skip
    rows = [row(1.0, question_type=kind) for kind in kinds for _ in range(3)]
    for level, score in (("easy", 1.0), ("medium", 0.5), ("hard", 0.0)):
        rows += [row(score, question_type=f"object_rel_direction_{level}")] * 7
    assert headline(rows, "vsibench", "official")[0] == pytest.approx((7 + 0.5) / 8)


def test_other_headlines():
    rows = [row(1.0, task_type="a")] * 3 + [row(0.0, task_type="b")]
    assert headline(rows, "mlvu", "robust")[0] == 0.5
    assert headline(rows, "videomme", "robust")[0] == 0.75
    rows = [row(1.0)] * 3 + [row(0.5, "regression")]
    assert headline(rows, "vsibench", "videorft")[0] == 0.75
    subjects = ("Art", "Chemistry", "Astronomy", "Pharmacy", "Computer_Science")
    scores = (1.0, 0.0, 1.0, 1.0, 0.0)
    rows = [row(score, area=MMVU_AREAS[x]) for x, score in zip(subjects, scores, strict=True)]
    assert breakdown(rows, "mmvu")["area"] == {
        "Engineering": 0.0, "Healthcare": 1.0, "Humanities & Social Science": 1.0, "Science": 0.5,
    }  # fmt: skip
    assert len(MMVU_AREAS) == 27
    rows = [row(score, "temporal grounding") for score in (0.2, 0.4, 0.6, 0.8)]
    assert headline(rows, "charades_sta", "robust") == (0.5, "mean IoU")
    assert breakdown(rows, "charades_sta")["recall"] == {
        "IoU >= 0.3": 0.75, "IoU >= 0.5": 0.5, "IoU >= 0.7": 0.25,
    }  # fmt: skip


def test_the_papers_mmvu_has_multiple_choice_only():
    """The release has open answers too, 375 of 1,000, which the paper's script scores 0."""
    rows = [row(1.0)] * 3 + [row(0.0)] * 2 + [row(0.0, "open-ended")] * 3
    assert headline(rows, "mmvu", "videorft")[0] == pytest.approx(3 / 5)
    assert headline(rows, "mmvu", "robust")[0] == pytest.approx(3 / 8)
    assert headline(rows, "mvbench", "videorft")[0] == pytest.approx(3 / 8)
    assert headline(rows[5:], "mmvu", "videorft")[0] == 0.0


@pytest.mark.parametrize(
    ("right", "kind", "structure", "worth"),
    [
        ("1100", "relevance", [1, 2, 3, 4], 0.25),
        ("1110", "relevance", [1, 2, 3, 4], 0.5625),
        ("1101", "logic", [1, 2, 3, 4], 4 / 16),
        ("0111", "logic", [1, 2, 3, 4], 0.0),
        ("1010", "logic", [1, [2, 3], 4], 4 / 12),
        ("1110", "logic", "[1, [2, 3], 4]", 7 / 12),
        ("0100", "logic", [[1, 2], 3, 4], 0.1),
        ("1111", "logic", [[1, 2], 3, 4], 1.0),
    ],
)
def test_groups_of_videomme_v2(right, kind, structure, worth):
    assert group_score([float(x) for x in right], kind, structure) == pytest.approx(worth)


def test_groups_of_videomme_v2_by_type_and_level():
    about = {"group_structure": [1, 2, 3, 4]}
    rows = [row(float(x), group="a", group_type="relevance", level="1", **about) for x in "1100"]
    rows += [row(float(x), group="b", group_type="logic", level="1", **about) for x in "1011"]
    assert headline(rows, "videomme-v2", "robust")[0] == pytest.approx((4 / 16 + 1 / 16) / 2)
    found = breakdown(rows, "videomme-v2")
    assert found["group_type"] == {"logic": 1 / 16, "relevance": 4 / 16}
    assert found["level"] == {"1": pytest.approx(5 / 32)}


@pytest.mark.parametrize(
    ("kind", "worth"), [("logic", 1 / 16), ("relevance", (2 / 3) ** 2)], ids=["logic", "relevance"]
)
def test_a_question_without_a_score_moves_no_other(kind, worth):
    """The second of four has no row: a beginning ends there, a share is of the other three."""
    about = {"group": "a", "group_type": kind, "group_structure": [1, 2, 3, 4]}
    rows = [row(float(n != 4), group_place=n, **about) for n in (1, 3, 4)]
    assert headline(rows, "videomme-v2", "robust")[0] == pytest.approx(worth)
    assert set(breakdown(rows, "videomme-v2")) == {"group_type"}


def write_run(folder, outputs):
    """An evaluation of four questions about two clips; an output None is a missing clip."""
    (folder / "toy").mkdir(parents=True)
    records, lines = [], []
    for number, output in enumerate(outputs):
        records.append(
            {"problem_id": f"q{number}", "problem": "Q?", "problem_type": "multiple choice",
             "solution": "B", "benchmark": "toy", "question_type": "multiple choice",
             "choices": ["left", "right"], "categories": {"task": "ab"[number % 2]},
             "cluster": f"{number // 2}.mp4"}
        )  # fmt: skip
        lines.append(
            {"index": number, "rollout": 0, "problem_id": f"q{number}", "problem": "Q?",
             "problem_type": "multiple choice", "path": "x", "solution": "B", "score": 0.0,
             "completion": output, "reason": "missing" if output is None else "",
             "outcome": "quarantined" if output is None else "scored", "stopped": True,
             "finite": True}
        )  # fmt: skip
    for name, rows in (("records", records), ("completions", lines)):
        text = "".join(json.dumps(line) + "\n" for line in rows)
        (folder / "toy" / f"{name}.jsonl").write_text(text)
    return str(folder)


def test_every_row_stays_in_the_denominator(tmp_path, capsys):
    folder = write_run(tmp_path / "run", ["B", "the right one", None, "right"])
    table = tabulate(rescore(read_outputs(folder), "robust"), "robust")["toy"]
    assert (table["rows"], table["scored"], table["absent"]) == (4, 3, 1)
    assert table["decodable_rows"] == 1.0
    assert table["all_rows"] == 0.75
    assert table["categories"] == {"task": {"a": 1.0, "b": 1.0}}
    assert cli.main(["score", folder, "--scorer=videorft"]) == 0
    assert "scorer videorft" in capsys.readouterr().out
    body = json.loads((tmp_path / "run/scores-videorft.json").read_text())
    assert [own["score"] for own in body["rows"]] == [1.0, 0.0, None, 0.0]
    assert cli.main(["score", folder, "--scorer=best"]) == 2
    assert cli.main(["score", str(tmp_path)]) == 2


def test_each_way_to_have_no_score_is_counted(tmp_path, capsys):
    folder = tmp_path / "run"
    write_run(folder, ["B", "who knows", "A", None, None, None, "B", "B"])
    path = folder / "toy/completions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["stopped"] = False
    lines[4]["reason"], lines[5]["reason"] = "corrupt", "too_many_tokens"
    lines[7]["finite"] = False
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "toy/records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[6] |= {"question_type": "regression", "solution": "many"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = tabulate(rescore(read_outputs(folder), "robust"), "robust")["toy"]
    expected = {"rows": 8, "scored": 4, "undecodable": 1, "absent": 1, "too_long": 1, "open": 0,
                "unparsed": 1, "failed": 2, "truncated": 1}  # fmt: skip
    assert {name: table[name] for name in expected} == expected
    assert (table["all_rows"], table["decodable_rows"]) == (2 / 8, 2 / 4)
    assert cli.main(["score", str(folder)]) == 0
    said = capsys.readouterr().out
    counts = "1 undecodable; 1 absent; 1 too long; 1 unparsed; 1 truncated; 2 failed"
    assert counts in said


def test_a_question_that_was_not_shown_weighs_as_much_as_one_with_two_completions():
    common = {"benchmark": "toy", "question_type": "multiple choice", "categories": {},
              "stopped": True, "finite": True}  # fmt: skip
    shown = {"id": "a", "cluster": "a", "score": 1.0, "reason": "", "outcome": "scored"}
    absent = {"id": "b", "cluster": "b", "score": None, "reason": "missing"}
    rows = [common | shown, common | shown, common | absent | {"outcome": "undecodable"}]
    assert tabulate(rows, "robust")["toy"]["all_rows"] == 0.5


def test_every_count_of_the_table_is_of_its_own_rows():
    """Each row has one thing that is counted, some have it twice over."""
    plain = {"benchmark": "toy", "question_type": "multiple choice", "categories": {},
             "stopped": True, "finite": True, "score": 1.0, "reason": "", "outcome": "scored",
             "shortened": None}  # fmt: skip
    told = {
        "shortened": [{"shortened": [8, None]}] * 3,
        "judged": [{"outcome": "judged"}] * 2,
        "open": [{"outcome": "open", "score": None}] * 4,
        "unparsed": [{"outcome": "unparsed", "score": 0.0}] * 5,
        "truncated": [{"stopped": False}] * 6,
        "failed": [{"outcome": "failed", "score": None}, {"finite": False}],
        "absent": [{"reason": "missing", "outcome": "undecodable", "score": None}] * 7,
        "undecodable": [{"reason": "corrupt", "outcome": "undecodable", "score": None}],
    }
    rows = [plain | change for changes in told.values() for change in changes]
    rows = [row | {"id": str(i), "cluster": str(i)} for i, row in enumerate(rows)]
    found = tabulate(rows, "robust")["toy"]
    assert {name: found[name] for name in told} == {name: len(own) for name, own in told.items()}
    assert (found["rows"], found["scored"]) == (30, 30 - 4 - 1 - 7 - 1)


def test_comparison_is_paired_and_counts_the_others(tmp_path, capsys):
    first = write_run(tmp_path / "first", ["A", "A", "B", "B"])
    second = write_run(tmp_path / "second", ["B", "A", "B", None])
    runs = {name: [rescore(read_outputs(name), "robust")] for name in (first, second)}
    lines = compare(runs)
    whole = [line for line in lines if not line["category"]]
    assert [line["accuracy"] for line in whole] == [0.5, pytest.approx(2 / 3)]
    mean, low, high = whole[1]["difference"]
    assert mean == pytest.approx(1 / 3)
    assert low < mean < high
    assert (whole[1]["only_here"], whole[1]["only_there"]) == (0, 1)
    out = tmp_path / "forest.png"
    assert cli.main(["compare", first, second, f"--out={out}"]) == 0
    assert "| toy | all |" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", first]) == 2
    seeds = compare({first: runs[first], "both": [runs[first][0], runs[second][0]]})
    spread = next(line["seeds"] for line in seeds if line["run"] == "both" and not line["category"])
    assert spread == pytest.approx(abs(2 / 3 - 1 / 2) / 2**0.5)
