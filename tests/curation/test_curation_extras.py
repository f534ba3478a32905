"""Fields of the user's own: those that no file of a set can hold cost their record alone, and those
of an earlier set are not taken for this run's."""

import json

from chat_server import ChatServer
from curation_run import ask, make_pool, run_here, write_config

OWN = {
    1: {"note": "half \ud800"}, 2: {"half \ud800": 1}, 3: {"note": {"deep": [float("nan")]}},
    4: {"half \udfff": float("inf")}, 5: {"family": ["ocr"]}, 6: {"note": 10**40},
    7: {"extra_curation_attempt": 3, "extra_curation_passes": 8, "extra_curation_record": "old"},
}  # fmt: skip
REFUSED = (1, 2, 3, 4)


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_odd_fields_cost_their_record_alone(tmp_path):
    pool, workdir = make_pool(tmp_path / "pool", [ask(i) for i in range(8)]), tmp_path / "w"
    records = [row | OWN.get(i, {}) for i, row in enumerate(rows(tmp_path / "pool", "pool.jsonl"))]
    pool.write_text("".join(json.dumps(row) + "\n" for row in records))
    with ChatServer() as server:
        code, counts, _ = run_here(write_config(tmp_path / "c.toml", pool, server.url), workdir)
        asked = {int(row["text"].split("rolls in picture ")[1].split("?")[0]) for row in server.log
                 if row["stage"] == "think"}  # fmt: skip
    assert (code, counts["quarantined"], counts["accepted"]) == (0, len(REFUSED), 4)
    assert asked == set(range(8)) - set(REFUSED)  # Nothing is paid that could not be written.
    named = [row["detail"].split(":")[0] for row in rows(workdir, "quarantine.jsonl")]
    assert named == [f"pool.jsonl row {i}" for i in REFUSED]
    by_id = {row["problem_id"]: row for row in rows(workdir, "VideoRFT-CoT.jsonl")}
    assert json.loads(by_id[6]["note"]) == 10**40
    assert by_id[5]["family"] == ["ocr"]
    for name in ("VideoRFT-CoT.jsonl", "VideoRFT-RL.jsonl"):
        for row in rows(workdir, name):
            assert "extra_curation_passes" not in row
            assert row["extra_curation_record"] != "old"
            assert row.get("extra_curation_attempt", 0) == 0
