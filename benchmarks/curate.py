"""How much of a server's time curation uses, and how it keeps to a rate limit.

    python benchmarks/curate.py --json

A server in a process of its own answers every request after half a second, or `--rate` requests a
second with bursts of a fifth of a second and 429 for the rest. Asked are (1) short texts, 64 in
flight, (2) 32 pictures of 20 KB in each request, 32 in flight, and (3) texts under the rate limit,
which is unknown, and then configured. Ours is the whole way of a request: key, ledger, a commit
before and one after it, pacing, checks. The peer is the official `openai` client under a semaphore,
with its own retries, which keeps nothing. A share is that of the time in which an ideal client
would be done, and falls on a busy machine; processor milliseconds a request do not. Ratios are ours
over the peer's for shares and the peer's over ours for milliseconds: above 1 ours is better.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import pathlib
import random
import re
import statistics
import tempfile
import time

import host
import openai

from videorft_jax.curation.budget import Ledger, Limits
from videorft_jax.curation.client import HttpClient, make_body
from videorft_jax.curation.endpoints import Endpoint, Price
from videorft_jax.curation.requests import Picture, Request
from videorft_jax.curation.running import Runner
from videorft_jax.curation.store import Store

DELAY_S = 0.5
PICTURES = [random.Random(i).randbytes(20_000) for i in range(32)]


def serve(pipe, rate: float) -> None:
    """Answers chat completions until the process ends; every message on `pipe` is answered by the
    counts of good and refused requests since the last."""
    counts = {"good": 0, "refused": 0}
    level, at = rate / 5, time.monotonic()

    async def answer(reader, writer):
        nonlocal level, at
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"(?i)content-length: *(\d+)", head)[1]))
                now = time.monotonic()
                level, at = min(level + (now - at) * rate, rate / 5), now
                if rate and level < 1:
                    counts["refused"] += 1
                    body, status = b'{"error": {"code": "rate_limit_exceeded"}}', 429
                else:
                    level -= 1
                    await asyncio.sleep(DELAY_S)
                    counts["good"] += 1
                    body, status = REPLY, 200
                lines = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
                writer.write(f"{lines}content-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 26)
        pipe.send(server.sockets[0].getsockname()[1])
        while True:
            await asyncio.to_thread(pipe.recv)
            pipe.send(dict(counts))
            counts.update(good=0, refused=0)

    asyncio.run(run())


REPLY = json.dumps(
    {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": "a " * 400}}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 400, "total_tokens": 1300},
    }
).encode()  # fmt: skip


def make_request(number: int, has_pictures: bool) -> Request:
    pictures = tuple(Picture(f"{number}.{i}", 448, 448) for i in range(32)) if has_pictures else ()
    return Request(
        stage="think", unit=str(number), endpoint="think", model="m", system="s",
        parts=(*pictures, f"question {number} " + "word " * 600), max_tokens=500, temperature=0.5,
        top_p=1.0, seed=number, template="t", load=(lambda: PICTURES) if has_pictures else None,
    )  # fmt: skip


async def ask_ours(url, requests, in_flight, folder, rpm=0):
    end = Endpoint(
        "think", "m", base_urls=(url,), price=Price(1, 1, 1), concurrency=in_flight, rpm=rpm
    )
    with Store(pathlib.Path(folder) / "store.sqlite") as store:
        async with HttpClient(end) as client:
            ends = {"think": end}
            runner = Runner(store, Ledger(store, ends, Limits()), ends, {"think": client})
            queue = iter(requests)

            async def work():
                for request in queue:
                    await runner.ask(request)

            await asyncio.gather(*(work() for _ in range(in_flight)))


async def ask_peer(url, requests, in_flight):
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=20, timeout=600)
    free = asyncio.Semaphore(in_flight)

    async def work(request):
        async with free:
            body = make_body(request, request.load() if request.load else [])
            await client.chat.completions.create(**body)

    await asyncio.gather(*(work(request) for request in requests))
    await client.close()


def measure(kind, url, requests, in_flight, rpm=0) -> tuple[float, float]:
    """(seconds of all requests, processor seconds of this process)."""
    with tempfile.TemporaryDirectory() as folder:
        started, busy = time.perf_counter(), time.process_time()
        if kind == "ours":
            asyncio.run(ask_ours(url, requests, in_flight, folder, rpm))
        else:
            asyncio.run(ask_peer(url, requests, in_flight))
        return time.perf_counter() - started, time.process_time() - busy


def _say(name: str, value: float) -> str:
    return f"{name} {value:.2f}" if name.endswith("_ms") else f"{name} {value:.1%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waves", type=int, default=8, help="requests for each place in flight")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="limit, requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of requests under the limit")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    spawn = multiprocessing.get_context("spawn")
    servers = {}
    for name, rate in (("free", 0.0), ("limited", options.rate)):
        pipe, other = spawn.Pipe()
        process = spawn.Process(target=serve, args=(other, rate), daemon=True)
        process.start()
        servers[name] = (f"http://127.0.0.1:{pipe.recv()}/v1", pipe, process)
    found = {"ours": {}, "peer": {}}
    for name, in_flight, has_pictures in (("text", 64, False), ("pictures", 32, True)):
        requests = [make_request(i, has_pictures) for i in range(options.waves * in_flight)]
        shares, busy = {"ours": [], "peer": []}, {"ours": [], "peer": []}
        for _ in range(options.rounds):
            for kind, own in shares.items():
                seconds, cpu = measure(kind, servers["free"][0], requests, in_flight)
                own.append(options.waves * DELAY_S / seconds)
                busy[kind].append(1000 * cpu / len(requests))
        for kind, own in shares.items():
            found[kind][f"{name}_share"] = statistics.median(own)
            found[kind][f"{name}_cpu_ms"] = statistics.median(busy[kind])
    url, pipe, _ = servers["limited"]
    requests = [make_request(i, False) for i in range(int(options.rate * options.seconds))]
    ways = (
        ("ours", "limited", 0), ("peer", "limited", 0), ("ours", "configured", 60 * options.rate)
    )  # fmt: skip
    for kind, name, rpm in ways:
        seconds, _ = measure(kind, url, requests, 64, int(rpm))
        pipe.send("counts")
        counts = pipe.recv()
        found[kind][f"{name}_goodput"] = options.seconds / seconds
        found[kind][f"{name}_refused"] = counts["refused"] / sum(counts.values())
    for kind, own in found.items():
        print(f"{kind}: " + ", ".join(_say(name, value) for name, value in own.items()))
    for *_, process in servers.values():
        process.terminate()
    if options.json:
        names = ("text_share", "pictures_share", "limited_goodput")
        report = {
            "machine": host.describe() | {"load": os.getloadavg()[0]},
            "shape": vars(options) | {"delay_s": DELAY_S},
            "ours": found["ours"], "peer": found["peer"],
            "ratio": {name: found["ours"][name] / found["peer"][name] for name in names}
            | {"text_cpu": found["peer"]["text_cpu_ms"] / found["ours"]["text_cpu_ms"]},
        }  # fmt: skip
        print(json.dumps(report))


if __name__ == "__main__":
    main()
