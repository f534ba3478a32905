"""The command: what it refuses at once, and how it stops."""

import os
import signal
import socket

import openai
import pytest
import tiny_run

from videorft_jax import cli

MODEL = ["serve", "--checkpoint", "nowhere"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "not loopback; give --api_key_env"),
        (["--api_key_env", "NO_SUCH_KEY"], "holds no key; export it"),
        (["--root", "/no/such"], "no such folder"),
        (["--max_slots", "0"], "max_slots is 0"),
        (["--port", "70000"], "give 0 to 65535"),
        (["--port", "0"], "nowhere/config.json: no such file"),
    ],
)
def test_what_cannot_work_is_one_line(flags, said, capsys):
    assert cli.main([*MODEL, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_told_before_weights_are_read(capsys):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert cli.main([*MODEL, "--port", str(held.getsockname()[1])]) == 2
    assert "choose another" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_lets_a_reply_end(place, tmp_path):
    """A reply that is under way at SIGTERM arrives whole, then the process ends with 0."""
    server = tiny_run.start(
        tmp_path / "cache", "serve", "--checkpoint", place.folder / "model", "--port", "0",
        "--dtype", "float32", "--max_new_tokens", "300", "--timeout_s", "60",
    )  # fmt: skip
    line = next(line for line in server.stdout if line.startswith("serving"))
    client = openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0, timeout=600)
    events = client.chat.completions.create(
        model="videorft", messages=[{"role": "user", "content": "What moves?"}],
        max_tokens=300, temperature=0, stream=True,
    )  # fmt: skip
    ends = []
    for index, event in enumerate(events):
        if index == 1:
            os.kill(server.pid, signal.SIGTERM)
        ends.append(event.choices[0].finish_reason)
    assert ends[-1] in ("stop", "length")
    assert server.wait(60) == 0
