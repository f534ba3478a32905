"""A fake chat server on loopback: replies are a function of the body, faults of (drill, try).

A drill is planted by [drill:NAME] in a question, so that any order of requests gives the same
replies. The server speaks HTTP by hand, since most drills are what no server library would send.
"""

import asyncio
import base64
import collections
import contextlib
import email.utils
import hashlib
import json
import re
import threading
import time
import zlib

CHAIN = (
    "I watch the {what} carefully from the beginning to the end and pay attention to the part that "
    "the question asks about. What matters stands out clearly, so comparing the possibilities "
    "leaves one that fits what is to be seen, and nothing else contradicts it at all."
)


class ChatServer:
    """Runs in a thread; use it as a context manager. `log` holds a dict for each request."""

    def __init__(self, right=lambda digest: True, delay_s=0.0, drills=True):
        self.right, self.delay_s, self.drills = right, delay_s, drills
        self.log, self.tries, self.lock = [], collections.Counter(), threading.Lock()
        self.status = None  # (status, headers, body) for every request
        self.headers = {}  # Every good reply has them.
        self.redirect = "http://127.0.0.1:9/"
        self.think_text = None  # replaces the chain
        self.describe = None  # (description, prompt) -> content, or (content, fields of the choice)
        self.resets = 0  # every so manieth request is reset before its body was read
        self.billed = self.requests = 0
        self.billed_tokens = []  # (input, output) of each reply

    def __enter__(self):
        ready = threading.Event()

        def serve():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
            server = self.loop.run_until_complete(
                asyncio.start_server(self._connect, "127.0.0.1", 0, limit=1 << 26)
            )
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            self.loop.run_forever()
            server.close()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0.05))

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def billed_nano(self, input_dollars, output_dollars):
        """Nano-dollars of all replies at dollars a million tokens."""
        return sum(1000 * (input_dollars * a + output_dollars * b) for a, b in self.billed_tokens)

    def count(self, stage):
        return sum(row["stage"] == stage for row in self.log)

    async def _connect(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                with self.lock:
                    self.requests += 1
                if self.resets and self.requests % self.resets == 0:
                    writer.transport.abort()
                    break
                length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
                body = await reader.readexactly(length)
                if not await self._answer(head, body, writer):
                    break
        writer.close()

    async def _answer(self, head, body, writer):
        data = json.loads(body)
        digest = hashlib.sha256(body).hexdigest()
        text = flatten(data)
        stage = data["model"].removeprefix("fake-")
        drill = re.search(r"\[drill:(\w+)\]", text) if self.drills else None
        with self.lock:
            number = self.tries[digest]
            self.tries[digest] += 1
            self.log.append(
                {"at": time.monotonic(), "stage": stage, "digest": digest, "number": number,
                 "drill": drill and drill[1], "head": head, "text": text}
            )  # fmt: skip
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.status:
            return await send(writer, *self.status)
        fault = DRILLS.get(drill[1]) if drill and stage == "think" else None
        if fault:
            handled = await fault(self, writer, number, data, digest)
            if handled is not None:
                return handled
        return await send(writer, 200, self.headers, self.reply(data, digest, stage, text))

    def reply(self, data, digest, stage, text, **changes):
        content = getattr(self, f"_{stage}")(data, digest, text)
        if isinstance(content, tuple):
            content, changes["choice"] = content
        usage = {"prompt_tokens": len(text) // 4 + 1, "completion_tokens": len(content) // 4 + 1}
        with self.lock:
            self.billed += sum(usage.values())
            self.billed_tokens.append(tuple(usage.values()))
        message = {"role": "assistant", "content": content} | changes.pop("message", {})
        choice = {"index": 0, "message": message, "finish_reason": "stop"} | changes.pop(
            "choice", {}
        )
        body = {"id": "x", "model": data["model"], "choices": [choice], "usage": usage}
        return json.dumps(body | changes).encode()

    def _describe(self, data, digest, text):
        times = re.findall(r"\[([\d.]+) s\]", text)
        if not times:
            field = re.search(r'"(\w+)": a list of short texts', text)[1]
            return json.dumps({"caption": f"A plain picture {digest[:8]}.", field: ["a thing"]})
        frames = [
            {"time": float(t), "caption": f"Something moves {digest[:6]}.", "objects": ["a ball"],
             "actions": ["it rolls"], "scene": "a floor", "notable_features": None,
             "spatial_relations": [], "interactions": None}
            for t in times
        ]  # fmt: skip
        said = {"video_caption": "A ball rolls over a floor.", "frames": frames}
        return self.describe(said, text) if self.describe else json.dumps(said)

    def _think(self, data, digest, text):
        gold = re.search(r"\(gold ([^)]*)\)", text)[1]
        answer = gold if self.right(digest) else "nothing"
        chain = self.think_text or CHAIN.format(what=f"thing number {digest[:8]}")
        return f"<think>{chain}</think>\n<answer>{answer}</answer>"

    def _revise(self, data, digest, text):
        chain = re.search(r"\[\[thought \w+\]\]\n(.*)\n\[\[end of thought", text, re.DOTALL)[1]
        return f"<think>{chain.replace('carefully', 'closely')}</think>"


def flatten(data):
    """All text of a request, its images as their digests."""
    texts = []
    for message in data["messages"]:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                raw = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
                texts.append(hashlib.sha256(raw).hexdigest())
    return "\n".join(texts)


async def send(writer, status, headers, body, *, length=None, kind="application/json"):
    fields = {"content-type": kind, "content-length": len(body) if length is None else length}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fields | headers).items())
    writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())
    for start in range(0, len(body), 1 << 16):  # a large body is not copied whole
        writer.write(body[start : start + (1 << 16)])
        await writer.drain()
    return True


