"""Batch files: what is missing goes out in files, and results come back through every check."""

import hashlib
import json

import pytest
from chat_server import ChatServer, error, flatten
from curation_run import ask, curate, files, make_pool, write_config

from videorft_jax.curation import batches
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.run import Curation
from videorft_jax.curation.store import Store

PRICED = "price = {input = 1.0, cached = 1.0, output = 2.0, batch_factor = 0.5}"


def answer(server, path, expire=lambda row: False):
    """A result file for a request file, as a provider would write it: in another order, and some
    requests not answered in time."""
    rows = []
    for line in path.read_text().splitlines():
        asked = json.loads(line)
        assert (asked["method"], asked["url"]) == ("POST", "/v1/chat/completions")
        row = {"id": "x", "custom_id": asked["custom_id"], "response": None, "error": None}
        text = flatten(asked["body"])
        if expire(asked):
            row["error"] = {"code": "batch_expired", "message": "too late"}
        elif "[drill:too_long]" in text and asked["body"]["model"] == "fake-think":
            body = json.loads(error("context_length_exceeded"))
            row["response"] = {"status_code": 400, "request_id": "r", "body": body}
        else:
            sent = json.dumps(asked["body"]).encode()
            stage = asked["body"]["model"].removeprefix("fake-")
            body = server.reply(asked["body"], hashlib.sha256(sent).hexdigest(), stage, text)
            row["response"] = {"status_code": 200, "request_id": "r", "body": json.loads(body)}
        rows.append(json.dumps(row))
    result = path.with_suffix(".results.jsonl")
    result.write_text("".join(f"{row}\n" for row in reversed(rows)))
    return result


def export(config, workdir, folder):
    options = read_config(config)
    with Curation(options, str(workdir)) as curation:
        ledger = curation.ledger
        done = batches.export_batch(curation.units(), curation.store, ledger, folder)
        return done, ledger.spent


def bring_back(config, workdir, paths):
    options = read_config(config)
    with Curation(options, str(workdir)) as curation:
        done = batches.import_batch(curation.units(), curation.store, curation.ledger, paths)
        return done, curation.publish(), curation.ledger.spent


def test_19_batch_files_give_the_files_of_an_online_run(tmp_path):
    questions = [ask(i, "too_long" if i == 5 else "") for i in range(12)]
    pool = make_pool(tmp_path / "pool", questions, clips=4)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=PRICED)
        online = curate(config, tmp_path / "online")
        assert (online.exit_code, online.counts.accepted) == (0, 11)
    late, rounds, folder = set(), [], tmp_path / "batches"

    def expire(row):  # every third request is late once
        key = row["custom_id"]
        is_late = int(key[:8], 16) % 3 == 0 and key not in late
        late.add(key)
        return is_late

    while True:
        done, booked = export(config, tmp_path / "w", folder)
        rounds.append(dict(done.requests))
        if not done.files:
            break
        assert export(config, tmp_path / "w", folder)[0].out == sum(done.requests.values())
        results = [answer(server, path, expire) for path in done.files]
        done, counts, spent = bring_back(config, tmp_path / "w", results)
        assert done.unreadable == []
        assert spent < booked
    assert rounds[0] == {"describe": 4}
    assert rounds[-1] == {}
    assert late  # some came in the second file
    assert counts.pending == 0
    assert files(tmp_path / "w") == files(tmp_path / "online")
    assert abs(2 * spent - online.spent) < 50  # half the price, each request rounded up


def test_a_batch_file_that_is_not_whole_or_not_ours_is_said_so(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(3)])
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        done, _ = export(config, tmp_path / "w", tmp_path / "b")
    (path,) = done.files
    assert path.name == "describe-0001.jsonl"
    result = answer(server, path)
    lines = result.read_text().splitlines()
    result.write_text("\n".join([lines[0], '{"custom_id": "other"}', "", lines[1][:50], "[1]"]))
    done, counts, _ = bring_back(config, tmp_path / "w", [result])
    assert (done.replies, done.unknown, counts.pending) == (1, 1, 3)
    assert done.unreadable == [f"{result}, line 4", f"{result}, line 5"]
    with pytest.raises(ValueError, match="give the result file"):
        bring_back(config, tmp_path / "w", [tmp_path / "none.jsonl"])
    with Store(tmp_path / "w" / "store.sqlite") as store:
        assert store.revive() == 2  # requests whose results never came
    done, _ = export(config, tmp_path / "w", tmp_path / "b")
    assert done.requests == {"describe": 2, "think": 1}


def test_a_result_that_is_imported_again_is_paid_for_once(tmp_path):
    """A reply without a usable choice may have been billed, so it stays booked at the worst case;
    importing the same file again books nothing."""
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(3)])
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=PRICED)
        done, booked = export(config, tmp_path / "w", tmp_path / "b")
        result = answer(server, done.files[0])
    rows = [json.loads(line) for line in result.read_text().splitlines()]
    for row in rows:
        row["response"]["body"] = {"choices": []}
    result.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, _, spent = bring_back(config, tmp_path / "w", [result])
    assert (first.failed, first.unknown, spent) == ({"bad_shape": len(rows)}, 0, booked)
    again, _, spent = bring_back(config, tmp_path / "w", [result])
    assert (again.failed, again.unknown, spent) == ({}, len(rows), booked)


def test_a_killed_export_leaves_no_request_in_two_files(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(4)])
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        for place in ("write", "rename"):  # before the lines are booked, and after

            def die(*_, **__):
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                if place == "write":
                    patch.setattr(batches.os, "fsync", die)
                else:
                    patch.setattr(batches.os, "replace", die)
                with pytest.raises(KeyboardInterrupt):
                    export(config, tmp_path / "w", tmp_path / "b")
            assert len(list((tmp_path / "b").glob("*.partial"))) == 1
        done, _ = export(config, tmp_path / "w", tmp_path / "b")
    assert (done.files, done.out) == ([], 4)
    (path,) = (tmp_path / "b").iterdir()
    keys = [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
    assert len(set(keys)) == 4


def test_batch_files_hold_no_more_than_providers_take_and_no_more_than_the_budget(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(batches, "MOST_LINES", 2)
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(5)])
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        done, _ = export(config, tmp_path / "w", tmp_path / "b")
        sizes = [len(path.read_text().splitlines()) for path in done.files]
        assert sizes == [2, 2, 1]
        config = write_config(tmp_path / "c.toml", pool, server.url, budget="tokens = 2500")
        done, _ = export(config, tmp_path / "v", tmp_path / "c")
        assert "budget: stopped at" in str(done.stop)
        assert 0 < done.requests["describe"] < 5
