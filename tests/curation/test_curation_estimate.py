"""What is said before and while a run: requests, cost and the time that is left."""

import asyncio
import random

import pytest
from chat_server import ChatServer
from curation_run import ask, curate, make_pool, residue, write_config
from virtual_time import run_virtually

from videorft_jax.commands.curate import main
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.pool import Entry, order_used
from videorft_jax.curation.progress import Meter, Progress
from videorft_jax.curation.run import Curation

PRICED = "price = {input = 1.0, cached = 1.0, output = 2.0}"


def estimate(config, workdir):
    options = read_config(config)
    with Curation(options, str(workdir)) as curation:
        return curation.estimate(), curation.ledger.spent


def test_18_the_dry_run_after_a_sample_foretells_requests_and_cost(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(60)], clips=20)
    rows = pool.read_text().splitlines()
    sample = pool.with_name("sample.jsonl")
    sample.write_text("\n".join(random.Random(0).sample(rows, 10)) + "\n")
    with ChatServer() as server:
        fields = {"endpoint": PRICED, "stages": "attempts = 2"}
        config = write_config(tmp_path / "c.toml", pool, server.url, **fields)
        before, _ = estimate(config, tmp_path / "w")
        # 20 pictures; two chains a question; how many are right is not known yet.
        numbers = [(row.known, row.expected, row.most) for row in before.stages.values()]
        assert numbers == [(20, 0, 0), (0, 120, 120), (0, pytest.approx(60 * 0.33), 60)]
        assert (before.measured, [row.measured for row in before.stages.values()]) == (0, [0] * 3)
        assert before.nano < before.most_nano
        small = write_config(tmp_path / "s.toml", sample, server.url, **fields)
        assert curate(small, tmp_path / "w").exit_code == 0
        server.log.clear()
        found, spent = estimate(config, tmp_path / "w")
        assert server.log == []
        assert found.measured == 10
        done = curate(config, tmp_path / "w")
        assert (done.exit_code, done.counts.accepted) == (0, 60)
        for name, row in found.stages.items():
            assert row.known + row.expected == server.count(name)
        assert abs(found.nano / (done.spent - spent) - 1) < 0.1
        assert done.spent < spent + found.most_nano
        after, _ = estimate(config, tmp_path / "w")
        assert (after.finished, after.nano, after.tokens) == (60, 0, 0)


def test_18_the_share_of_right_chains_is_measured(tmp_path):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(40)], clips=8)

    def right(digest):
        return residue(digest, 2) == 0

    with ChatServer(right=right) as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        done = curate(config, tmp_path / "w")
        found, _ = estimate(config, tmp_path / "w")
    assert found.measured == 40
    assert found.accepted == done.counts.right / 40
    assert 0.2 < found.accepted < 0.8


def test_18_the_command_says_what_the_budget_does_not_cover(tmp_path, capsys):
    pool = make_pool(tmp_path / "pool", [ask(i) for i in range(6)])
    for budget, code in (("dollars = 1.0", 0), ("dollars = 0.001", 1), ("tokens = 1000", 1)):
        config = write_config(
            tmp_path / "c.toml", pool, "http://127.0.0.1:9/v1", budget=budget, endpoint=PRICED
        )
        assert main([f"--config={config}", f"--workdir={tmp_path / 'w'}", "--dry_run"]) == code
        said = capsys.readouterr().out
        assert "describe: 0 replies stored, 6 requests to go" in said
        assert "revise: 0 replies stored, 2 requests to go, at most 6" in said
        assert "as in the paper" in said
        assert ("does not cover" in said) == bool(code)


def test_the_first_time_left_that_is_told_is_near_the_truth():
    """Units of three requests, each of 20 to 40 s, 64 in flight: 1,000 of them take 24 minutes."""
    latency, draws, told = 30.0, random.Random(0), []

    async def simulate():
        loop, progress = asyncio.get_running_loop(), Progress()
        meter = Meter(progress, 1000, 64, attempts=1, clock=loop.time)
        queue = iter(range(1000))

        async def work():
            for _ in queue:
                for stage in ("describe", "think", "revise"):
                    await asyncio.sleep(latency * draws.uniform(2 / 3, 4 / 3))
                    progress.replies[stage] = progress.replies.get(stage, 0) + 1
                progress.finish(3)

        async def watch():
            while True:
                await asyncio.sleep(5)
                told.append((loop.time(), meter.seconds_left()))

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(work() for _ in range(64)))
        watcher.cancel()
        return loop.time()

    end = run_virtually(simulate())
    known = [(now, left) for now, left in told if left is not None]
    assert known[0][0] <= 2 * latency
    ratios = [left / (end - now) for now, left in known if end - now > 100]
    assert 0.6 < ratios[0] < 1.67
    assert all(0.6 < ratio < 1.67 for ratio in ratios)


def test_questions_about_one_clip_are_asked_together_in_the_order_of_the_clips():
    clips = ["b", "a", "b", "c", "a", "b", "c"]
    entries = [
        Entry(index, "n", clip.encode().hex() * 32, None, dup_of="x" if index == 5 else "")
        for index, clip in enumerate(clips)
    ]
    rows = order_used([ValueError("bad"), *entries])
    assert rows.tolist() == [0, 2, 1, 4, 3, 6]
    assert order_used([]).tolist() == []


def test_the_line_of_progress_says_rate_failures_and_time():
    progress, now = Progress(), [0.0]
    meter = Meter(progress, 100, 4, attempts=1, clock=lambda: now[0])
    assert "0 of 100 records; replies: none, 0.0 a second; time left unknown" in meter.describe()
    progress.replies, progress.failures, now[0] = {"describe": 50, "think": 50}, {"rate": 3}, 10.0
    for _ in range(40):
        progress.finish(2)
    said = meter.describe()
    assert "40 of 100 records; replies: describe 50, think 50, 10.0 a second; 3 failed" in said
    assert said.endswith("about 10 s left")  # 60 units of 2 replies, 20 of them there
