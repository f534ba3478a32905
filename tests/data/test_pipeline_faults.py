"""The loader goes on when single clips are bad, and ends when it cannot: nothing waits for ever."""
# ruff: noqa: F811, fixtures are imported by their names

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from test_hostile_media import CASES, root  # noqa: F401
from test_pipeline import (  # noqa: F401
    assert_equal,
    check_segments,
    data,
    make_loader,
    reference,
    source,
    tokenizer,
)

from videorft_jax.data.loader.steps import LoaderStalled
from videorft_jax.data.loader.watchdog import call_within
from videorft_jax.data.media.contract import Limits
from videorft_jax.data.records.quarantine import Failure, Quarantine, TooManyBad
from videorft_jax.data.records.source import RecordSource, write_records
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.scenes import WorldConfig


def test_a_clip_that_changed_is_masked_and_the_shape_stays(source, tokenizer, tmp_path):
    folder = tmp_path / "own"
    files = write_dataset(folder, 20, 0, 0)
    own = RecordSource(files["sft"])
    videos = [i for i in range(20) if own[i].data_type == "video"]
    loader = make_loader(own, tokenizer, {"epochs": 1}, quarantine_path=tmp_path / "q.jsonl")
    small = tmp_path / "small"
    write_dataset(small, 20, 0, 0, world=WorldConfig(size=(56, 112)))
    os.replace(small / own[videos[0]].path, folder / own[videos[0]].path)
    damaged = folder / own[videos[1]].path
    content = bytearray(damaged.read_bytes())
    at = content.index(b"mdat") + 4
    content[at + 300 : -1500] = bytes(len(content) - 1800 - at)
    damaged.write_bytes(content)
    bad = {videos[0]: "changed", videos[1]: "corrupt"}
    seen = []
    with loader.steps() as steps:
        for step in steps:
            bucket = loader.buckets[step.bucket]
            assert step.batch.tokens.shape == (bucket.rows, bucket.length)
            check_segments(step, own, tokenizer)  # those after a bad one have moved up
            seen += sum(step.indices, [])
    assert sorted(seen) == [i for i in range(20) if i not in bad]
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert {row["index"]: row["reason"] for row in rows} == bad
    assert {row["stage"] for row in rows} == {"load"}


def hostile_records(source, root):
    """Every hostile case beside good clips, as rows below one root."""
    rows = []
    for i, (path, _) in enumerate([*CASES, *[("good.mp4", "")] * 60, ("picture.png", "")]):
        row = source.row(0) | {"problem_id": i, "path": path, "data_type": "video"}
        row["data_type"] = "image" if path.endswith(".png") and i > len(CASES) else "video"
        rows.append(row)
    return rows


def test_hostile_files_are_quarantined_and_the_run_goes_on(source, tokenizer, root, tmp_path):
    rows = hostile_records(source, root)
    path = tmp_path / "hostile.jsonl"
    path.write_text("{not json at all, but long enough}\n")
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    records = RecordSource(path, root)
    config = {"epochs": 1, "max_bad_fraction": 0.6, "rows": 4}
    quarantine = tmp_path / "out" / "quarantine.jsonl"
    loader = make_loader(records, tokenizer, config, quarantine_path=quarantine)
    with loader.steps() as steps:
        seen = [i for step in steps for row in step.indices for i in row]
    good = range(1 + len(CASES), len(records))
    assert sorted(seen) == list(good)
    found = {}
    for line in quarantine.read_text().splitlines():
        row = json.loads(line)
        found[row["index"]] = row["reason"]
    assert found.pop(0) == "schema"
    expected = {i: reason for i, (_, reason) in enumerate(CASES, 1)}
    for i, (name, _) in enumerate(CASES, 1):
        if not name or "\0" in name:
            expected[i] = "schema"  # refused before it is a path
    assert found == expected

    with pytest.raises(TooManyBad, match=r"more than max_bad_fraction 0.1 \(.*protocol 5.*\); rep"):
        make_loader(records, tokenizer, config | {"max_bad_fraction": 0.1})


def test_the_run_stops_when_too_much_fails_in_decoding(source, tokenizer, tmp_path):
    folder = tmp_path / "rot"
    own = RecordSource(write_dataset(folder, 24, 0, 0)["sft"])
    loader = make_loader(own, tokenizer, {"epochs": 4, "max_bad_fraction": 0.2})
    for i in range(24):
        if own[i].data_type == "video":
            (folder / own[i].path).unlink()
    with loader.steps() as steps, pytest.raises(TooManyBad, match=r"loading.*\(missing \d+\)"):
        list(steps)
    with pytest.raises(TooManyBad):  # and it stays stopped
        next(steps)


