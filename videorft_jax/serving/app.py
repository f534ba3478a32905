"""The ASGI application: routes, limits, and the way of a request through the batcher."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from videorft_jax.rollout.room import find_positions
from videorft_jax.serving.batcher import Batcher, Completion
from videorft_jax.serving.clips import Clips
from videorft_jax.serving.counts import Counts
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.grammar import Grammars, Guide
from videorft_jax.serving.laid import Laid, lay_out
from videorft_jax.serving.limits import choose_limit
from videorft_jax.serving.media import make_chat
from videorft_jax.serving.options import ServeOptions
from videorft_jax.serving.protocol import ChatRequest, read_chat
from videorft_jax.serving.replies import Text, make_choice, make_chunk, make_reply, make_usage
from videorft_jax.serving.vocabulary import Vocabulary

log = logging.getLogger(__name__)
_READERS = 4  # requests whose media are decoded at one time
_DONE = b"data: [DONE]\n\n"  # Every stream ends with this event.


class Chat:
    """One request under way: its completions, and what they have told so far."""

    def __init__(
        self, server: "Server", request: ChatRequest, laid: Laid, limit: int, guide: Guide | None
    ):  # fmt: skip
        self.request, self.laid = request, laid
        self.name, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.model, self.born, self.is_seen = server.options.name, time.monotonic(), False
        self.told: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.texts = [
            Text(server.vocabulary, request.stop, request.num_top)
            for _ in range(request.num_choices)
        ]
        self.ends: list[str | None] = [None] * request.num_choices

        def listen(index):
            def tell(*what):
                with contextlib.suppress(RuntimeError):  # the loop has ended with the server
                    loop.call_soon_threadsafe(self.told.put_nowait, (index, *what))

            return tell

        self.completions = [
            Completion(
                laid, listen(index), limit=limit, temperature=request.temperature,
                top_p=request.top_p, seed=request.seed, number=index,
                is_ranked=request.num_top > 0, guide=guide and guide.copy(),
            )
            for index in range(request.num_choices)
        ]  # fmt: skip

    def cancel(self) -> None:
        """Frees the places of all completions."""
        for one in self.completions:
            one.cancel()

    async def follow(self) -> AsyncIterator[tuple[int, str, int, str | None]]:
        """(choice, new text, number of its tokens before, end) of each chunk. Raises Refused."""
        while None in self.ends:
            index, told, end = await self.told.get()
            if self.ends[index]:
                continue
            if isinstance(end, Refused):
                raise end
            text = self.texts[index]
            before = text.num_tokens
            ids, *rest = (leaf.tolist() for leaf in told)
            new = text.add(ids, list(zip(*rest, strict=True)), end is not None)
            if text.is_stopped:
                self.completions[index].cancel()
                end = "stop"
            self.ends[index] = end
            yield index, new, before, end

    def usage(self):
        """The token counts."""
        cached = min(one.num_reused for one in self.completions)
        drawn = sum(text.num_tokens for text in self.texts)
        return make_usage(self.laid.num_tokens, drawn, cached)

    async def events(self) -> AsyncIterator[bytes]:
        """The reply as server-sent events. Raises Refused."""
        for index in range(len(self.texts)):
            yield _event(self._chunk(index, {"role": "assistant", "content": ""}, None))
        async for index, new, before, end in self.follow():
            rows = None
            if self.request.has_logprobs:
                rows = self.texts[index].describe_logprobs(before)
            if new or rows:
                yield _event(self._chunk(index, {"content": new}, None, rows))
            if end:
                yield _event(self._chunk(index, {}, end))
        if self.request.has_usage:
            yield _event(self._chunk(0, {}, None) | {"choices": [], "usage": self.usage()})
        yield _DONE

    def _chunk(self, index, delta, end, rows=None):
        return make_chunk(self.name, self.model, self.created, index, delta, end, rows)

    def reply(self) -> dict:
        """The whole reply."""
        choices = [
            make_choice(index, text, str(end), self.request.has_logprobs)
            for index, (text, end) in enumerate(zip(self.texts, self.ends, strict=True))
        ]
        return make_reply(self.name, self.model, self.created, choices, self.usage())


class Server:
    """A model, its batcher and its routes; `app` is what an ASGI server runs."""

    def __init__(self, model, options: ServeOptions):
        self.model, self.options = model, options
        self.batcher = Batcher(model, options)
        self.clips = Clips(model.read_part, model.contract, options.cache_bytes)
        self.counts = Counts(self.batcher, self.clips)
        self.vocabulary = Vocabulary(model.tokenizer)
        text, sampling = model.config.text, self.batcher.programs.sampling
        self.grammars = Grammars(model.tokenizer, text.vocab_size, sampling.stop_ids)
        self.positions = find_positions(model.config)
        self.readers = asyncio.Semaphore(_READERS)
        self.started = int(time.time())
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/metrics", self.metrics),
            Route("/health", self.health),
        ]
        handlers = {Refused: self.refuse, HTTPException: self.refuse_route, Exception: self.fault}
        self.app = Starlette(routes=routes, lifespan=self._live, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def _live(self, app):
        self.batcher.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.stop)

    async def models(self, request: Request) -> Response:
        """The one model, as a list."""
        self._check_key(request)
        card = {"id": self.options.name, "object": "model", "created": self.started}
        card |= {"owned_by": "videorft_jax", "max_model_len": self.options.max_prompt}
        return JSONResponse({"object": "list", "data": [card]})

    async def metrics(self, request: Request) -> Response:
        """Counters and gauges in Prometheus' text form."""
        return PlainTextResponse(self.counts.render(), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:
        """An empty reply while requests are taken."""
        return Response()

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        self._check_key(request)
        asked = read_chat(await self._read_body(request), self.options)
        deadline = asyncio.get_running_loop().time() + self.options.timeout_s
        chat = await self._lay_out(asked)
        self.batcher.submit(chat.completions)
        if asked.is_streamed:
            events = self._stream(chat, deadline)
            return StreamingResponse(events, media_type="text/event-stream")
        gone = asyncio.create_task(_wait_gone(request))
        work = asyncio.create_task(self._finish(chat, deadline))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.counts.add("cancelled")
                return Response(status_code=499)
            return JSONResponse(work.result())
        finally:
            chat.cancel()
            gone.cancel()
            work.cancel()

    async def _lay_out(self, asked: ChatRequest) -> Chat:
        if len(self.batcher.waiting) + asked.num_choices > self.options.max_queue:
            raise Refused(429, "the queue is full; ask again later")
        async with self.readers:
            try:
                laid, limit, guide = await asyncio.to_thread(self._prepare, asked)
            except ValueError as error:
                told = _shorten(error, self.options.roots)
                raise Refused(400, told, "messages", "invalid_media") from None
        return Chat(self, asked, laid, limit, guide)

    def _prepare(self, asked: ChatRequest) -> tuple[Laid, int, Guide | None]:
        schema = asked.json_schema
        guide = None if schema is None else self.grammars.make(schema)
        messages = make_chat(asked, self.clips.read_frame, self.options)
        laid = lay_out(self.model, messages, self.options.max_prompt, self.clips)
        most = self.options.max_new_tokens
        return laid, choose_limit(laid.batch, asked.max_tokens, most, self.positions), guide

    async def _finish(self, chat: Chat, deadline: float) -> dict:
        try:
            async with asyncio.timeout_at(deadline):
                async for _, new, _, _ in chat.follow():
                    self.counts.see_text(chat, bool(new))
        except TimeoutError:
            raise self._too_late() from None
        self.counts.finish(chat)
        return chat.reply()

    async def _stream(self, chat: Chat, deadline: float) -> AsyncIterator[bytes]:
        is_whole = False
        try:
            async with asyncio.timeout_at(deadline):
                async for event in chat.events():
                    self.counts.see_text(chat, True)
                    yield event
            is_whole = True
            self.counts.finish(chat)
        except (TimeoutError, Refused) as error:
            is_whole = True
            told = error if isinstance(error, Refused) else self._too_late()
            self.counts.add(told.code)
            yield _event(told.body())
            yield _DONE
        finally:
            chat.cancel()
            if not is_whole:
                self.counts.add("cancelled")

    def _too_late(self) -> Refused:
        return Refused(504, f"no whole reply in {self.options.timeout_s:g} s; ask for fewer tokens")

    def _check_key(self, request: Request) -> None:
        if not self.options.api_key:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.encode(), self.options.api_key.encode())
        if kind.lower() != "bearer" or not known:
            raise Refused(401, "the API key is missing or wrong; send Authorization: Bearer KEY")

    async def _read_body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # A web page may send other kinds here without asking.
            raise Refused(415, "the content type is not application/json")
        limit = self.options.max_body
        length = request.headers.get("content-length", "0")
        large = Refused(413, f"the body has more than {limit} bytes")
        if not length.isdecimal() or int(length) > limit:
            raise large
        body = bytearray()
        try:
            async with asyncio.timeout(self.options.timeout_s):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise large
        except TimeoutError:
            told = f"the body took more than {self.options.timeout_s:g} s; send a smaller one"
            raise Refused(408, told) from None
        except ClientDisconnect:
            raise Refused(400, "the body ended early") from None
        return bytes(body)

    async def refuse(self, request: Request, error: Exception) -> Response:
        """The reply to a request that is not served."""
        assert isinstance(error, Refused)
        self.counts.add(error.code)
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        if error.status in (401, 408, 413, 415):  # The rest of the body is not read.
            headers["connection"] = "close"
        return JSONResponse(error.body(), status_code=error.status, headers=headers)

    async def refuse_route(self, request: Request, error: Exception) -> Response:
        """The reply to a path or method that there is not."""
        assert isinstance(error, HTTPException)
        return await self.refuse(request, Refused(error.status_code, error.detail))

    async def fault(self, request: Request, error: Exception) -> Response:
        """The reply where the server is at fault, which goes to the log and not to the client."""
        return await self.refuse(request, Refused(500, "the server failed; see its log"))


async def _wait_gone(request: Request) -> None:
    """Returns once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(fields: dict) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def _shorten(error: Exception, roots: tuple[str, ...]) -> str:
    """The error in one line, which names files from their root on, as a client knows them."""
    text = " ".join(str(error).split())
    for root in roots:
        text = text.replace(f"{root}/", "")
    return text[:500]
