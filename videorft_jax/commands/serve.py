"""`videorft serve`: a checkpoint behind OpenAI's protocol of chat completions."""

import argparse
import dataclasses
import errno
import logging
import os
import signal
import socket

from videorft_jax.commands import media_flags
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.serving.options import ServeOptions

_DEFAULT = ServeOptions()


EXAMPLES = """videorft serve --checkpoint DIR
videorft serve --checkpoint runs/grpo --root /data/clips --port 8000"""


def main(argv: list[str]) -> int:
    """Answers POST /v1/chat/completions and GET /v1/models, /metrics and /health until SIGTERM or
    Ctrl-C, after which replies under way are finished first."""
    given = _make_parser().parse_args(argv)
    media = media_flags.read_changes(given)
    options = _read_options(given)
    try:
        import uvicorn

        from videorft_jax.serving.app import Server
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install 'videorft_jax[serve]'") from None
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    held = _listen(given.host, given.port)
    from videorft_jax import api
    from videorft_jax.training.compiler_memory import give_back_memory

    give_back_memory()
    model = api.load(
        given.checkpoint,
        dtype=given.dtype,
        adapter=given.adapter,
        media=media,
        download=given.download,
        strip_prefix=given.strip_prefix,
    )
    system = model.system if given.system is None else given.system
    options = dataclasses.replace(options, system=system)
    config = uvicorn.Config(
        Server(model, options).app, log_level="warning", access_log=False,
        timeout_graceful_shutdown=int(options.timeout_s) + 1, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def stop(*_):
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        # One that comes before uvicorn looks counts; one that uvicorn raises at its end changes
        # nothing.
        signal.signal(number, stop)
    held.listen(config.backlog)  # who reads the line may come before the server looks
    print(f"serving {options.name} at {_write_address(held)}/v1", flush=True)
    server.run(sockets=[held])
    print_last_line("no request is answered any more", "serve", f"--checkpoint={given.checkpoint}")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="videorft serve", usage=EXAMPLES, description=main.__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="Hugging Face folder, its name on the hub, or a run")
    add("--download", action="store_true", help="fetch a name of the hub")
    add("--adapter", help="PEFT folder of LoRA, merged into the weights")
    add("--strip_prefix", default="", help="begin of all tensors' names to ignore, as module.")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="what it is computed in; default: %(default)s")  # fmt: skip
    add("--host", default="127.0.0.1",
        help="address; one that is not loopback needs a key; default: %(default)s")  # fmt: skip
    add("--port", type=int, default=8000, help="0: any that is free; default: %(default)s")
    add("--name", default=_DEFAULT.name,
        help="what the model is called in requests; default: %(default)s")  # fmt: skip
    add("--root", action="append", default=[], help="folder whose files file:// URLs may name")
    add("--api_key_env", help="environment variable that holds the API key clients must send")
    for name, text in (
        ("max_body", "bytes of a request"),
        ("max_queue", "completions that wait"),
        ("max_slots", "completions decoded side by side"),
        ("max_prompt", "tokens of a prompt"),
        ("max_new_tokens", "tokens of a completion"),
        ("max_media", "clips and pictures of a request"),
        ("cache_bytes", "bytes of device memory for prompts and clips that come again"),
    ):
        add(f"--{name}", type=int, default=getattr(_DEFAULT, name),
            help=f"most {text}; default: %(default)s")  # fmt: skip
    add("--chunk", type=int, default=_DEFAULT.chunk,
        help="tokens between joins of new requests; default: %(default)s")  # fmt: skip
    add("--timeout_s", type=float, default=_DEFAULT.timeout_s,
        help="most seconds of a request; default: %(default)s")  # fmt: skip
    media_flags.add_flags(parser)
    return parser


def _read_options(given: argparse.Namespace) -> ServeOptions:
    key = ""
    if given.api_key_env:
        key = os.environ.get(given.api_key_env, "")
        if not key or not key.isascii() or any(letter.isspace() for letter in key):
            raise ValueError(
                f"--api_key_env={given.api_key_env}: the variable holds no key; export it first"
            )
    elif given.host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"--host={given.host} is not loopback; give --api_key_env with it")
    for root in given.root:
        if not os.path.isdir(root):
            raise ValueError(f"--root={root}: no such folder")
    names = ("name", "max_body", "max_queue", "max_slots", "max_prompt", "max_new_tokens", "chunk",
             "max_media", "timeout_s", "cache_bytes")  # fmt: skip
    roots = tuple(os.path.realpath(root) for root in given.root)
    values = {name: getattr(given, name) for name in names}
    return ServeOptions(roots=roots, api_key=key, **values)


def _listen(host: str, port: int) -> socket.socket:
    """The socket, bound before the weights are loaded, so that a port in use is told at once."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port={port}: give 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        at_fault = f"--port={port}: {error.strerror}; choose another"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            at_fault = f"--host={host}: {error.strerror}; give an address of this machine"
        raise ValueError(at_fault) from None
    return held


def _write_address(held) -> str:
    """The address of a socket as clients write it, that of IPv6 in brackets."""
    host, port = held.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
