"""What people and other commands say of records, joined with the sets: difficulty and audit."""

import json

import numpy as np
import pytest
import scipy.stats
from chat_server import ChatServer
from curation_run import ask, curate, make_pool, run_here, write_config

from videorft_jax.commands import validate
from videorft_jax.data.records.opening import digest_records
from videorft_jax.data.records.pass_rates import select, write_pass_rates

NUMBER = 8
# Scores of three rollouts, one blind answer and one with few frames by question; question 5 has no
# answer that could be scored, and question 7 is one that no teacher answers either.
ROLLOUTS = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0.9, 0.2, 0], [1, 1], [None] * 3, [0, 1, 1], [0] * 3]
BLIND = [[1], [0], [0], [0], [1], [0], [1], [0]]
FEW = [[1], [1], [0], [0], [1], [0], [0], [0]]
TEACHER_WRONG = (3, 7)


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def write_probe(folder, questions, scores):
    """What `videorft pass_rate` writes; it ends at no fixed row order."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"index": index, "problem_id": index, "score": score,
         "completion_tokens": None if score is None else 10 + index}
        for index, own in enumerate(scores) for score in own
    ][::-1]  # fmt: skip
    (folder / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_pass_rates(folder / "pass_rates.jsonl", lines, digest_records(questions), "weights")


@pytest.fixture
def place(tmp_path):
    """A finished run without notes: (folder, config, what adds lines to the config)."""
    questions = [ask(i).replace(f"ball {i})", "gate)") if i in TEACHER_WRONG else ask(i)
                 for i in range(NUMBER)]  # fmt: skip
    pool = make_pool(tmp_path / "pool", questions)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        assert run_here(config, tmp_path / "w")[0] == 0
        for name, scores in (("rollouts", ROLLOUTS), ("blind", BLIND), ("few_frames", FEW)):
            write_probe(tmp_path / name, tmp_path / "w/questions.jsonl", scores)
        yield tmp_path, config, server


def add_probes(folder, config, *names):
    lines = "".join(f'{name} = "{folder / name}"\n' for name in names)
    config.write_text(f"{config.read_text()}[difficulty]\n{lines}")


def test_difficulty_is_joined_with_both_sets_and_the_card(place):
    folder, config, server = place
    asked = len(server.log)
    add_probes(folder, config, "rollouts", "blind", "few_frames")
    counts = curate(config, folder / "w").counts
    assert len(server.log) == asked  # The join asks no model.
    found = rows(folder / "w", "difficulty.jsonl")
    index = {row["record"]: row["index"] for row in rows(folder / "w", "pool.jsonl")}
    assert [index[row["record"]] for row in found] == list(range(NUMBER))
    for row, scores in zip(found, ROLLOUTS, strict=True):
        own = np.array([score for score in scores if score is not None], float)
        right = int((own > 0.3).sum())  # the strict gate of free-form answers
        assert (row["k"], row["passes"]) == (len(own), right)
        assert row["mean"] == (pytest.approx(own.mean(), abs=1e-4) if len(own) else None)
        assert row["std"] == (pytest.approx(own.std(), abs=1e-4) if len(own) else None)
        assert row["pass_rate"] == (round(right / len(own), 4) if len(own) else None)
        assert row["stopped_early"] == (len(scores) < 3)
        assert row["checkpoint"] == "weights"
    assert [row["blind_passes"] for row in found] == [own[0] for own in BLIND]
    assert [row["few_frame_pass"] for row in found] == [own[0] == 1 for own in FEW]
    assert [i for i, row in enumerate(found) if row["suspect_label"]] == [7]
    rl, cot = rows(folder / "w", "VideoRFT-RL.jsonl"), rows(folder / "w", "VideoRFT-CoT.jsonl")
    assert [row["problem_id"] for row in rl] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["problem_id"] for row in cot] == [0, 1, 2, 4, 5, 6]
    for row in rl + cot:
        own = found[row["problem_id"]]
        assert {name: row[f"extra_curation_{name}"] for name in own} == own
    assert (counts.rl, counts.suspects) == (7, 1)
    card = (folder / "w" / "README.md").read_text()
    for line in ("| rollouts a question | 3 |", "| never right | 2 |", "| sometimes right | 3 |",
                 "| always right | 2 |", "| without a score | 1 |", "Checkpoint: `weights`",
                 "| mostly right without the clip, of 8 asked so | 3 |",
                 "| mostly right with few frames, of 8 asked so | 3 |",
                 "| with a suspect label, left out of the RL set | 1 |"):  # fmt: skip
        assert line in card.splitlines()
    # The training on the RL set chooses by the rates of its own rows.
    path = folder / "w" / "VideoRFT-RL.jsonl"
    chosen = select(f"{path}.pass_rates", "0 < pass_rate < 1", "", 7, digest_records(path),
                    "weights").chosen  # fmt: skip
    assert np.flatnonzero(chosen).tolist() == [1, 3, 6]
    assert validate.main([f"--data={path}", f"--data_root={folder / 'pool'}"]) == 0
    again = {name: (folder / "w" / name).read_bytes() for name in ("README.md", path.name)}
    curate(config, folder / "w")
    assert again == {name: (folder / "w" / name).read_bytes() for name in again}


def test_difficulty_of_other_questions_is_left_out_and_said_so(place):
    folder, config, _ = place
    write_probe(folder / "rollouts", folder / "pool/pool.jsonl", ROLLOUTS)
    add_probes(folder, config, "rollouts")
    assert curate(config, folder / "w").counts.rl == NUMBER
    assert rows(folder / "w", "difficulty.jsonl") == []
    assert "extra_curation_passes" not in rows(folder / "w", "VideoRFT-RL.jsonl")[0]
    assert "> The difficulty is of other questions" in (folder / "w" / "README.md").read_text()
    assert not (folder / "w" / "VideoRFT-RL.jsonl.pass_rates").exists()


@pytest.mark.parametrize(
    ("names", "spoil", "said"),
    [
        (("blind",), None, "rollouts is missing"),
        (("rollouts",), "pass_rates.jsonl", "No such file"),
        (("rollouts",), "completions.jsonl", "a row cannot be read"),
    ],
)
def test_26_probes_that_cannot_be_read_are_refused_before_a_request(place, names, spoil, said):
    folder, config, _ = place
    if spoil == "pass_rates.jsonl":
        (folder / "rollouts" / spoil).unlink()
    elif spoil:
        (folder / "rollouts" / spoil).write_text('{"index": 0}\n')
    add_probes(folder, config, *names)
    with pytest.raises(ValueError, match=said) as caught:
        curate(config, folder / "w")
    assert "\n" not in str(caught.value)


def test_the_audited_error_is_read_back_into_the_card(place):
    folder, config, _ = place
    assert "not audited" in (folder / "w" / "README.md").read_text()
    name = {row["index"]: row["record"] for row in rows(folder / "w", "pool.jsonl")}
    labels = {0: "right", 1: "wrong step", 2: "right", 4: "cannot tell", 5: "leak", 3: "right"}
    # A browser leaves these signs as they are in what a person pasted; lines do not end at them.
    said = [{"record": name[i], "ended": "x", "label": own, "remark": "so\u2028\x85it is"}
            for i, own in labels.items()]  # fmt: skip
    said.append({"record": "0" * 64, "label": "right"})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in said]
    (folder / "w" / "audit.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = curate(config, folder / "w").counts
    low, high = scipy.stats.binomtest(2, 4).proportion_ci(method="exact")
    own = counts.audit["accepted"]
    assert (own["num"], own["wrong"], counts.unmet_labels) == (4, 2, 1)
    # Each clip has one question; the interval allows for the few clips, too.
    assert own["low"] <= low
    assert own["high"] >= high
    assert counts.audit["refused"]["wrong"] == 1  # Its teacher was wrong, which a person denies.
    card = (folder / "w" / "README.md").read_text()
    assert "Of 4 accepted records that people read 2 are wrong: 50.0%, 95 % interval" in card
    assert "> 1 labels of the audit are of other records." in card
    assert "not audited" not in card
    for text, why in (('{"record": 1, "label": "right"}', "is no label"), ("x", "is no label"),
                      ('{"record": "a", "label": "good"}', "is no label"),
                      ('{"record": "a", "label": "right"}\n{"record": "a", "label": "leak"}',
                       "agree on one")):  # fmt: skip
        (folder / "w" / "audit.jsonl").write_text(text)
        with pytest.raises(ValueError, match=why):
            curate(config, folder / "w")


def test_a_template_of_a_chain_is_accepted_so_often_and_no_more(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(12)])
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        config.write_text(config.read_text().replace("most_alike = 10000", "most_alike = 5"))
        code, counts, _ = run_here(config, tmp_path / "w")
    assert (code, counts["ended"]) == (0, {"accepted": 5, "alike": 7})
    checks = [row["checks"]["alike"] for row in rows(tmp_path / "w", "verdicts.jsonl")]
    assert [check["value"] for check in checks] == [0, 1, 2, 3, 4] + [5] * 7
    assert {check["limit"] for check in checks} == {5}
    assert counts["rl"] == 12
