"""Evaluations of one record file are of the same questions, however their folders are called."""

import json

from videorft_jax import cli


def write_evaluation(folder, answers, digest="7c"):
    """An evaluation of a file whose answers are all 2."""
    folder.mkdir()
    rows = [
        {
            "index": index, "rollout": 0, "problem_id": index, "problem_type": "numerical",
            "problem": f"How many balls are in clip {index}?", "path": f"{index}.mp4",
            "solution": "2", "completion": f"<answer>{answer}</answer>", "answer": answer,
            "score": float(answer == "2"), "outcome": "scored", "reason": "",
            "completion_tokens": 5, "stopped": True, "finite": True,
        }
        for index, answer in enumerate(answers)
    ]  # fmt: skip
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"records": {"sha256": digest, "num_records": len(rows)}}
    body = {"settings": settings, "results": {"accuracy": 0.5}}
    (folder / "results.json").write_text(json.dumps(body))
    return str(folder)


def compare(capsys, tmp_path, *runs):
    """The lines of whole files: (benchmark, difference of the means, only here, only there)."""
    assert cli.main(["compare", *runs, "--json", f"--out={tmp_path / 'plot.png'}"]) == 0
    lines = [line for line in json.loads(capsys.readouterr().out) if not line["category"]]
    return [
        (
            line["benchmark"],
            line["difference"] and round(line["difference"][0], 6),
            line["only_here"],
            line["only_there"],
        )
        for line in lines
    ]


def test_folders_of_other_names_are_paired(tmp_path, capsys):
    """Two of four answers are right before, three after: a gain of a quarter."""
    before = write_evaluation(tmp_path / "after_sft", ["2", "1", "2", "1"])
    after = write_evaluation(tmp_path / "after_grpo", ["2", "2", "2", "1"])
    seed = write_evaluation(tmp_path / "seed_1", ["2", "2", "2", "2"])
    records = ("records", None, 0, 0)
    assert compare(capsys, tmp_path, before, after) == [records, ("records", 0.25, 0, 0)]
    seeds = compare(capsys, tmp_path, before, f"{after},{seed}")
    assert seeds == [records, ("records", 0.375, 0, 0)]


def test_folders_of_one_name_keep_it(tmp_path, capsys):
    for name in ("base", "grpo"):
        (tmp_path / name).mkdir()
    first = write_evaluation(tmp_path / "base/mmvu", ["2", "1"])
    second = write_evaluation(tmp_path / "grpo/mmvu", ["2", "2"])
    found = compare(capsys, tmp_path, first, second)
    assert found == [("mmvu", None, 0, 0), ("mmvu", 0.5, 0, 0)]


def test_folders_of_other_files_are_not_paired(tmp_path, capsys):
    first = write_evaluation(tmp_path / "mmvu", ["2", "1"])
    second = write_evaluation(tmp_path / "own", ["2", "2"], digest="a0")
    found = compare(capsys, tmp_path, first, second)
    assert [(name, change) for name, change, _, _ in found] == [("mmvu", None), ("own", None)]