def test_quarantine_goes_on_counting_after_a_restart(tmp_path):
    path = tmp_path / "q.jsonl"
    first = Quarantine(path, 0.05, total=1000)
    for i in (3, 3, 4):
        first.add(Failure(i, f"{i}.mp4", "corrupt", "x"), "load")
    first.close()
    with open(path, "a") as file:
        file.write('{"index": 9, "rea')  # killed while writing
    second = Quarantine(path, 0.05, total=1000)
    assert len(second) == 2
    assert second.counts == {"corrupt": 2}
    for i in (3, 5, 6, 7):
        second.add(Failure(i, f"{i}.mp4", "missing", "x"), "load")
    second.check(loaded=100)  # 5 of the least base of 100
    second.add(Failure(8, "8.mp4", "missing", "x"), "load")
    second.check(loaded=120)
    with pytest.raises(TooManyBad, match="6 of 1000 records are bad, 6 of them found while load"):
        second.check(loaded=60)
    second.add(Failure(20, "20.mp4", "missing", "x"), "measure")
    second.close()
    assert len(Quarantine(path, 0.05, total=1000)) == 6  # what was measured is measured again
    with open(path, "a") as file:
        file.write("[]\n")
    with pytest.raises(ValueError, match="line 7 is no quarantined record"):
        Quarantine(path, 0.05, total=1000)


def test_a_run_within_its_limit_goes_on_from_long_before(tmp_path):
    """Killed after 2,000 records of which 20 were bad, it goes on from a checkpoint at its first
    batches; 20 are too many of 100, and the run has seen that they are not."""
    first = Quarantine(tmp_path / "q.jsonl", 0.02, total=10_000)
    for loaded in range(100, 2001, 100):
        first.add(Failure(loaded, "x.mp4", "corrupt", "x"), "load", loaded)
        first.check(loaded)
    first.close()
    second = Quarantine(tmp_path / "q.jsonl", 0.02, total=10_000)
    second.check(200)
    for index in range(20):
        second.add(Failure(index, "x.mp4", "corrupt", "x"), "load", 2100)
    second.check(2000)
    second.add(Failure(20, "x.mp4", "corrupt", "x"), "load", 2100)
    with pytest.raises(TooManyBad, match="41 of them found while loading the first 2000"):
        second.check(2000)


class Hanging(RecordSource):
    """Storage that never answers for one record, once `armed`."""

    armed = False

    def media(self, index):
        if self.armed and index == 2:
            threading.Event().wait()


def test_hanging_read_becomes_a_timeout_and_the_run_goes_on(data, tokenizer):
    source = Hanging(data)
    limits = Limits(timeout_s=4.0)  # far above what the other clips need on a busy machine
    loader = make_loader(source, tokenizer, {"epochs": 1}, limits=limits)
    source.armed = True
    with loader.steps() as steps:
        steps = list(steps)
    failures = [failure for step in steps for _, failure in step.failures]
    assert [(f.index, f.reason) for f in failures] == [(2, "timeout")]
    assert sorted(i for s in steps for row in s.indices for i in row) == [
        i for i in range(50) if i != 2
    ]


def workers_of(steps):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        pids = [int(name) for name in os.listdir(steps._folder)]
        if len(pids) == 2:
            return pids
        time.sleep(0.05)
    raise AssertionError("two workers did not start")


