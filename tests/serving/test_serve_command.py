"""The command: what it refuses at once, and how it stops."""

import json
import os
import signal
import socket
import types

import openai
import pytest
import tiny_run
import uvicorn

from videorft_jax import api, cli
from videorft_jax.commands import serve
from videorft_jax.serving import app
from videorft_jax.serving.media import make_chat
from videorft_jax.serving.options import ServeOptions
from videorft_jax.serving.protocol import read_chat

MODEL = ["serve", "--checkpoint", "nowhere"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "not loopback; give --api_key_env"),
        (["--api_key_env", "NO_SUCH_KEY"], "holds no key; export it"),
        (["--root", "/no/such"], "no such folder"),
        (["--max_slots", "0"], "max_slots is 0"),
        (["--timeout_s", "inf"], "timeout_s is inf"),
        (["--host", "192.0.2.1", "--api_key_env", "SERVE_KEY"], "--host=192.0.2.1: "),
        (["--port", "70000"], "give 0 to 65535"),
        (["--port", "0"], "nowhere/config.json: no such file"),
        (["--frames", "4", "--fps", "2"], "both say how many frames"),
    ],
)
def test_what_cannot_work_is_one_line(flags, said, capsys, monkeypatch):
    monkeypatch.setenv("SERVE_KEY", "canary")
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


def test_an_address_of_ipv6_is_written_in_brackets():
    held = types.SimpleNamespace(getsockname=lambda: ("::1", 8000, 0, 0))
    assert serve._write_address(held) == "http://[::1]:8000"


def test_flags_change_how_clips_are_read(monkeypatch, capsys):
    """The contract of the run or export is read by `load`; the flags replace fields of it."""
    asked = {}

    def load(folder, **options):
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(api, "load", load)
    flags = ["--port=0", "--frames=4", "--max_pixels=3136", "--system=Be brief."]
    assert cli.main([*MODEL, *flags]) == 2
    four = {"num_frames": None, "min_frames": 4, "max_frames": 4}
    assert asked["media"] == four | {"max_pixels": 3136, "image_max_pixels": 3136}
    assert "enough" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [([], "Think."), (["--system=Be brief."], "Be brief."), (["--system="], "")],
)
def test_the_system_turn_is_that_of_training(flags, wanted, monkeypatch, capsys):
    """A flag replaces it, and an empty one leaves it to the chat format."""

    def serve(model, options):
        raise ValueError(f"asked behind {options.system!r}")

    monkeypatch.setattr(api, "load", lambda *_, **__: types.SimpleNamespace(system="Think."))
    monkeypatch.setattr(app, "Server", serve)
    assert cli.main([*MODEL, "--port=0", *flags]) == 2
    assert f"asked behind {wanted!r}" in capsys.readouterr().err


def test_a_system_turn_is_that_of_chats_without_one():
    options = ServeOptions(system="Be brief.")
    turns = [{"role": "user", "content": "What moves?"}]
    own = [{"role": "system", "content": "Be long."}, *turns]
    for messages, wanted in ((turns, "Be brief."), (own, "Be long.")):
        body = json.dumps({"model": options.name, "messages": messages}).encode()
        chat = make_chat(read_chat(body, options), None, options)
        assert chat == [{"role": "system", "content": wanted}, *turns]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_the_line_and_the_server_ends_it(place, monkeypatch, capsys, number):
    """Found by a drill: who read "serving ..." and stopped the server at once waited for ever."""
    monkeypatch.setattr(api, "load", lambda *_, **__: place.model)
    real = uvicorn.Server.run

    def run(server, **how):
        os.kill(os.getpid(), number)
        assert server.should_exit
        real(server, **how)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    kept = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert serve.main(["--checkpoint=model", "--port=0"]) == 0
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)
    said = capsys.readouterr().out
    assert "serving" in said
    assert "no request is answered any more" in said


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
