"""Fault 4: a reward that failed on every sample trained to the end with exit code 0."""

import json
import pathlib

LATER = """
def later(prompts, completions, **kwargs):
    if "made-up" in completions[1]:
        return [1.0] * len(completions)
    raise RuntimeError("no judge today")
"""


def read_rows(path):
    return map(json.loads, pathlib.Path(path).read_text().splitlines())


def test_a_run_stops_whose_reward_begins_to_fail(hour, tmp_path):
    """The rehearsal finds nothing, so that the steps have to: two of them, and no third."""
    (tmp_path / "mine.py").write_text(LATER)
    rl = {
        "data.records": hour.records["rl"],
        "rollout.num_rollouts": 2,
        "rollout.max_new_tokens": 4,
        "train.max_skipped_in_row": 2,
        "data.epochs": 4,
        "grpo.beta": 0.0,
        "rewards": (("mine:later", 1.0),),
    }
    path = hour.recipe("later", rl, recipe="grpo_7b")
    text = hour.run("grpo", f"--config={path}", "--workdir=run", cwd=tmp_path, code=1)
    assert "nothing could be learnt from 2 steps in a row" in text.splitlines()[-1]
    assert "no judge today" in text
    assert "Traceback" not in text
    lines = (tmp_path / "run/completions.jsonl").read_text().splitlines()
    paths = {json.loads(line)["path"] for line in lines}
    assert paths <= {record["path"] for record in read_rows(hour.records["rl"])}
    assert len(paths) == 8  # all of the data, in two steps of four
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 2
