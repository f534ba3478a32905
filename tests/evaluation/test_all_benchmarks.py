"""All fourteen benchmarks in one command, from the files of their releases to their figures."""

import json

import pytest
from benchmark_layouts import make_layouts
from evaluation_place import ROLLOUTS
from evaluation_place import read_completions as read

from videorft_jax import cli
from videorft_jax.commands import evaluate as evaluate_command
from videorft_jax.evaluation.benchmarks.catalogue import TASKS
from videorft_jax.evaluation.benchmarks.variants import Variant

# What is put in place of the model's words: right for the questions named here, else wrong.
RIGHT = {
    "vsibench": {"0": "4"},
    "videommmu": {"Perception/validation_Art_1": "B", "Adaptation/dev_Math_2": "7"},
    "mmvu": {"validation_0": "C", "validation_1": "A zoom."},
    "mvbench": {"action_sequence/0": "B) right", "episodic_reasoning/0": "(B)"},
    "tempcompass": {"yes_no/7/speed/0": "Yes.", "caption_matching/7/speed/0": "Caption A"},
    "videomme": {"001-1": "B"},
    "lvbench": {"0": "(A)", "1": "A"},
    "mlvu": {"1_plotQA/0": "C"},
    "longvideobench": {"a_0": "B"},
    "video-holmes": {"1": "<think>So.</think><answer>A</answer>"},
    "scivideobench": {"0": "C. up"},
    "videomathqa": {},
    "charades_sta": {"0": "0.0 - 0.5 seconds"},
    "videomme-v2": {"001-1": "A", "001-2": "A"},
}
# By hand: (headline, mean of all rows with absent and open ones as wrong, one category).
BY_HAND = {
    "vsibench": (1 / 3, 1 / 3, ("question_type", "object_counting", 1.0)),
    "videommmu": (2 / 6, 2 / 6, ("track", "Comprehension", 0.0)),
    "mmvu": (1.0, 1.0, ("area", "Humanities & Social Science", 1.0)),
    "mvbench": (2 / 4, 2 / 5, ("task", "action_antonym", 0.0)),
    "tempcompass": (2 / 3, 2 / 4, ("format, dim", "yes_no, speed", 1.0)),
    "videomme": (1 / 2, 1 / 2, ("duration", "short", 0.5)),
    "lvbench": (1.0, 1.0, ("question_type", "reasoning", 1.0)),
    "mlvu": (1 / 2, 1 / 2, ("task_type", "findNeedle", 0.0)),
    "longvideobench": (1.0, 1.0, ("question_category", "S2E", 1.0)),
    "video-holmes": (1.0, 1.0, ("question_type", "SR", 1.0)),
    "scivideobench": (1.0, 1.0, ("category", "Biology", 1.0)),
    "videomathqa": (0.0, 0.0, ("length", "short", 0.0)),
    "charades_sta": (0.5, 0.5, ("recall", "IoU >= 0.5", 1.0)),
    "videomme-v2": (4 / 16, 2 / 4, ("level", "1", 4 / 16)),
}


@pytest.fixture
def run(place, monkeypatch, tmp_path):
    """Evaluates all benchmarks with the engine that is compiled already; every prompt fits one
    shape."""
    monkeypatch.setattr(evaluate_command, "make_mesh", lambda _: place.mesh)
    monkeypatch.setattr(evaluate_command, "make_engine", lambda *_: place.engine)
    make_layouts(tmp_path / "data")

    def evaluate(variant, names=tuple(TASKS), folder=""):
        folder = folder or tmp_path / variant.name
        evaluate_command.evaluate_benchmarks(
            place.config(data__row_tokens=1024, data__multiple=1024, data__rows=2), str(folder),
            list(names),
            str(tmp_path / "data"), variant,
        )  # fmt: skip
        return folder

    return evaluate


def answer_by_plan(folder):
    """Puts the planned words in place of the model's."""
    for name, planned in RIGHT.items():
        path = folder / name / "completions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if not row["reason"]:
                row |= {"completion": planned.get(row["problem_id"], "none of it"), "stopped": True}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_all_fourteen_from_files_to_figures(run, capsys):
    """Nothing is converted, no row is lost; started again nothing is run and the bytes are the
    same."""
    folder = run(Variant())
    data = {name: read(folder / name) for name in TASKS}
    assert run(Variant()) == folder
    assert data == {name: read(folder / name) for name in TASKS}
    rows = [json.loads(line) for line in data["mvbench"].splitlines()]
    assert [row["index"] for row in rows if row["reason"] == "missing"] == [3]  # NTU is absent.
    settings = json.loads((folder / "mvbench/results.json").read_text())["settings"]
    assert settings["benchmark"]["name"] == "as_paper"
    assert settings["media"]["digest"]
    answer_by_plan(folder)
    capsys.readouterr()
    assert cli.main(["score", str(folder), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table.keys() == BY_HAND.keys() == TASKS.keys()
    for name, (score, all_rows, (category, value, mean)) in BY_HAND.items():
        own = table[name]
        assert own["score"] == pytest.approx(score), name
        assert own["all_rows"] == pytest.approx(all_rows), name
        assert own["categories"][category][value] == pytest.approx(mean), name
        assert own["absent"] == (name == "mvbench")
        assert own["open"] == (ROLLOUTS if name == "tempcompass" else 0)
    assert cli.main(["score", str(folder)]) == 0
    assert "    area: Humanities" not in capsys.readouterr().out  # one value says no more


def test_what_only_official_prompts_have_reaches_the_model(run):
    """A picture behind the clip, opened answers, parts of clips, and subtitles between frames."""
    names = ("videommmu", "mlvu", "mvbench", "longvideobench")
    folder = run(Variant("official"), names)
    for name in names:
        rows = [json.loads(line) for line in read(folder / name).splitlines()]
        reasons = {row["reason"] for row in rows}
        assert reasons == ({"", "missing"} if name == "mvbench" else {""}), name
    settings = json.loads((folder / "mlvu/results.json").read_text())["settings"]
    assert settings["benchmark"] == {
        "benchmark": "mlvu", "name": "official", "think": True, "with_subtitles": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="benchmark.name is 'official' there and 'as_paper' in"):
        run(Variant(), ("mlvu",), folder)
