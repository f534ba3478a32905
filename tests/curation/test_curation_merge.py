"""Shards that are merged again after some of them went on: money and dead letters are those of the
shards as they are then."""

import json

from chat_server import ChatServer
from curation_run import ask, make_pool, write_config

from videorft_jax.curation.budget import Ledger
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.run import Curation, merge
from videorft_jax.curation.store import Store

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
