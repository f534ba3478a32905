"""Numbers, flags and pools that cannot work are one line, and nothing is asked."""

import json

import pytest
from chat_server import ChatServer
from curation_run import ask, make_pool, write_config

from videorft_jax import cli

ENDPOINTS = {
    "temperature = nan": "temperature is nan; give a number from 0",
    "context = 600": "context is 600, of which a reply takes max_output = 600; give more",
}
FLAGS = {
    ("--sample=0",): "--sample=0: give the number of records, such as 20",
    ("--export_batch=",): "--export_batch= is empty; give a value, or leave the flag out",
    ("--sample=2", "--dry_run"): "--dry_run is of all records; leave --sample out",
    ("--sample=2", "--merge"): "--merge is of all records; leave --sample out",
    (
        "--merge",
        "--retry_dead",
    ): "--merge asks nothing again; give --retry_dead",
}


@pytest.fixture
def refuse(tmp_path, capsys):
    """Calls the command, of which one line and no request is expected."""
    pool = make_pool(tmp_path / "pool", [ask(0)])

    def call(said, *flags, records=pool, **fields):
        with ChatServer() as server:
            config = write_config(tmp_path / "c.toml", records, server.url, **fields)
            assert (
                cli.main(["curate", f"--config={config}", f"--workdir={tmp_path}/w", *flags]) == 2
            )
            assert server.log == []
        text = capsys.readouterr().err
        assert said in text.splitlines()[-1]
        return text

    return call


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_numbers_of_an_endpoint_are_looked_at_first(refuse, endpoint):
    text = refuse(f"endpoint describe: {ENDPOINTS[endpoint]}", endpoint=endpoint)
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_would_ask_about_everything_are_refused(refuse, flags):
    assert len(refuse(FLAGS[flags], *flags).splitlines()) == 1


def test_a_pool_without_a_usable_record_is_no_success(refuse, tmp_path):
    pool = tmp_path / "pool" / "bad.jsonl"
    row = {
        "problem_id": 1, "problem": ask(1), "data_type": "image", "problem_type": "free-form",
        "options": [], "process": "", "solution": "<answer>b</answer>", "path": "./gone.png",
        "data_source": "made up",
    }  # fmt: skip
    pool.write_text(f'{{"half": \n{json.dumps(row)}\n')
    said = "none of its 2 records can be asked about; "
    refuse(f"{pool}: {said}{tmp_path / 'w' / 'quarantine.jsonl'} says why", records=pool)
    rows = [json.loads(line) for line in (tmp_path / "w" / "quarantine.jsonl").open()]
    assert len(rows) == 2
