"""Tokens a second of `videorft serve` and of transformers' own server, on one model on the CPU.

python benchmarks/serve.py [--rounds 3] [--json] [--peer_python PYTHON]

The model has the form of Qwen2.5-VL and 83 M parameters in float32, 333 MB, so that a step of one
completion waits for the memory that holds the weights, as it does in a large model. Each client
asks for greedy answers of 64 tokens, one after another, to questions that were never asked before;
a round has as many clients at once as its name says. First text: from sending a request until the
first text of its stream, the median over requests. `transformers serve` decodes such a model one
request after another; its continuous batching takes only models without a vision tower. It needs
FastAPI and torchvision; name the interpreter of an environment that has them with --peer_python.
The server that does not answer is stopped by a signal. Medians over rounds, without the first,
which compiles. Ends with 1 where the two servers do not say the same.
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import host
import httpx2
import peer

CLIENTS, NEW = (1, 8, 32), 64
WORDS = ["ball", "cube", "left", "right", "red", "blue", "moves", "stops", "fast", "slow", "the"]
SIZES = {
    "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 4, "intermediate_size": 2560, "vision_out_hidden_size": 1024,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}  # fmt: skip


def write_files(folder: pathlib.Path) -> None:
    """The model, which never ends a greedy text, its tokenizer and its processors."""
    import jax
    import numpy as np

    from videorft_jax.data.media.contract import MediaContract
    from videorft_jax.demo.tiny_tokenizer import NUM_BYTES, find_control_ids, train_tiny_tokenizer
    from videorft_jax.models import family
    from videorft_jax.models.hf_writer import write_checkpoint
    from videorft_jax.rollout.client_files import client_files

    tokenizer = train_tiny_tokenizer([" ".join(WORDS), "You are a helpful assistant. user"], 512)
    made, ids = family.find_family("qwen2_5_vl"), find_control_ids(tokenizer)
    values = made.tiny_values(vocab_size=len(tokenizer), **ids, **SIZES)
    config = made.parse_config(values, "the benchmark's model")
    params = jax.tree.map(np.array, family.init_params(config, jax.random.key(0)))
    head, names = params["text"]["head"], ["<|im_end|>", "<|endoftext|>"]
    head[tokenizer.convert_tokens_to_ids(names)] = 0
    head[:NUM_BYTES] = 0  # half characters, which servers stream in different ways
    files = client_files(config, MediaContract(), tokenizer)
    write_checkpoint(folder, params, config, side_files=files)
    tokenizer.save_pretrained(folder)


def start(command: list[str], port: int, log) -> subprocess.Popen:
    """Starts a server, which writes to the file `log`, and waits until it answers."""
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    while True:
        time.sleep(0.2)
        if server.poll() is not None:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} ended:\n{log.read()[-3000:]}")
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return server


def find_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


async def ask(client, url, model, number):
    """(seconds to the first text, text) of one streamed answer."""
    words = random.Random(number).choices(WORDS, k=24)
    body = {"model": model, "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": NEW, "temperature": 0, "stream": True}  # fmt: skip
    started, first, text = time.perf_counter(), None, ""
    async with client.stream("POST", url, json=body) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            delta = event["choices"][0]["delta"] if event.get("choices") else {}
            if delta.get("content"):
                text += delta["content"]
                first = first or time.perf_counter() - started
    return first, text


async def load(url, model, clients, turn):
    """Tokens a second, median seconds to the first text, and the texts of one round; questions of
    other turns are other ones, since a server may keep what it has read."""
    each = max(1, 4 // clients)  # so that one client is measured over more than one answer
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=None, limits=limits) as client:

        async def work(index):
            first = 1000 * turn + index * each
            return [await ask(client, url, model, first + number) for number in range(each)]

        started = time.perf_counter()
        answers = sum(await asyncio.gather(*map(work, range(clients))), [])
        seconds = time.perf_counter() - started
    firsts, texts = zip(*answers, strict=True)
    return len(texts) * NEW / seconds, statistics.median(firsts), texts


@contextlib.contextmanager
def serving(folder, peer_python):
    """Starts both servers and gives name -> (process, URL, model), all but one asleep."""
    ours, other = find_port(), find_port()
    commands = {
        "ours": [sys.executable, "-m", "videorft_jax.cli", "serve", "--checkpoint", str(folder),
                 "--dtype", "float32", "--port", str(ours)],
        "peer": [peer_python, "-m", "transformers.cli.transformers", "serve", str(folder),
                 "--device", "cpu", "--dtype", "float32", "--port", str(other)],
    }  # fmt: skip
    running, sides = [], {}
    with tempfile.TemporaryFile("w+") as log:
        try:
            for (name, command), port, model in zip(
                commands.items(), (ours, other), ("videorft", str(folder)), strict=True
            ):
                running.append(server := start(command, port, log))
                sides[name] = server, f"http://127.0.0.1:{port}/v1/chat/completions", model
                server.send_signal(signal.SIGSTOP)
            yield sides
        finally:
            for server in running:
                server.kill()
                server.wait()


def measure(sides, name, clients, turn):
    """One round with one server: tokens a second, seconds to the first text, texts."""
    server, url, model = sides[name]
    server.send_signal(signal.SIGCONT)
    try:
        return asyncio.run(load(url, model, clients, turn))
    finally:
        server.send_signal(signal.SIGSTOP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {"ours": {}, "peer": {}, "ratio": {}}
    is_same = True
    print(f"on {host.describe()}")
    with tempfile.TemporaryDirectory() as place:
        write_files(folder := pathlib.Path(place, "model"))
        with serving(folder, options.peer_python) as sides:
            for clients in CLIENTS:
                found = {name: [] for name in sides}
                for turn in range(options.rounds + 1):
                    texts = {}
                    for name in sides:
                        rate, first, texts[name] = measure(
                            sides, name, clients, 10 * clients + turn
                        )
                        found[name].append((rate, first))
                    is_same &= texts["ours"] == texts["peer"]
                for name, rounds in found.items():
                    rates, firsts = zip(*rounds[1:], strict=True)
                    report[name][f"tokens_per_s_{clients}"] = statistics.median(rates)
                    report[name][f"first_text_s_{clients}"] = statistics.median(firsts)
                ours, other = report["ours"], report["peer"]
                rate, first = f"tokens_per_s_{clients}", f"first_text_s_{clients}"
                report["ratio"][rate] = ours[rate] / other[rate]
                report["ratio"][first] = other[first] / ours[first]
                print(
                    f"{clients:2} clients: ours {ours[rate]:6.1f} tokens/s, first text after "
                    f"{ours[first]:5.2f} s; transformers {other[rate]:6.1f} tokens/s, "
                    f"{other[first]:5.2f} s; texts {'equal' if is_same else 'DIFFER'}", flush=True,
                )  # fmt: skip
    ours = report["ours"]
    report["ratio"]["ours_32_to_1"] = ours["tokens_per_s_32"] / ours["tokens_per_s_1"]
    print(f"32 clients get {report['ratio']['ours_32_to_1']:.1f} times the tokens of one")
    if options.json:
        shape = {"parameters": 83_000_000, "clients": CLIENTS, "new_tokens": NEW}
        print(json.dumps({"machine": peer.machine(), "shape": shape, **report}))
    return 0 if is_same else 1


if __name__ == "__main__":
    raise SystemExit(main())
