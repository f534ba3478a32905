"""Numbers, flags and pools that cannot work are one line, and nothing is asked."""

import json

import pytest
from chat_server import ChatServer
from curation_run import ask, make_pool, write_config

from videorft_jax import cli

ENDPOINTS = {
    "temperature = -1.0": "temperature is -1.0; give 0 to 2",
    "temperature = nan": "temperature is nan; give 0 to 2",
    "temperature = 1e400": "temperature is inf; give 0 to 2",
    "top_p = 0.0": "top_p is 0.0; give above 0 to 1",
    "top_p = nan": "top_p is nan; give above 0 to 1",
    "deadline_s = inf": "deadline_s is inf; give seconds above 0",
    "deadline_s = nan": "deadline_s is nan; give seconds above 0",
    "breaker_s = 0.0": "breaker_s is 0.0; give seconds above 0",
    "breaker_failures = 0": "breaker_failures is below 1; give a number",
    "context = 600": "context is 600, of which a reply takes max_output = 600; give more",
    "rpm = -1": "rpm is -1; give a number, or 0 where it is not known",
    "tpm = -1": "tpm is -1; give a number, or 0",
    "image_tokens = -1": "image_tokens is -1; give a number, or 0",
    "extra_body = {top_k = nan}": "extra_body holds what JSON cannot; give finite numbers",
    "extra_body = {day = 2026-01-01}": "extra_body holds what JSON cannot; give finite numbers",
}
FLAGS = {
    ("--sample=0",): "--sample=0: give the number of records, such as 20",
    ("--export_batch=",): "--export_batch= is empty; give a value, or leave the flag out",
    ("--sample=2", "--dry_run"): "--sample changes nothing beside --dry_run; leave it out",
    ("--sample=2", "--merge"): "--sample changes nothing beside --merge; leave it out",
    ("--merge", "--retry_dead"): "--merge asks nothing again; leave --retry_dead out",
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
