"""Whole runs of `videorft curate` against a fake server on loopback, drills of faults included."""

import collections
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import time

import pytest
from chat_server import DRILLS, ChatServer
from curation_run import ROOT, ask, command, files, make_pool, residue, run, run_here, write_config

from videorft_jax import cli
from videorft_jax.commands import validate
from videorft_jax.data.records.source import RecordSource

QUICK = "deadline_s = 2.0\nconcurrency = 8"
PRICED = "price = {input = 1.0, cached = 1.0, output = 2.0}"
# What a request of each drill ends as; the others end in a reply.
DEAD = {
    "forever": "server", "too_long": "too_long", "malformed": "bad_request", "hang": "timeout",
    "trickle": "timeout", "slow_headers": "timeout", "html": "bad_body", "cut_json": "bad_body",
    "html_json": "bad_body",
    "empty_body": "bad_body", "extra": "bad_body", "utf8": "bad_body", "large": "bad_body",
    "not_gzip": "bad_body", "bomb": "bad_body", "no_choices": "bad_shape",
    "null_choices": "bad_shape", "list": "bad_shape", "error_200": "bad_shape",
    "refusal": "refused", "filtered": "filtered",
}  # fmt: skip
STOPS = ("quota", "redirect")  # What ends an endpoint.


def kill_after(server, config, workdir, number):
    """Starts a run and kills it as soon as the server has seen `number` more requests."""
    before = len(server.log)
    child = subprocess.Popen(
        command(config, workdir), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    while len(server.log) < before + number and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [100, 500])
def test_01_all_drills_at_once_end_with_the_planted_dead_letters(tmp_path, number):
    names = [name for name in DRILLS if name not in STOPS]
    names += [""] * (number - len(names))
    random.Random(0).shuffle(names)
    questions = [ask(i, name) for i, name in enumerate(names)]
    pool = make_pool(tmp_path / "pool", questions, clips=number // 10)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=QUICK)
        code, summary, text = run(config, tmp_path / "w", timeout=3600)
        sent = collections.Counter(row["drill"] for row in server.log if row["stage"] == "think")
    assert code == 0, text
    assert (summary["pool"], summary["pending"]) == (number, 0)
    assert sent["refusal"] == sent["filtered"] == sent["malformed"] == sent["too_long"] == 1
    by_name = {row["record"]: row["index"] for row in rows(tmp_path / "w", "pool.jsonl")}
    dead = {by_name[row["unit"]]: row["reason"] for row in rows(tmp_path / "w", "dead.jsonl")}
    transport = {i: DEAD[n] for i, n in enumerate(names) if DEAD.get(n, "") not in
                 ("", "refused", "filtered")}  # fmt: skip
    assert dead == transport
    verdicts = {by_name[r["record"]]: r for r in rows(tmp_path / "w", "verdicts.jsonl")}
    for index, verdict in verdicts.items():
        drill = names[index]
        ended = {"refused": "answer", "filtered": "answer"}.get(DEAD.get(drill, ""), "think")
        assert verdict["ended"] == (ended if drill in DEAD else "accepted"), drill
    # The same chain is stored wherever the server put it.
    thoughts = {by_name[r["record"]]: r["cot0"] for r in rows(tmp_path / "w", "think.jsonl")}
    for name in ("reasoning", "reasoning_content", "unclosed"):
        assert thoughts[names.index(name)].startswith("I watch the thing"), name
        assert "<" not in thoughts[names.index(name)]


@pytest.mark.slow
@pytest.mark.parametrize(("num_kills", "number"), [(3, 40), (10, 120)])
def test_02_kills_lose_no_reply_and_change_no_byte(tmp_path, num_kills, number):
    questions = [ask(i, "server" if i % 9 == 0 else "") for i in range(number)]
    pool = make_pool(tmp_path / "pool", questions, clips=12)
    with ChatServer(delay_s=0.15) as server:
        end = "concurrency = 4\ndeadline_s = 5.0"
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=end)
        assert run(config, tmp_path / "quiet")[0] == 0
        undisturbed = len(server.log)
        server.log.clear()
        server.tries.clear()
        kills, rng = 0, random.Random(0)
        while kills < num_kills:
            kill_after(server, config, tmp_path / "killed", rng.randint(3, 20))
            kills += 1
        assert run(config, tmp_path / "killed")[0] == 0
        # At most 4 requests were in flight at each of 3 endpoints, and only those went twice.
        assert len(server.log) <= undisturbed + kills * 12
    assert files(tmp_path / "killed") == files(tmp_path / "quiet")
    store = sqlite3.connect(tmp_path / "killed" / "store.sqlite")
    states = dict(store.execute("SELECT state, COUNT(*) FROM attempt GROUP BY state"))
    assert states.get("open", 0) == 0
    assert states.get("lost", 0) >= 1
    paid = store.execute("SELECT COUNT(*) FROM attempt WHERE state='paid' GROUP BY key").fetchall()
    assert {count for (count,) in paid} == {1}


