"""An API key is in the header of a request and nowhere else."""

import asyncio
import logging
import pathlib
import traceback

import pytest
from chat_server import ChatServer
from curation_run import ask, make_pool, run, run_here, write_config

from videorft_jax.curation.client import HttpClient
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.requests import Request


def test_11_the_key_is_nowhere_but_in_the_header(tmp_path):
    canary = "sk-canary-4f9d1c"
    pool = make_pool(tmp_path / "pool", [ask(i, "malformed") for i in range(3)])
    with ChatServer() as server:
        config = write_config(
            tmp_path / "c.toml", pool, server.url, endpoint='key_env = "CANARY_KEY"'
        )
        _, _, text = run(config, tmp_path / "w", env={"CANARY_KEY": canary})
        assert all(f"Bearer {canary}".encode() in row["head"] for row in server.log)
        assert len(server.log) >= 3
        server.status = (401, {}, b"{}")
        code, _, more = run(config, tmp_path / "v", env={"CANARY_KEY": canary})
        assert code == 1
    assert canary not in text + more
    for folder in ("w", "v"):
        for path in (tmp_path / folder).rglob("*"):
            assert not path.is_file() or canary.encode() not in path.read_bytes(), path


def test_11_the_key_is_in_no_debug_log_error_or_repr(tmp_path, caplog, monkeypatch):
    canary = "canary4f9d1c"  # Its looks give nothing away to a filter.
    monkeypatch.setenv("CANARY_KEY", canary)
    for name in ("", "httpx2", "videorft_jax"):
        caplog.set_level(logging.DEBUG, name)
    drills = ("drop", "malformed", "html", "rate")
    pool = make_pool(tmp_path / "pool", [ask(i, name) for i, name in enumerate(drills)], clips=1)
    with ChatServer() as server:
        key = 'key_env = "CANARY_KEY"'
        config = write_config(tmp_path / "c.toml", pool, server.url, endpoint=key)
        said = [run_here(config, tmp_path / "w")]
        server.status = (401, {"x-echo": "none"}, b"{}")
        said.append(run_here(config, tmp_path / "v"))
        assert len(caplog.records) > 20
        end = read_config(config).endpoints["think"]
        client = HttpClient(end)
    with pytest.raises(Exception, match="unreachable") as caught:
        asyncio.run(client.send(Request("s", "u", "think", "m", "", ("t",), 9, 0.0, 1.0, 0, "t")))
    trace = "".join(traceback.format_exception(caught.value))
    text = caplog.text + trace + repr((said, end, client, vars(client), caught.value))
    text += pathlib.Path("/proc/self/cmdline").read_text()
    assert canary not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path