def error(code, message=""):
    return json.dumps({"error": {"code": code, "type": code, "message": message}}).encode()


def status_drill(status, code="", headers=None, times=2):
    async def fault(server, writer, number, data, digest):
        if number < times:
            fields = {k: v() if callable(v) else v for k, v in (headers or {}).items()}
            return await send(writer, status, fields, error(code))
        return None

    return fault


def body_drill(body, headers=None, **fields):
    async def fault(server, writer, number, data, digest):
        return await send(writer, 200, headers or {}, body, **fields)

    return fault


def reply_drill(**changes):
    async def fault(server, writer, number, data, digest):
        body = server.reply(data, digest, "think", flatten(data), **json.loads(json.dumps(changes)))
        return await send(writer, 200, {}, body)

    return fault


async def drop(server, writer, number, data, digest):
    if number < 2:
        writer.transport.abort()
        return False
    return None


async def cut_short(server, writer, number, data, digest):
    if number < 2:
        await send(writer, 200, {}, b'{"choices": [', length=5000)
        return False
    return None


async def hang(server, writer, number, data, digest):
    await asyncio.sleep(3600)


async def trickle(server, writer, number, data, digest):
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\n\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)


async def slow_headers(server, writer, number, data, digest):
    for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)


async def redirect(server, writer, number, data, digest):
    return await send(writer, 307, {"location": server.redirect}, b"")


def bomb():
    packer = zlib.compressobj(9, wbits=31)
    block = b"\0" * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(1024)) + packer.flush()


def reasoning(field):
    async def fault(server, writer, number, data, digest):
        text = server._think(data, digest, flatten(data))
        chain, answer = text.removeprefix("<think>").split("</think>\n")
        message = {"content": answer, field: chain}
        if field == "unclosed":
            message = {"content": f"<think>{chain}\n{answer}"}
        body = server.reply(data, digest, "think", flatten(data), message=message)
        return await send(writer, 200, {}, body)

    return fault


def later(seconds):
    return lambda: email.utils.formatdate(time.time() + seconds, usegmt=True)


DRILLS = {
    "rate": status_drill(429, "rate_limit_exceeded", {"retry-after": "1"}),
    "date": status_drill(429, "rate_limit_exceeded", {"retry-after": later(2.5)}, 1),
    "nonsense": status_drill(429, "rate_limit_exceeded", {"retry-after": "abc"}, 1),
    "negative": status_drill(429, "rate_limit_exceeded", {"retry-after": "-1"}, 1),
    "server": status_drill(500),
    "forever": status_drill(500, times=10**9),
    "overloaded": status_drill(503),
    "too_long": status_drill(400, "context_length_exceeded", times=10**9),
    "malformed": status_drill(422, "invalid", times=10**9),
    "empty_wait": status_drill(429, "rate_limit_exceeded", {"retry-after": ""}, 1),
    "quota": status_drill(429, "insufficient_quota", times=10**9),
    "drop": drop, "cut_short": cut_short, "hang": hang, "trickle": trickle,
    "slow_headers": slow_headers, "redirect": redirect,
    "html": body_drill(b"<html>no</html>", kind="text/html"),
    "html_json": body_drill(b"<html>no</html>"),
    "cut_json": body_drill(b'{"choices": ['),
    "empty_body": body_drill(b""),
    "extra": body_drill(b'{"choices": []} x'),
    "utf8": body_drill(b'{"a": "\xff\xfe"}'),
    "large": body_drill(b" " * (50 << 20)),
    "not_gzip": body_drill(b"abc", headers={"content-encoding": "gzip"}),
    "bomb": body_drill(bomb(), headers={"content-encoding": "gzip"}),
    "no_choices": reply_drill(choices=[]),
    "null_choices": reply_drill(choices=None),
    "list": body_drill(b"[]"),
    "error_200": body_drill(error("x")),
    "no_usage": reply_drill(usage=None),
    "negative_usage": reply_drill(usage={"prompt_tokens": -5, "completion_tokens": 1}),
    "nan_usage": reply_drill(usage={"prompt_tokens": float("nan"), "completion_tokens": 1}),
    "large_usage": reply_drill(usage={"prompt_tokens": 5, "completion_tokens": 10**9}),
    "other_model": reply_drill(model="someone-else"),
    "refusal": reply_drill(message={"content": None, "refusal": "no"}),
    "filtered": reply_drill(choice={"finish_reason": "content_filter"}),
    "reasoning": reasoning("reasoning"), "reasoning_content": reasoning("reasoning_content"),
    "unclosed": reasoning("unclosed"),
}  # fmt: skip