@pytest.mark.parametrize(
    ("number", "limit", "is_killed"),
    [
        pytest.param(60, "tokens = 40000", True, marks=pytest.mark.slow),
        (60, "dollars = 0.03", False),
        pytest.param(500, "tokens = 200000", False, marks=pytest.mark.slow),
        pytest.param(500, "dollars = 0.1", True, marks=pytest.mark.slow),
    ],
)
def test_03_the_server_bills_no_more_than_the_budget(tmp_path, number, limit, is_killed):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(number)], clips=10)
    with ChatServer(delay_s=0.05 if is_killed else 0.0) as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, budget=limit, endpoint=PRICED)
        if is_killed:
            kill_after(server, config, tmp_path / "w", 20)
        code, counts, text = run_here(config, tmp_path / "w")
        assert code == 75
        assert "budget: stopped at" in text
        assert counts["pending"] > number // 10
        most = float(limit.split("= ")[1]) * (10**9 if limit.startswith("dollars") else 1)
        store = sqlite3.connect(tmp_path / "w" / "store.sqlite")
        for again in (False, True):
            if again:  # What still fits is asked, since short replies free what was reserved.
                assert run_here(config, tmp_path / "w")[0] == 75
            tokens, nano, lost = store.execute(
                "SELECT SUM(tokens), SUM(settled), SUM(state='lost') FROM attempt"
            ).fetchone()
            is_money = limit.startswith("dollars")
            billed = server.billed_nano(1, 2) if is_money else server.billed
            assert 0.1 * most < billed <= (nano if is_money else tokens) <= most
            assert bool(lost) == is_killed


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.5, 3600.0])
def test_ctrl_c_lets_requests_end_for_some_seconds_and_says_how_to_go_on(tmp_path, delay_s):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(40)], clips=20)
    with ChatServer(delay_s=delay_s) as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint="concurrency = 4")
        child = subprocess.Popen(
            command(config, tmp_path / "w"), cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        while len(server.log) < 4:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        started = time.monotonic()
        said, _ = child.communicate()
        assert time.monotonic() - started > 9.0 * (delay_s > 1)
        assert child.returncode == 130
        assert "Traceback" not in said
        assert "Ctrl-C once more ends at once" in said
        assert "next: videorft curate --config=" in said.splitlines()[-1]
        store = sqlite3.connect(tmp_path / "w" / "store.sqlite")
        states = dict(store.execute("SELECT state, COUNT(*) FROM attempt GROUP BY state"))
        assert set(states) == ({"paid"} if delay_s < 1 else {"unknown"}), states
        server.delay_s = 0.0
        assert run_here(config, tmp_path / "w")[1]["accepted"] == 40


def test_04_a_second_run_asks_nothing_and_a_new_template_only_what_follows(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(8)], clips=4)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        assert run_here(config, tmp_path / "w")[0] == 0
        first = files(tmp_path / "w")
        server.log.clear()
        assert run_here(config, tmp_path / "w")[0] == 0
        assert server.log == []
        assert files(tmp_path / "w") == first
        strict = write_config(tmp_path / "d.toml", pool, server.url, stages="least_words = 500")
        code, summary, _ = run_here(strict, tmp_path / "w")
        assert (code, summary["accepted"], server.log) == (0, 0, [])
        assert summary["ended"] == {"length": 8}
        config.write_text(config.read_text().replace("[stages]", "[stages]\nleast_kept = 1.0"))
        code, summary, _ = run_here(config, tmp_path / "w")
        assert (code, summary["accepted"], server.log) == (0, 0, [])
        assert summary["ended"] == {"revision": 8}
        config = write_config(tmp_path / "c.toml", pool, server.url)
        folder = tmp_path / "templates"
        folder.mkdir()
        own = ROOT / "videorft_jax/curation/templates/revise.txt"
        (folder / "revise.txt").write_text(own.read_text() + "\nBe brief.")
        text = config.read_text().replace("[data]", f'[data]\ntemplates = "{folder}"')
        config.write_text(text)
        assert run_here(config, tmp_path / "w")[0] == 0
        assert {row["stage"] for row in server.log} == {"revise"}


