"""Drills of a description, of media, of the disk and of the store, on whole runs."""

import asyncio
import json
import os
import sqlite3
import subprocess

import pytest
from chat_server import ChatServer
from curation_run import ROOT, ask, command, files, make_clips, make_pool, run_here, write_config

from videorft_jax.curation.budget import Ledger, Limits
from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.requests import Reply, Request
from videorft_jax.curation.running import Runner
from videorft_jax.curation.store import Store, save_reply

WIDE = {"endpoint": "context = 65536", "max_output": 4000}


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_description_that_is_cut_off_is_asked_for_in_halves(tmp_path):
    pool = make_clips(tmp_path / "pool", 2)
    cut = []

    def describe(said, text):
        whole = json.dumps(said)
        if len(said["frames"]) > 2:  # half a JSON that a repairer would close
            cut.append(len(said["frames"]))
            return whole[: len(whole) // 2], {"finish_reason": "length"}
        return whole

    with ChatServer() as server:
        server.describe = describe
        config = write_config(tmp_path / "c.toml", pool, server.url, **WIDE)
        code, counts, reasons = run_here(config, tmp_path / "w")
    assert (code, counts["accepted"]) == (0, 2), reasons
    assert cut == [4, 4]
    for row in rows(tmp_path / "w", "describe.jsonl"):
        assert len(row["requests"]) == 2
        assert [frame["time"] for frame in row["description"]["frames"]] == row["frame_times"]
        assert not row["repaired"]


def spoil(name):
    def describe(said, text):
        frames = said["frames"]
        if name == "one_too_few":
            frames.pop()
        elif name == "shuffled":
            frames[0], frames[1] = frames[1], frames[0]
        elif name == "extra_key":
            frames[0]["mood"] = "calm"
        elif name == "duplicate_key":
            return json.dumps(said)[:-1] + ', "frames": []}'
        elif name == "depth":
            return '{"video_caption": ' + "[" * 1000 + "]" * 1000 + "}"
        elif name == "no_json":
            return "A ball rolls over a floor."
        return json.dumps(said)

    return describe


REASONS = {
    "one_too_few": "frame_count", "shuffled": "frame_count", "extra_key": "bad_schema",
    "duplicate_key": "bad_schema", "depth": "bad_schema", "no_json": "bad_json",
}  # fmt: skip


def test_a_description_of_another_form_is_asked_for_once_more(tmp_path):
    pool = make_clips(tmp_path / "pool", len(REASONS))
    prompts, mended, faults = [], [False], {}
    with ChatServer() as server:

        def describe(said, text):
            clip = text.split("[0 s]\n")[1][:64]
            name = faults.setdefault(clip, list(REASONS)[len(faults) % len(REASONS)])
            prompts.append(clip)
            is_second = "could not be used" in text
            return json.dumps(said) if mended[0] and is_second else spoil(name)(said, text)

        server.describe = describe
        config = write_config(tmp_path / "c.toml", pool, server.url, **WIDE)
        code, counts, _ = run_here(config, tmp_path / "w")
        assert (code, counts["ended"]) == (0, {"describe": len(REASONS)})
        found = [row["reason"] for row in rows(tmp_path / "w", "verdicts.jsonl")]
        assert sorted(found) == sorted(REASONS.values())
        assert sorted(prompts) == sorted(2 * list(faults))
        mended[0] = True
        assert run_here(config, tmp_path / "v")[1]["accepted"] == len(REASONS)


def test_media_that_cannot_be_read_are_listed_and_nothing_is_sent(tmp_path):
    folder = tmp_path / "pool"
    pool = make_clips(folder, 5)
    (tmp_path / "outside.mp4").write_bytes((folder / "0.mp4").read_bytes())
    (folder / "0.mp4").write_bytes(b"not a film at all")
    (folder / "1.mp4").write_bytes(b"")
    (folder / "2.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    text = pool.read_text().replace("./3.mp4", "../outside.mp4")
    pool.write_text(text + "{broken\n")
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, **WIDE)
        code, counts, _ = run_here(config, tmp_path / "w")
        assert (code, counts["quarantined"], counts["accepted"]) == (0, 5, 1)
        assert {row["stage"] for row in server.log} == {"describe", "think", "revise"}
        assert all("picture 4" in row["text"] for row in server.log if row["stage"] == "think")
        assert server.count("describe") == 1
    listed = rows(tmp_path / "w", "quarantine.jsonl")
    assert len(listed) == 5
    assert all(row["reason"] and row["detail"] for row in listed)


@pytest.mark.slow
def test_connections_that_are_reset_before_the_body_cost_no_record(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(30)], clips=5)
    with ChatServer() as server:
        server.resets = 6
        config = write_config(tmp_path / "c.toml", pool, server.url)
        code, counts, _ = run_here(config, tmp_path / "w")
        assert (code, counts["accepted"]) == (0, 30)
        assert server.requests // 6 >= 10
    connection = sqlite3.connect(tmp_path / "w" / "store.sqlite")
    found = dict(connection.execute("SELECT code, COUNT(*) FROM attempt GROUP BY code"))
    assert found["dropped"] == server.requests // 6


def test_a_provider_without_credit_is_asked_once(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i, "quota") for i in range(20)], clips=1)
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint="concurrency = 4")
        code, counts, reasons = run_here(config, tmp_path / "w")
        assert (code, counts["pending"]) == (75, 20)
        assert "add credit" in reasons
        assert 1 <= server.count("think") <= 4


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_later(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(60)], clips=4)

    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        small = ["bash", "-c", 'ulimit -f 350; exec "$@"', "-"]  # KiB of a file, as a full disk
        done = subprocess.run(
            [*small, *command(config, tmp_path / "w")], capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "make space" in line]
        assert (done.returncode, len(said)) == (1, 1), done.stderr
        assert "Traceback" not in done.stderr
        before = len(server.log)
        assert before > 4
        assert run_here(config, tmp_path / "w")[1]["accepted"] == 60
        again = run_here(config, tmp_path / "quiet")
        assert again[0] == 0
    assert files(tmp_path / "w") == files(tmp_path / "quiet")


