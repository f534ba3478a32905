"""Endpoints of kind "local": the project's own model in this process, asked as its server is.

The application of `videorft serve` is called without a socket, with the bodies that would be posted
to it. A reply is therefore that of the server, under the same key, and a store that was filled by
one of them serves the other.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterable

import httpx2

from videorft_jax.curation.client import HttpClient
from videorft_jax.curation.endpoints import Endpoint

ADDRESS = "http://in-process/v1"  # No name is looked up: the transport is a function call.


@contextlib.asynccontextmanager
async def open_clients(endpoints: Iterable[Endpoint]) -> AsyncIterator[dict[str, HttpClient]]:
    """The client of each endpoint by its name. Endpoints of kind "local" that name the same model
    in the same folder share its weights and its batch. Raises ValueError for a folder that holds
    no model, before anything is asked."""
    endpoints = list(endpoints)
    async with contextlib.AsyncExitStack() as stack:
        shared: dict[tuple, list[Endpoint]] = {}
        for end in endpoints:
            if end.kind == "local":
                shared.setdefault((end.checkpoint, end.dtype, end.model), []).append(end)
        transports = {}
        for group in shared.values():
            server = await asyncio.to_thread(_load_server, group)
            server.batcher.start()
            stack.push_async_callback(asyncio.to_thread, server.batcher.stop)
            for end in group:
                transports[end.name] = httpx2.ASGITransport(server.app, raise_app_exceptions=False)
        clients = {}
        for end in endpoints:
            if end.kind == "local":
                asked = dataclasses.replace(end, kind="http", checkpoint="", base_urls=(ADDRESS,))
                client = HttpClient(asked, transports[end.name])
            else:
                client = HttpClient(end)
            clients[end.name] = await stack.enter_async_context(client)
        yield clients


def _load_server(group: list[Endpoint]):
    """A server of the model of these endpoints, with limits that fit each of them."""
    from videorft_jax import api
    from videorft_jax.serving.app import Server
    from videorft_jax.serving.options import ServeOptions

    first = group[0]
    options = ServeOptions(
        name=first.model,
        max_queue=sum(end.concurrency for end in group),
        max_slots=max(end.concurrency for end in group),
        max_prompt=max(end.context for end in group),
        max_new_tokens=max(end.max_output for end in group),
        timeout_s=max(end.deadline_s for end in group),
    )
    return Server(api.load(first.checkpoint, dtype=first.dtype), options)