def test_05_one_clip_is_described_once_for_all_its_questions(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(10)], clips=1)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        assert run_here(config, tmp_path / "w")[0] == 0
        assert [server.count(s) for s in ("describe", "think", "revise")] == [1, 10, 10]


def test_06_only_right_answers_are_revised(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(30)], clips=3)

    def right(digest):
        return residue(digest, 3) == 0

    with ChatServer(right=right) as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        code, summary, _ = run_here(config, tmp_path / "w")
        expected = sum(right(row["digest"]) for row in server.log if row["stage"] == "think")
        assert code == 0
        assert 0 < expected < 30
        assert server.count("revise") == summary["right"] == expected


def test_07_redirects_are_not_followed_and_bodies_are_bounded(tmp_path):
    with ChatServer() as server, ChatServer() as other:
        pool = make_pool(tmp_path / "pool", [ask(0, "redirect")])
        server.redirect = f"{other.url}/chat/completions"
        config = write_config(tmp_path / "c.toml", pool, server.url)
        code, _, text = run_here(config, tmp_path / "w")
        assert code == 1
        assert "redirect" in text
        assert other.log == []


def test_08_retry_after_is_kept_for_that_request_alone(tmp_path):
    drills = ("rate", "date", "nonsense", "negative")
    questions = [ask(i, name) for i, name in enumerate(drills)] + [ask(i) for i in range(4, 20)]
    pool = make_pool(tmp_path / "pool", questions, clips=1)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        assert run_here(config, tmp_path / "w")[0] == 0
        times = {}
        for row in server.log:
            if row["stage"] == "think":
                times.setdefault(row["drill"], []).append(row["at"])
        rate, date = times["rate"], times["date"]
        assert min(b - a for a, b in zip(rate, rate[1:], strict=False)) >= 0.99
        assert len(rate) == 3
        assert date[1] - date[0] >= 1.4
        assert len(times["nonsense"]) == len(times["negative"]) == 2


@pytest.mark.parametrize(
    ("status", "exit_code", "said"),
    [
        ((429, {"retry-after": "4000"}, b"{}"), 75, "patience"),
        ((429, {}, b"{}"), 75, "no success"),
        ((401, {}, b"{}"), 1, "key_env"),
        ((402, {}, b"{}"), 75, "credit"),
        ((404, {}, b"{}"), 1, "model and base_urls"),
        ((500, {}, b"{}"), 75, "the last: server; start again later"),
        ((200, {}, b"<html>"), 1, "base_urls"),
    ],
)
def test_10_a_useless_endpoint_stops_the_run_in_bounded_time(tmp_path, status, exit_code, said):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(30)], clips=30)
    with ChatServer() as server:
        server.status = status
        end = "breaker_s = 3.0\nbreaker_failures = 8\nconcurrency = 8"
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=end)
        started = time.monotonic()
        code, summary, text = run_here(config, tmp_path / "w")
        assert time.monotonic() - started < 60
    assert code == exit_code, text
    assert said in text
    assert summary["pending"] == 30 or summary["ended"]  # a body of three tries may be dead


def test_10_a_dead_reviser_leaves_the_chains_of_the_thinker(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(12)], clips=2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with ChatServer() as server:
            config = write_config(
                tmp_path / "c.toml", pool, server.url, per_stage={"revise": dead},
                endpoint="breaker_s = 20.0",
            )  # fmt: skip
            code, summary, text = run_here(config, tmp_path / "w")
            assert code == 75, text
            assert "cannot be reached" in text
            assert server.count("think") == 12
            write_config(config, pool, server.url)
            code, summary, _ = run_here(config, tmp_path / "w")
            assert (code, summary["accepted"], server.count("think")) == (0, 12, 12)