def test_a_torn_log_of_writes_is_recovered_and_a_cut_store_refused(tmp_path):
    def request(number):
        return Request("s", "u", "e", "m", "", (str(number),), 9, 0.0, 1.0, 0, "t")

    path = tmp_path / "s.sqlite"
    store = Store(path)
    for number in range(50):
        store.write([save_reply(request(number), Reply("x" * 50 + str(number)))])
    whole, log = path.read_bytes(), (tmp_path / "s.sqlite-wal").read_bytes()
    store.close()
    for cut in (len(log) - 1000, len(log) // 2, 40):
        path.write_bytes(whole)
        (tmp_path / "s.sqlite-wal").write_bytes(log[:cut] + b"\xff" * 700)
        with Store(path) as store:
            known = [store.find(request(n).key) is not None for n in range(50)]
        assert known == sorted(known, reverse=True)  # a beginning of what was committed
        assert sum(known) >= 49 * (cut == len(log) - 1000)
    with Store(path) as store:
        store.write([save_reply(request(n), Reply("y" * 5000 + str(n))) for n in range(200)])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value='0' WHERE name='clean'")
    connection.commit()
    connection.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match="it was left as it is"):
        Store(path)
    assert path.read_bytes() == whole[: len(whole) // 2]


def test_damage_inside_a_store_is_found_after_an_unclean_end_alone(tmp_path):
    path = tmp_path / "s.sqlite"
    request = Request("s", "u", "e", "m", "", ("x",), 9, 0.0, 1.0, 0, "t")
    with Store(path) as store:
        store.write([save_reply(request, Reply("x"))])
        blob = "INSERT INTO derived VALUES ('k', ?, zeroblob(3000))"
        store.write([(blob, (f"{number:05}",)) for number in range(400)])
    connection = sqlite3.connect(path)
    root, size = connection.execute(
        "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name='derived'"
    ).fetchone()
    connection.execute("UPDATE meta SET value='0' WHERE name='clean'")
    connection.commit()
    connection.close()
    whole = path.read_bytes()
    start = root * size  # a leaf that nothing reads when the store is opened
    damaged = whole[:start] + b"\xff" * size + whole[start + size :]
    path.write_bytes(damaged)
    with pytest.raises(RuntimeError, match="quick_check found damage.*restore the file"):
        Store(path)
    assert path.read_bytes() == damaged
    path.write_bytes(whole)
    with Store(path) as store:
        assert store.find(request.key) == Reply("x")


def test_a_reply_is_in_the_store_before_its_worker_asks_again_and_is_paid_for_once(tmp_path):
    def request(text):
        return Request("think", "u", "think", "m", "", (text,), 9, 0.0, 1.0, 0, "t")

    class Client:
        limits = (0, 0)

        def __init__(self):
            self.sent = []

        async def send(self, asked):
            known = [store.find(request(before).key) for before in self.sent]
            assert None not in known, asked.parts
            self.sent.append(asked.parts[0])
            return Reply("a", model="m", input_tokens=1, output_tokens=1)

    def unit(number):
        for text in ("shared", "first", "second", f"own {number}"):
            assert (yield request(text)).content == "a"

    async def ask_twice(runner, asked):
        first = await runner.ask(asked)
        assert await runner.ask(asked) is first  # Nothing had time to be written.
        await store.flush()

    end = Endpoint("think", "m", base_urls=("http://h/v1",))
    ends, client = {"think": end}, Client()
    with Store(tmp_path / "s.sqlite") as store:
        runner = Runner(store, Ledger(store, ends, Limits()), ends, {"think": client})
        units = [lambda number=number: unit(number) for number in range(3)]
        asyncio.run(runner.run(units, 1))
        asyncio.run(ask_twice(runner, request("own 9")))
        assert client.sent == ["shared", "first", "second", "own 0", "own 1", "own 2", "own 9"]
        paid = store.rows("SELECT COUNT(*) FROM attempt WHERE state='paid'")
    assert paid == [(7,)]


@pytest.mark.parametrize("stop", ["budget", "interrupt"])
def test_what_was_answered_before_a_stop_is_on_the_disk_when_the_run_ends(tmp_path, stop):
    """The run ends while the first reply of its only unit still waits to be written."""

    class Client:
        limits = (0, 0)

        async def send(self, asked):
            if stop == "interrupt":
                runner.close()
            return Reply("a", model="m", input_tokens=1, output_tokens=1)

    def unit():
        yield first
        yield Request("think", "u", "think", "m", "", ("second",), 9, 0.0, 1.0, 0, "t")

    first = Request("think", "u", "think", "m", "", ("first",), 9, 0.0, 1.0, 0, "t")
    ends = {"think": Endpoint("think", "m", base_urls=("http://h/v1",))}
    with Store(tmp_path / "s.sqlite") as store:
        one = Ledger(store, ends, Limits()).worst_case(first)[1]
        ledger = Ledger(store, ends, Limits(tokens=one if stop == "budget" else None))
        runner = Runner(store, ledger, ends, {"think": Client()})
        asyncio.run(runner.run([unit], 1))
        assert list(runner.stopped) == ["budget" if stop == "budget" else "think"]
    with Store(tmp_path / "s.sqlite") as store:
        assert store.find(first.key).content == "a"
        assert store.rows("SELECT state FROM attempt") == [("paid",)]
