"""Shards and the flags about them: what is merged again after some shards went on, what a run says
may follow it, and which flags do not go together."""

import json
import shlex

import pytest
from chat_server import ChatServer
from curation_run import ask, make_pool, write_config

from videorft_jax import cli
from videorft_jax.curation import frames
from videorft_jax.curation.budget import Ledger
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.run import Curation, merge
from videorft_jax.curation.store import Store
from videorft_jax.data.media.contract import MediaError
from videorft_jax.data.media.load import load_media

PRICED = "price = {input = 1.0, cached = 1.0, output = 2.0}"


def test_shards_that_were_merged_before_are_merged_anew(tmp_path):
    questions = [ask(i, "html" if i in (2, 5) else "") for i in range(6)]
    pool, workdir = make_pool(tmp_path / "pool", questions), tmp_path / "w"

    def run_shards():
        """Nano-dollars that the ledger of each shard holds after it has asked for all."""
        spent = []
        for number in range(2):
            with Curation(options, str(workdir), (number, 2)) as own:
                own.store.revive()
                spent.append(own.run().spent)
        return spent

    def look():
        with Store(workdir / "store.sqlite") as store:
            ledger = Ledger(store, options.endpoints, options.limits)
            return ledger.spent, [row["reason"] for row in store.dead_rows()]

    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=PRICED)
        options = read_config(config)
        spent = run_shards()
        merge(options, str(workdir))
        assert look() == (sum(spent), ["bad_body"] * 2)
        merge(options, str(workdir))
        assert look() == (sum(spent), ["bad_body"] * 2)
        server.drills = False  # The server is well again.
        again = run_shards()
        counts = merge(options, str(workdir))
    assert sum(again) > sum(spent) > 0
    assert look() == (sum(again), [])
    assert (counts.accepted, counts.pending) == (6, 0)
    dead = (workdir / "dead.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in dead] == []


def test_the_last_line_of_a_run_names_a_command_that_works(tmp_path, capsys):
    pool, workdir = make_pool(tmp_path / "pool", [ask(i) for i in range(4)]), tmp_path / "my w"

    def follow(*flags):
        """The words of the command that the last line of a run with these flags names."""
        assert cli.main(["curate", f"--config={config}", f"--workdir={workdir}", *flags]) == 0
        last = "".join(capsys.readouterr()[::-1]).strip().splitlines()
        (line,) = [line for line in last if "; next: videorft " in line]
        return shlex.split(line.split("; next: videorft ")[1])

    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        again = follow("--dry_run")
        assert again == ["curate", f"--config={config}", f"--workdir={workdir}"]
        assert follow("--shard=0/2") == follow("--shard=1/2") == [*again, "--merge"]
        for words in (follow("--merge"), follow()):
            assert cli.main(words) == 0
            assert "4 of 4 records are good" in "".join(capsys.readouterr())
        server.right, workdir = lambda digest: False, tmp_path / "no chain"
        assert cli.main(follow()) == 0  # The questions are there.
        assert "4 of 4 records are good" in "".join(capsys.readouterr())
        for path in pool.parent.glob("*.png"):
            path.write_bytes(b"")
        workdir = tmp_path / "no clip"
        assert cli.main(["curate", f"--config={config}", f"--workdir={workdir}"]) == 2
        said = "".join(capsys.readouterr())
        assert "4 records of the pool cannot be used (4 empty)" in said
        assert "none of its 4 records can be asked about" in said.splitlines()[-1]


@pytest.mark.parametrize("flags", [
    ["--dry_run", "--sample=2"], ["--merge", "--sample=2"], ["--export_batch=b", "--sample=2"],
    ["--import_batch", "b", "--sample=2"], ["--merge", "--retry_dead"],
])  # fmt: skip
def test_flags_that_would_do_nothing_are_refused(tmp_path, capsys, flags):
    config = write_config(
        tmp_path / "c.toml", make_pool(tmp_path / "pool", [ask(0)]), "http://h/v1"
    )
    assert cli.main(["curate", f"--config={config}", f"--workdir={tmp_path}/w", *flags]) == 2
    (line,) = "".join(capsys.readouterr()).strip().splitlines()
    assert flags[0].split("=")[0] in line
    assert flags[-1].split("=")[0] in line
    assert not (tmp_path / "w").exists()


def test_clips_that_ran_out_of_time_are_read_again(tmp_path, monkeypatch):
    pool, slow = make_pool(tmp_path / "pool", [ask(i) for i in range(3)]), {"./1.png"}
    broken = tmp_path / "pool" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])

    def load(path, *arguments, **keywords):
        if path in slow:
            return MediaError("timeout", "killed after 60 s", path)
        return load_media(path, *arguments, **keywords)

    monkeypatch.setattr(frames, "load_media", load)
    seen = []
    with ChatServer() as server:
        config = write_config(tmp_path / "c.toml", pool, server.url)
        command = ["curate", f"--config={config}", f"--workdir={tmp_path}/w"]
        for flags in ([], ["--retry_dead"]):
            assert cli.main([*command, *flags]) == 0
            text = (tmp_path / "w" / "quarantine.jsonl").read_text()
            seen.append([json.loads(line)["reason"] for line in text.splitlines()])
            slow.clear()  # The machine has time again.
    assert seen[0][0] == "timeout"
    assert len(seen[0]) == 2
    assert seen[1] == seen[0][1:]  # What the file itself is at fault for stays.