def gone(pids):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        alive = [p for p in pids if psutil.pid_exists(p)]
        alive = [p for p in alive if psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def test_workers_give_identical_batches_and_a_killed_one_is_an_error(source, tokenizer, reference):
    loader = make_loader(source, tokenizer, {"workers": 2, "epochs": 40})
    steps = loader.steps(2)  # restored, under another worker count
    for theirs in reference[1][2:]:
        assert_equal(next(steps), theirs)
    pids = workers_of(steps)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(LoaderStalled, match="Worker process was terminated"):
        list(steps)
    assert gone(pids)
    assert not os.path.exists(steps._folder)


def test_a_hung_worker_is_an_error_within_the_limit(source, tokenizer):
    loader = make_loader(source, tokenizer, {"workers": 2, "epochs": 40})
    steps = loader.steps()
    next(steps)
    pids = workers_of(steps)
    object.__setattr__(loader.options, "timeout_s", 3.0)  # starting workers took longer than that
    os.kill(pids[1], signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(LoaderStalled, match=r"no batch within 3 s \(2 workers, 2 threads\)"):
        list(steps)
    assert time.monotonic() - started < 300  # and not for ever
    assert gone(pids)
    assert not [p for p in multiprocessing.active_children() if p.pid in pids]


TRAINER = """
import json, os, signal, sys, time
sys.path[:0] = json.loads(sys.argv[3])
from test_pipeline import make_loader
from videorft_jax.data.loader.steps import LoaderStalled
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer

if __name__ == "__main__":
    source = RecordSource(sys.argv[1])
    loader = make_loader(source, train_tiny_tokenizer(["a"], 264), {"workers": 2, "epochs": 40})
    steps = loader.steps()
    next(steps)
    pids = [int(name) for name in os.listdir(steps._folder)]
    print(json.dumps(pids), flush=True)
    if sys.argv[4] == "wait":
        sys.stdin.read()
    time.sleep(1.0)  # until they wait for a place to put what they have
    os.kill(pids[0], signal.SIGKILL)
    try:
        list(steps)
    except LoaderStalled as error:
        print(error)
"""


def start_trainer(data, tmp_path, then):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    here = os.path.dirname(os.path.abspath(__file__))
    path = json.dumps([here, os.path.dirname(os.path.dirname(here))])
    return subprocess.Popen(
        [sys.executable, str(script), data, str(tmp_path), path, then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_orphan_is_left_when_the_trainer_is_killed(data, tmp_path):
    with start_trainer(data, tmp_path, "wait") as trainer:
        pids = json.loads(trainer.stdout.readline())
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        trainer.kill()
    assert gone(pids)


def test_a_trainer_ends_whose_worker_was_killed(data, tmp_path):
    """Nothing waits for the rest of what the worker was writing, not even grain's own clean-up."""
    with start_trainer(data, tmp_path, "kill") as trainer:
        try:
            said, warned = trainer.communicate(timeout=600)
        finally:
            trainer.kill()
    pids, error = said.splitlines()
    assert error.startswith("loader: Worker process was terminated unexpectedly with exit code -9")
    assert trainer.returncode == 0
    assert "resource_tracker" not in warned, warned
    assert gone(json.loads(pids))


def test_call_within():
    assert call_within(1.0, lambda x, y: x - y, 5, y=3) == 2
    with pytest.raises(KeyError, match="gone"):
        call_within(1.0, {}.__getitem__, "gone")
    with pytest.raises(TimeoutError, match="no answer within 0.05 s"):
        call_within(0.05, threading.Event().wait)


def test_only_a_call_in_time_is_followed_up_and_waited_for():
    """What follows a call may take longer than the call was given; late ones have no follow-up."""
    late, followed = threading.Event(), []

    def follow(value):
        followed.append((value, threading.current_thread()))
        time.sleep(0.3)
        return -value

    thread = call_within(1.0, threading.current_thread)
    assert call_within(0.2, lambda: 5, then=follow) == -5
    assert followed == [(5, thread)]
    with pytest.raises(ZeroDivisionError):
        call_within(1.0, lambda: 0, then=lambda value: 1 / value)
    with pytest.raises(TimeoutError):
        call_within(0.05, late.wait, then=follow)
    late.set()
    thread.join(10.0)
    assert not thread.is_alive()
    assert len(followed) == 1


def test_call_within_keeps_its_thread_until_a_call_hangs():
    hang, found = threading.Event(), []
    first = call_within(1.0, threading.current_thread)
    assert call_within(1.0, threading.current_thread) is first
    with pytest.raises(TimeoutError):
        call_within(0.05, hang.wait)
    second = call_within(1.0, threading.current_thread)  # and not the late answer of the other
    assert second not in (first, threading.current_thread())
    hang.set()
    user = threading.Thread(target=lambda: found.append(call_within(1.0, threading.current_thread)))
    user.start()
    user.join()
    for thread in (first, *found):  # the one left behind, and one whose user has ended
        thread.join(10.0)
        assert not thread.is_alive()
    assert call_within(1.0, threading.current_thread) is second


def test_no_records_of_another_mode(source, tokenizer, tmp_path):
    """SFT needs reasoning: a file without any stops before anything is decoded."""
    path = tmp_path / "rl.jsonl"
    write_records(path, [dataclasses.replace(source[i], process="") for i in range(5)])
    with pytest.raises(TooManyBad, match=r"\(.*prompt 5\)"):
        make_loader(RecordSource(path, source.data_root), tokenizer)
