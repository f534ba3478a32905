"""One attempt over HTTP: a POST of a chat completion whose reply is bounded in bytes and in time.

The request is posted by the HTTP library itself and not through the `openai` package, which reads
the body of an error without a bound, follows redirects with the prompt in hand, and repeats
requests that the ledger would not see.
"""

import asyncio
import base64
import json
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from videorft_jax.curation.endpoints import MOST_TOKENS, Endpoint
from videorft_jax.curation.failures import Failed, classify, read_limits
from videorft_jax.curation.requests import Picture, Reply, Request, estimate_tokens

MAX_BODY = 8 << 20
MAX_ERROR_BODY = 1 << 16
POOL = 8  # connections that one pool looks after
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class HttpClient:
    """Attempts of one endpoint; an async context manager. transport: carries the requests in place
    of sockets."""

    def __init__(self, endpoint: Endpoint, transport: httpx2.AsyncBaseTransport | None = None):
        self.endpoint = endpoint
        self._key = endpoint.read_key()
        self.limits = (0, 0)  # requests and tokens a minute that the server said last
        local = all(
            urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
            for url in endpoint.base_urls
        )
        is_plain = all(urlsplit(url).scheme == "http" for url in endpoint.base_urls)
        # No certificate is read where no connection can need one, be it that of a proxy.
        verify = not (local and is_plain) and httpx2.create_ssl_context()
        # A request looks at every connection of its pool, so that small pools are faster.
        self._clients = [
            httpx2.AsyncClient(
                follow_redirects=False,
                trust_env=not local and transport is None,
                transport=transport,
                verify=verify,
                timeout=endpoint.deadline_s,
                limits=httpx2.Limits(max_connections=POOL),
            )
            for _ in range(-(-endpoint.concurrency // POOL))
        ]
        self._idle = [client for client in self._clients for _ in range(POOL)]

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *_) -> None:
        for client in self._clients:
            await client.aclose()

    async def send(self, request: Request) -> Reply:
        """The reply, or Failed."""
        urls = self.endpoint.base_urls
        url = urls[int(request.key[:8], 16) % len(urls)].rstrip("/")
        pictures = await asyncio.to_thread(request.load) if request.load else []
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        content = json.dumps(make_body(request, pictures)).encode()
        host = urlsplit(url).netloc
        try:
            async with asyncio.timeout(self.endpoint.deadline_s):
                status, fields, body = await self._post(f"{url}/chat/completions", headers, content)
        except TimeoutError:
            raise Failed("timeout", detail=f"no reply in {self.endpoint.deadline_s:g} s") from None
        except _UNSENT as error:
            raise Failed("unreachable", detail=f"{host}: {type(error).__name__}") from None
        except httpx2.HTTPError as error:
            raise Failed("dropped", detail=type(error).__name__) from None
        self.limits = read_limits(fields)
        if status != 200:
            raise classify(status, fields, body, host)
        return read_reply(body, request, self.endpoint)

    async def _post(self, url: str, headers: dict[str, str], content: bytes):
        client = self._idle.pop()
        try:
            return await self._post_by(client, url, headers, content)
        finally:
            self._idle.append(client)

    async def _post_by(self, client, url: str, headers: dict[str, str], content: bytes):
        async with client.stream("POST", url, headers=headers, content=content) as response:
            limit = MAX_BODY if response.status_code == 200 else MAX_ERROR_BODY
            inflate = _inflater(response.headers.get("content-encoding", "identity"))
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += inflate(chunk, limit + 1 - len(body))
                if len(body) > limit:
                    if response.status_code != 200:
                        break  # the status says enough
                    raise Failed("bad_body", 200, f"more than {limit} bytes")
            return response.status_code, response.headers, bytes(body)


def _inflater(encoding: str) -> Callable[[bytes, int], bytes]:
    """A decoder that makes at most the given number of bytes, whatever a bomb would make."""
    if encoding == "identity":
        return lambda chunk, _: chunk
    if encoding not in ("gzip", "deflate"):
        raise Failed("bad_body", 200, "an encoding that was not asked for")
    decoder = zlib.decompressobj(wbits=47)

    def inflate(chunk: bytes, most: int) -> bytes:
        try:
            return decoder.decompress(chunk, max(most, 1))
        except zlib.error:
            raise Failed("bad_body", 200, f"not the {encoding} that its header says") from None

    return inflate


def make_body(request: Request, pictures: list[bytes]) -> dict[str, Any]:
    """The body of a chat completion; `pictures` are the JPEG bytes of the request's pictures."""
    images = iter(pictures)
    content: list[dict[str, Any]] = []
    for part in request.parts:
        if isinstance(part, Picture):
            data = base64.b64encode(next(images)).decode()
            content.append(
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
            )
        else:
            content.append({"type": "text", "text": part})
    messages = [
        {"role": "user", "content": content if request.pictures else "".join(request.parts)}
    ]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    body: dict[str, Any] = {
        "model": request.model.rsplit("@", 1)[0],
        "messages": messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    if request.schema and request.structured == "json_schema":
        schema = {"name": request.stage, "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.schema and request.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body | dict(request.extra_body)


def read_reply(body: bytes, request: Request, endpoint: Endpoint) -> Reply:
    """The reply in a body of status 200. Raises Failed bad_body or bad_shape."""
    try:
        data = _read_json(body)
    except (ValueError, RecursionError):
        raise Failed("bad_body", 200, "not JSON") from None
    try:
        choice = data["choices"][0]
        message = choice["message"]
        texts = {name: message.get(name) for name in ("content", "refusal")}
        thought = message.get("reasoning") or message.get("reasoning_content") or ""
        finish = choice.get("finish_reason") or "stop"
        texts = {name: text or "" for name, text in texts.items()}
        if not all(isinstance(t, str) for t in (*texts.values(), thought, finish)):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failed("bad_shape", 200, "no usable choice") from None
    model = data.get("model")
    model = model[:200] if isinstance(model, str) else ""
    if endpoint.pin_model and model != endpoint.model:
        raise Failed("other_model", 200, f"{model!r} answered for {endpoint.model!r}")
    return Reply(
        reasoning=thought, finish=finish, model=model, **texts, **_usage(data, request, endpoint)
    )


def _read_json(body: bytes) -> Any:
    """The JSON of a body. Half of a surrogate pair, which no file of ours could hold, becomes
    U+FFFD: the reply was paid for, and only this letter of it is lost."""
    data = json.loads(body.decode("utf-8"))
    if b"\\u" not in body:
        return data
    text = json.dumps(data, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _usage(data: dict[str, Any], request: Request, endpoint: Endpoint) -> dict[str, Any]:
    """Tokens as billed; where the server says nothing or nonsense, the worst case and a flag."""
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]

    def sound(value) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 0 <= value <= MOST_TOKENS and value == int(value)

    if all(map(sound, counts)) and counts[0] > 0 and counts[1] <= request.max_tokens:
        cached = int(cached) if sound(cached) and cached <= counts[0] else 0
        return {
            "input_tokens": int(counts[0]),
            "output_tokens": int(counts[1]),
            "cached_tokens": cached,
        }
    return {
        "input_tokens": estimate_tokens(request, endpoint.image_tokens),
        "output_tokens": request.max_tokens,
        "estimated": True,
    }