def test_17_no_clip_is_on_both_sides_of_the_split(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(60)], clips=20)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, val_fraction=0.4)
        code, summary, _ = run_here(config, tmp_path / "w")
    assert code == 0
    sides = {}
    for row in rows(tmp_path / "w", "pool.jsonl"):
        sides.setdefault(row["media"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    held = {media for media, side in sides.items() if side == {"val"}}
    assert 2 <= len(held) <= 14
    used = {row["extra_curation_media"] for row in rows(tmp_path / "w", "VideoRFT-RL.jsonl")}
    assert not used & held
    assert summary["held_out"] == 3 * len(held)


@pytest.mark.slow
def test_19_two_shards_merged_equal_one_run(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(24)], clips=8)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        assert run(config, tmp_path / "one")[0] == 0
        for number in (0, 1):
            code, summary, _ = run(config, tmp_path / "two", f"--shard={number}/2")
            assert code == 0
            assert 0 < summary["asked"] < 24
        asked = len(server.log)
        assert run(config, tmp_path / "two", "--merge")[0] == 0
        assert len(server.log) == asked
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_22_both_sets_are_read_as_records(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(6)])
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        assert run_here(config, tmp_path / "w")[0] == 0
    chains = RecordSource(tmp_path / "w" / "VideoRFT-CoT.jsonl", pool.parent)
    questions = RecordSource(tmp_path / "w" / "VideoRFT-RL.jsonl", pool.parent)
    assert len(chains) == len(questions) == 6
    assert not [*chains.iter_errors(), *questions.iter_errors()]
    for index in range(6):
        assert chains[index].solution == f"blue ball {index}"
        assert "closely" in chains[index].process  # the reviser's word, not the thinker's
        assert questions[index].process == ""
    assert "> Not decontaminated" in (tmp_path / "w" / "README.md").read_text()
    for name in ("CoT", "RL"):  # A field that is not known would be named, and be a fault.
        path = tmp_path / "w" / f"VideoRFT-{name}.jsonl"
        assert validate.main([f"--data={path}", f"--data_root={pool.parent}"]) == 0


def test_26_what_cannot_work_is_refused_in_one_line_before_the_first_request(tmp_path, capsys):
    pool = make_pool(tmp_path / "pool", [ask(0)])
    with ChatServer() as server:

        def refused(said, code, *flags, change=("", ""), **fields):
            config = write_config(tmp_path / "c.toml", pool, server.url, **fields)
            config.write_text(config.read_text().replace(*change))
            found = cli.main(["curate", f"--config={config}", f"--workdir={tmp_path}/w", *flags])
            text = "".join(capsys.readouterr())
            assert (found, len(text.strip().splitlines())) == (code, 1), text
            assert said in text

        refused("holds no key; export NO_SUCH_KEY", 2, endpoint='key_env = "NO_SUCH_KEY"')
        refused("has no price", 2, budget="dollars = 1.0")
        refused("no 'atempts'", 2, stages="atempts = 2")
        refused("give a int", 2, stages='attempts = "two"')
        refused("[endpoints.describe] terms: nothing says", 2, change=("terms =", "# "))
        refused('nothing is said about "made up"', 2, change=('"made up"', '"other"'))
        refused("say yes, no or unknown", 2, change=('"unknown"', '"perhaps"'))
        refused("without url and read_on", 2, change=('"unknown"', '"yes"'))
        refused("write YYYY-MM-DD", 2, change=("2026-11-29", "yesterday"))
        refused("address of a server", 2, change=("http://127", "ftp://127"))
        refused("write I/N", 2, "--shard=2/2")
        refused("run all shards", 2, "--merge")
        assert server.log == []
        config = write_config(tmp_path / "c.toml", pool, server.url)
        server.delay_s = 3600.0
        child = subprocess.Popen(
            command(config, tmp_path / "w"), cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        while not server.log:
            time.sleep(0.02)
        code, _, text = run(config, tmp_path / "w")
        child.kill()
        child.wait()
        assert code == 1
        assert f"process {child.pid} on" in text
