"""What a server refuses, and that it stays whole: status, structured error, no leak."""

import base64
import json
import socket
import struct
import threading
import zlib

import httpx2
import numpy as np
import openai
import pytest

from videorft_jax.serving.batcher import Batcher, Completion
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.options import ServeOptions

KEY = "canary-4f1d"
CLIENT = httpx2.Client(timeout=600)
ASK = [{"role": "user", "content": "What moves?"}]


def post(place, content, key=KEY, kind="application/json", path="/v1/chat/completions"):
    headers = {"authorization": f"Bearer {key}", "content-type": kind}
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return CLIENT.post(f"{place.url}{path}", content=body, headers=headers)


def check(place, reply, status, word):
    """One structured error, which shows neither a key nor a place on the disk."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert word in error["message"], error
    assert KEY not in reply.text
    assert str(place.folder) not in reply.text
    assert "Traceback" not in reply.text
    assert "\n" not in error["message"]


MALFORMED = {
    "not JSON": (b"{", "not JSON"),
    "NaN": (b'{"messages": NaN}', "not JSON"),
    "not UTF-8": (b'{"messages": "\xff"}', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "half a pair": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON in UTF-8"),
    "half a key": (
        b'{"messages": [{"role": "user", "content": "a"}], "media_io_kwargs": '
        b'{"video": {"\\udfff": 1}}}', "not JSON in UTF-8"),
    "a list": (b"[]", "no JSON object"),
    "no messages": ({}, "messages"),
    "empty": ({"messages": []}, "messages"),
    "text message": ({"messages": ["a"]}, "no object"),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, "role"),
    "content": ({"messages": [{"role": "user", "content": 3}]}, "content"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "type is none"),
    "null part": ({"messages": [{"role": "user", "content": [None]}]}, "type is none"),
    "no parts": ({"messages": [{"role": "user", "content": []}]}, "at least one part"),
    "no url": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "url"),
    "last": ({"messages": [*ASK, {"role": "assistant", "content": "a"}]}, "last message"),
    "placeholder": ({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "<video>"}]}]}, "placeholder"),
    "temperature": ({"messages": ASK, "temperature": -1}, "temperature"),
    "text number": ({"messages": ASK, "temperature": "1"}, "temperature"),
    "infinite": (
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "temperature"),
    "top_p": ({"messages": ASK, "top_p": 0}, "top_p"),
    "boolean": ({"messages": ASK, "n": True}, "n is no int"),
    "n": ({"messages": ASK, "n": 1000}, "n is 1000"),
    "max_tokens": ({"messages": ASK, "max_tokens": 10**9}, "max_tokens"),
    "seed": ({"messages": ASK, "seed": 2**70}, "seed"),
    "large seed": ({"messages": ASK, "seed": 10**400}, "seed"),
    "large temperature": ({"messages": ASK, "temperature": 10**400}, "temperature"),
    "stop": ({"messages": ASK, "stop": [""]}, "stop"),
    "stops": ({"messages": ASK, "stop": {}}, "stop"),
    "stream": ({"messages": ASK, "stream": "yes"}, "stream"),
    "usage": ({"messages": ASK, "stream_options": {"include_usage": "no"}}, "include_usage"),
    "format": ({"messages": ASK, "response_format": {"type": "xml"}}, "response_format"),
    "top_logprobs": ({"messages": ASK, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "tops alone": ({"messages": ASK, "top_logprobs": 2}, "without logprobs"),
    "schema": ({"messages": ASK, "response_format": {"type": "json_schema"}}, "no schema"),
    "media keys": ({"messages": ASK, "media_io_kwargs": {"video": {"frames": 3}}}, "not known"),
    "media value": ({"messages": ASK, "media_io_kwargs": {"video": {"fps": -1}}}, "positive"),
    "rate alone": ({"messages": ASK, "media_io_kwargs": {"image": {"fps": 2}}}, "as_frames: true"),
    "no frames": ({"messages": ASK, "media_io_kwargs": {"image": {"fps": 2, "as_frames": False}}},
        "as_frames: true"),
    "too long": ({"messages": [{"role": "user", "content": "ball " * 3000}]}, "at most 1000"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_told_its_fault(place, name):
    body, word = MALFORMED[name]
    check(place, post(place, body), 400, word)


URLS = {
    "http://127.0.0.1:{port}/a.mp4": 400,
    "http://localhost:{port}/redirect": 400,
    "http://127.0.0.1.nip.io:{port}/a.mp4": 400,  # names that lead to a private address
    "http://localtest.me:{port}/a.mp4": 400,
    "http://[::1]:{port}/a.mp4": 400,
    "http://[::ffff:127.0.0.1]:{port}/a.mp4": 400,
    "http://2130706433:{port}/a.mp4": 400,
    "http://0x7f.1:{port}/a.mp4": 400,
    "http://user:word@127.0.0.1:{port}/a.mp4": 400,
    "//127.0.0.1:{port}/a.mp4": 400,
    "HTTP://127.0.0.1:{port}/a.mp4": 400,
    "https://example.org/a.mp4": 400,
    "http://169.254.169.254/latest/meta-data": 400,
    "ftp://127.0.0.1:{port}/a.mp4": 400,
    "gopher://127.0.0.1:{port}/a.mp4": 400,
    "rtsp://127.0.0.1:{port}/a.mp4": 400,
    "concat:/etc/passwd": 400,
    "/etc/passwd": 400,
    "http://[": 400,
    "": 400,
    "data:text/html;base64,AAAA": 400,
    "data:video/mp4,AAAA": 400,
    "data:video/mp4;base64,%%%": 400,
    "data:video/mp4;base64,AAAA": 400,
    "file://127.0.0.1/etc/passwd": 400,
    "file://evil.example/etc/passwd": 400,
    "file:///etc/passwd": 403,
    "file:/etc/passwd": 403,
    "FILE:////etc/passwd": 403,
    "file://localhost/etc/passwd": 403,
    "file:///proc/self/environ": 403,
    "file:///dev/zero": 403,
    "file:///etc/nothing-here": 403,
    "file://{root}/../model/config.json": 403,
    "file://{root}/%2e%2e/model/config.json": 403,
    "file://{root}/..%2fmodel%2fconfig.json": 403,
    "file://{root}/..%5cmodel%5cconfig.json": 403,
    "file://{root}-other/a.mp4": 403,
    "file://{root}/link.mp4": 403,
    "file://{root}/folder/config.json": 403,
    "file://{root}/%66older/config%2ejson": 403,
    "file://{root}/%252e%252e/model/config.json": 404,  # decoded once, so that it is a plain name
    "file://{root}/none.mp4": 404,
    "file://{root}/pipe.mp4": 404,
    "file://{root}": 404,
    "file://{root}/notes.mp4": 400,
    "file:///a%00b": 403,
}


@pytest.mark.parametrize("kind", ["video_url", "image_url"])
def test_no_url_leads_out(place, kind, monkeypatch):
    """Nothing is fetched, no name is looked up, and what is outside the roots looks the same, there
    or not."""
    asked, real = [], socket.getaddrinfo

    def look_up(host, *rest, **more):
        asked.append(host)
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    outside = set()
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        for url, status in URLS.items():
            url = url.format(root=place.clips[0].parent, port=canary.getsockname()[1])
            body = {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]}
            reply = post(place, body)
            assert reply.status_code == status, (url, reply.text)
            check(place, reply, status, "")
            assert "root:" not in reply.text
            outside.add(reply.text if status == 403 else None)
        with pytest.raises(BlockingIOError):  # Nobody has called.
            canary.accept()
    assert set(asked) <= {"127.0.0.1"}  # the server that is tested
    assert len(outside) == 2


def test_names_of_files_are_written_as_in_urls(place):
    """Names hold a space, a percent sign and a hash; a link inside the roots is followed."""
    clip = place.clips[0]
    sizes = set()
    for name in ("a b.mp4", "50% #1?.mp4"):
        other = clip.with_name(name)
        other.symlink_to(clip)
        part = {"type": "video_url", "video_url": {"url": other.as_uri()}}
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        reply = post(place, body)
        assert reply.status_code == 200, reply.text
        sizes.add(reply.json()["usage"]["prompt_tokens"])
    assert len(sizes) == 1


def test_media_are_bounded(place):
    """Data beyond the limit, a picture of too many pixels, and too many pictures."""
    large = "data:video/mp4;base64," + "A" * 400_000
    part = {"type": "video_url", "video_url": {"url": large}}
    check(place, post(place, {"messages": [{"role": "user", "content": [part]}]}), 413, "300000")
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    url = f"data:image/png;base64,{base64.b64encode(bomb).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    check(place, post(place, {"messages": [{"role": "user", "content": [part]}]}), 400, "")
    body = {"messages": [{"role": "user", "content": [part] * 257}]}
    check(place, post(place, body), 400, "at most 256")


def test_keys_bodies_kinds_and_paths(place):
    with pytest.raises(openai.AuthenticationError) as caught:
        place.client("wrong").chat.completions.create(model="tiny", messages=ASK)
    assert KEY not in str(caught.value)
    check(place, post(place, b"{}", key="two words"), 401, "API key")
    check(place, httpx2.post(f"{place.url}/v1/chat/completions", json={}), 401, "API key")
    check(place, post(place, b" " * 400_000), 413, "300000")
    chunks = (b" " * 100_000 for _ in range(5))  # The body's length is unknown.
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = f"{place.url}/v1/chat/completions"
    check(place, httpx2.post(url, content=chunks, headers=headers), 413, "300000")
    check(place, post(place, b"{}", kind="text/plain"), 415, "application/json")
    check(place, post(place, {"messages": ASK, "model": "gpt-4o"}), 404, "gpt-4o")
    assert post(place, b"{}", path="/v1/files").status_code == 404
    assert httpx2.get(url).status_code == 405


def test_a_full_queue_says_when_to_come_again(place):
    body = {"messages": ASK, "n": 20, "max_tokens": 200, "temperature": 1}
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(post(place, body))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(reply.status_code for reply in replies)
    assert set(statuses) == {200, 429}
    assert statuses[0] == 200
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    check(place, refused, 429, "again later")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_cancelled_request_frees_its_place(place, streamed, monkeypatch):
    """The second chunk is held until the server knows that the client is gone; no third is run."""
    batcher, decode = place.server.batcher, place.server.batcher.programs.decode
    post(place, {"messages": ASK, "max_tokens": 1})  # The batch sizes are compiled by then.
    place.wait(lambda: not batcher.num_active)
    chunks, gone = [], threading.Event()

    def held(*args):
        chunks.append(args)
        assert len(chunks) < 2 or gone.wait(600)
        return decode(*args)

    monkeypatch.setattr(batcher.programs, "decode", held)
    # The greedy reply has no end before its 48 tokens, which are twelve chunks.
    body = {"messages": ASK, "max_tokens": 48, "temperature": 0, "n": 8, "stream": streamed}
    before = place.server.counts.ended["cancelled"]
    if streamed:
        events = place.client().chat.completions.create(model="tiny", **body)
        next(iter(events))
        place.wait(lambda: len(chunks) == 2)
        events.close()
    else:
        content = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(place.url.rsplit(":", 1)[1]))) as held_open:
            held_open.sendall(head.encode() + content)
            place.wait(lambda: len(chunks) == 2)
    place.wait(lambda: place.server.counts.ended["cancelled"] == before + 1)
    gone.set()
    place.wait(lambda: not batcher.num_active)
    assert len(chunks) <= 2


def test_a_reply_that_takes_too_long_is_ended(place, monkeypatch):
    """Decoding waits until both replies have ended, so what is asked is read well in time."""
    options, before = place.server.options, place.server.counts.ended.copy()
    programs, may_decode = place.server.batcher.programs, threading.Event()
    decode = programs.decode

    def wait_and_decode(*inputs):
        assert may_decode.wait(600)
        return decode(*inputs)

    object.__setattr__(options, "timeout_s", 3.0)
    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", wait_and_decode)
        try:
            check(place, post(place, {"messages": ASK, "max_tokens": 200}), 504, "in 3 s")
            reply = post(place, {"messages": ASK, "max_tokens": 200, "stream": True})
        finally:
            object.__setattr__(options, "timeout_s", 600.0)
            may_decode.set()
        place.wait(lambda: not place.server.batcher.num_active)
    assert reply.status_code == 200
    assert "in 3 s" in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")
    assert place.server.counts.ended["timeout"] == before["timeout"] + 2
    assert place.server.counts.ended["done"] == before["done"]


def test_a_body_that_never_arrives_whole_is_refused(place):
    options, before = place.server.options, place.server.counts.ended.copy()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    object.__setattr__(options, "timeout_s", 0.1)
    try:
        with socket.create_connection(("127.0.0.1", int(place.url.rsplit(":", 1)[1]))) as held_open:
            held_open.sendall(head.encode())
            reply = b"".join(iter(lambda: held_open.recv(4096), b""))
    finally:
        object.__setattr__(options, "timeout_s", 600.0)
    told, _, body = reply.partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 408 ")
    error = json.loads(body)["error"]
    assert error["message"] == "the body took more than 0.1 s; send a smaller one"
    assert place.server.counts.ended["slow_body"] == before["slow_body"] + 1


def test_a_fault_ends_its_replies_and_not_the_server(place, monkeypatch):
    programs, ended = place.server.batcher.programs, place.server.counts.ended
    before = ended.copy()

    def fail(*_):
        raise RuntimeError(f"secret {place.folder}")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", fail)
        check(place, post(place, {"messages": ASK, "max_tokens": 9}), 500, "see its log")
        told = post(place, {"messages": ASK, "max_tokens": 9, "stream": True}).text
    assert "see its log" in told
    assert told.endswith("data: [DONE]\n\n")
    assert ended["internal_error"] == before["internal_error"] + 2
    assert ended["done"] == before["done"]
    reply = post(place, {"messages": ASK, "max_tokens": 9, "temperature": 0})
    text = place.model.generate([ASK], 1, max_new_tokens=9, temperature=0.0).texts[0][0]
    assert reply.json()["choices"][0]["message"]["content"] == text


def test_a_fault_before_the_first_request_leaves_none_waiting(place, monkeypatch):
    """What fails while the sizes of the batch are compiled does not end the batcher's thread."""
    batcher, told, is_told = Batcher(place.model, place.server.options), [], threading.Event()

    def fail(*_):
        raise RuntimeError("no memory")

    def tell(_, end):
        told.append(end)
        is_told.set()

    monkeypatch.setattr(batcher, "_warm", fail)
    monkeypatch.setattr(batcher, "_admit", fail)
    batcher.start()
    one = Completion(
        None, tell, limit=1, temperature=0.0, top_p=1.0, seed=0, number=0, is_ranked=False,
        guide=None,
    )  # fmt: skip
    batcher.submit([one])
    assert is_told.wait(60)
    batcher.stop()
    assert [end.status for end in told] == [500]


def test_weights_that_are_not_finite_are_told(place):
    batcher = place.server.batcher
    params, prompts = batcher.model.params, batcher.prompts
    broken = params | {
        "text": params["text"] | {"final_norm": params["text"]["final_norm"] * np.nan}
    }
    prompts.params = broken
    try:
        body = {"messages": [{"role": "user", "content": "Never asked before"}], "max_tokens": 4}
        check(place, post(place, body), 500, "not finite")
    finally:
        prompts.params = params


def test_options_are_checked():
    with pytest.raises(ValueError, match="max_slots is 0"):
        ServeOptions(max_slots=0)
    assert KEY not in repr(ServeOptions(api_key=KEY))
    assert Refused(503, "a").body()["error"]["type"] == "server_error"
