"""Drills 14 and 24: curation and `videorft serve` are killed while requests are under way."""

import concurrent.futures
import contextlib
import json
import signal
import sqlite3
import time
import urllib.error
import urllib.request

from chat_server import DRILLS, ChatServer
from curation_run import ask, make_pool, write_config
from drill_jobs import count_paid
from drill_place import LIMIT_S, Run

_NUM_RECORDS = 24
_FAULTS = ("rate", "server", "drop", "hang", "html", "no_choices", "cut_json", "filtered")
_NUM_REQUESTS = 24


def make_curation(place) -> None:
    """A server of chats and a pool for all runs of curation, some of whose questions are answered
    by faults; the same requests get the same replies."""
    assert DRILLS.keys() >= set(_FAULTS)
    questions = [
        ask(i, _FAULTS[i // 3 % len(_FAULTS)] if i % 3 == 0 else "") for i in range(_NUM_RECORDS)
    ]
    pool = make_pool(place.folder / "pool", questions, clips=6)
    place.chats = place.resources.enter_context(ChatServer(delay_s=0.05))
    end = "concurrency = 4\ndeadline_s = 2.0"
    write_config(place.folder / "curate.toml", pool, place.chats.url, endpoint=end)


def kill_curation(run: Run) -> str:
    """Every reply that was paid for is kept, and none is asked for again."""
    run.start()
    step = run.wait_moment()
    run.kill()
    before = count_paid(run.workdir)
    run.start()
    assert run.end() == 0, run.last.said
    with contextlib.closing(sqlite3.connect(run.workdir / "store.sqlite")) as store:
        query = "SELECT COUNT(*) FROM attempt WHERE state='paid' GROUP BY key"
        assert {count for (count,) in store.execute(query)} == {1}, "paid for twice"
    return f"killed after {step} replies, {before} kept of {count_paid(run.workdir)}"


def _serve(run: Run) -> str:
    """Starts the server; its address."""
    flags = ["--port=0", "--dtype=float32", "--max_new_tokens=64", "--max_slots=4"]
    words = ["serve", f"--checkpoint={run.place.folder / 'model'}", *flags]
    process = run.place.start(words, run.folder)
    run.adopt(process)
    line = next(line for line in process.stdout if line.startswith("serving"))
    return line.split()[-1]


def _post(url: str, number: int) -> str:
    body = {
        "messages": [{"role": "user", "content": f"What moves in picture {number}?"}],
        "max_tokens": 24, "temperature": 0,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def _try(url: str, number: int) -> str | None:
    try:
        return _post(url, number)
    except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
        return None


def stop_serving(run: Run) -> str:
    """SIGKILL or SIGTERM while requests are under way: a client that asks again gets what it would
    have got, and what SIGTERM finds under way is answered whole."""
    kind = (signal.SIGKILL, signal.SIGTERM)[run.moment % 2]
    numbers = range(_NUM_REQUESTS)
    if "answers" not in run.place.__dict__:
        url = _serve(run)
        run.place.answers = [_post(url, number) for number in numbers]
        run.signal(signal.SIGTERM)
        assert run.end() == 0, run.last.said
    url = _serve(run)
    started = []

    def work(number):
        started.append(number)
        return _try(url, number)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(work, number) for number in numbers]
        wanted = run.rng.randint(2, _NUM_REQUESTS - 4)
        while sum(one.done() for one in asked) < wanted:
            time.sleep(0.001)
        time.sleep(run.rng.uniform(0.0, 0.05))
        run.signal(kind)
        got = [one.result() for one in asked]
    code = run.end()
    assert code == (-9 if kind == signal.SIGKILL else 0), (code, run.last.said)
    lost = [number for number in numbers if got[number] is None]
    url = _serve(run)
    for number in lost:
        got[number] = _post(url, number)
    run.signal(signal.SIGTERM)
    assert run.end() == 0, run.last.said
    wrong = [number for number in numbers if got[number] != run.place.answers[number]]
    assert not wrong, f"other answers to {wrong}"
    run.is_over = True
    return f"{kind.name}: {_NUM_REQUESTS - len(lost)} answered, {len(lost)} asked again"
