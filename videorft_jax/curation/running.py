"""Asking: from a request to a stored reply, through the ledger, the pace and the retries.

A unit of work is a generator that yields requests and is sent their replies. Run against the store
alone it gives the unit's rows, or says which request is missing; run here it asks for what is
missing. Both read the same code, so that the files depend on the store and on nothing else.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from videorft_jax.curation.budget import Ledger, OutOfBudget
from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.failures import RETRY, RETRYABLE, STOP, EndpointStopped, Failed
from videorft_jax.curation.pacing import Pace
from videorft_jax.curation.progress import Progress
from videorft_jax.curation.requests import Dead, Reply, Request
from videorft_jax.curation.store import Store

logger = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0

Work = Generator[Request, Reply | Dead, Any]


class Missing(Exception):
    """A unit whose next reply is not in the store; `request` is that request."""

    def __init__(self, request: Request):
        super().__init__(request.stage)
        self.request = request


class Client(Protocol):
    limits: tuple[int, int]  # requests and tokens a minute that the server said last, 0 unknown

    async def send(self, request: Request) -> Reply: ...


def replay(work: Work, find: Callable[[str], Reply | Dead | None]) -> Any:
    """The result of a unit from stored replies alone; raises Missing."""
    try:
        request = next(work)
        while True:
            known = find(request.key)
            if known is None:
                work.close()
                raise Missing(request)
            request = work.send(known)
    except StopIteration as end:
        return end.value


class Runner:
    """Runs units over the endpoints; `clients` and `endpoints` by name.

    first_wait_s: mean of the first wait before a request is sent again; it doubles each time.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        endpoints: dict[str, Endpoint],
        clients: dict[str, Client],
        first_wait_s: float = FIRST_WAIT_S,
    ):
        self.store, self.ledger = store, ledger
        self.endpoints, self.clients = endpoints, clients
        self.paces = {name: Pace(endpoint) for name, endpoint in endpoints.items()}
        self.progress = Progress()
        self.stopped: dict[str, Exception] = {}  # The keys are endpoints and "budget".
        self._first_wait_s = first_wait_s
        self._asking: dict[str, asyncio.Future] = {}
        self._uncommitted: dict[str, Reply] = {}  # on their way into the store
        self._closing = False

    def close(self) -> None:
        """Takes no further requests; those in flight end."""
        self._closing = True

    async def run(self, units: Iterable[Callable[[], Work]], workers: int) -> None:
        """Runs every unit as far as it gets. A stopped endpoint or an exhausted budget leaves
        units unfinished and is listed in `stopped`; a fault of ours is raised."""
        queue = iter(units)
        failed: list[BaseException] = []

        async def take() -> None:
            for unit in queue:
                if self._closing or failed or "budget" in self.stopped:
                    return
                try:
                    asked = await self._advance(unit())
                    self.progress.finish(asked)
                except (EndpointStopped, OutOfBudget) as stop:
                    self.stopped.setdefault(getattr(stop, "name", "budget"), stop)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    failed.append(error)
                    return

        tasks = [asyncio.create_task(take()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        finally:
            # Whatever ended the run, replies that were enqueued before it are kept.
            await self.store.flush()
        if failed:
            raise failed[0]

    async def _advance(self, work: Work) -> int:
        """Takes a unit to its end; returns how many of its replies were not in the store. Raises
        what stops its endpoint."""
        # Making a request may read frames, which is work for another thread.
        reply, done, asked = None, object(), 0
        while True:
            request = await asyncio.to_thread(_step, work, reply, done)
            if request is done:
                await self.store.flush()
                return asked
            reply = self._find(request.key)
            if reply is None:
                if self._closing:
                    work.close()
                    raise EndpointStopped(request.endpoint, "the run was asked to end", 130)
                asked += 1
                reply = await self.ask(request)

    async def ask(self, request: Request) -> Reply | Dead:
        """The reply or the dead letter, from the store or from the endpoint. A reply is committed
        before the next request of its worker leaves, in one transaction with that one's booking.
        Equal requests at the same time are one."""
        known = self._find(request.key)
        if known is not None:
            return known
        if request.key in self._asking:
            return await asyncio.shield(self._asking[request.key])
        future = asyncio.get_running_loop().create_future()
        self._asking[request.key] = future
        try:
            result = await self._attempts(request)
            future.set_result(result)
            return result
        except BaseException as error:
            future.set_exception(
                error if isinstance(error, Exception) else EndpointStopped("", "cancelled", 75)
            )
            future.exception()  # seen, also where nobody else waits for it
            raise
        finally:
            del self._asking[request.key]

    def _find(self, key: str) -> Reply | Dead | None:
        return self._uncommitted.get(key) or self.store.find(key)

    async def _attempts(self, request: Request) -> Reply | Dead:
        pace, tries, wait_s = self.paces[request.endpoint], 0, self._first_wait_s
        worst = self.ledger.worst_case(request)[1]
        while True:
            await pace.admit(worst)
            try:
                result = await self._attempt(request, pace, tries)
            finally:
                await pace.done()
            if not isinstance(result, Failed):
                return result
            tries += 1
            wait_s = min(2 * wait_s, LONGEST_WAIT_S) if tries > 1 else wait_s
            await self._sleep(max(random.uniform(0, wait_s), result.wait_s), pace)

    async def _sleep(self, seconds: float, pace: Pace) -> None:
        while seconds > 0 and not pace.stopped and not self._closing:
            await asyncio.sleep(min(seconds, 0.5))
            seconds -= 0.5
        if self._closing:
            raise EndpointStopped(pace.endpoint.name, "the run was asked to end", 130)

    async def _attempt(self, request: Request, pace: Pace, tries: int) -> Reply | Dead | Failed:
        """One attempt, reserved and settled; Failed where it is to be repeated."""
        number, opening = self.ledger.reserve(request)
        settle = {"number": number, "request": request}
        try:
            await self.store.commit([opening])
        except asyncio.CancelledError:  # The booking is written all the same, but nothing was sent.
            self.store.enqueue(self.ledger.settle(**settle, code="cancelled"))
            raise
        client = self.clients[request.endpoint]
        try:
            reply = await client.send(request)
        except Failed as failure:
            pace.learn(*client.limits)
            return await self._fail(failure, request, pace, tries, settle)
        except BaseException:  # cancelled, or a fault of ours: the server may have billed it
            self.store.write(self.ledger.settle(**settle, billed="unknown", code="internal"))
            raise
        pace.learn(*client.limits)
        pace.succeeded()
        self.progress.replies[request.stage] = self.progress.replies.get(request.stage, 0) + 1
        asked = self.endpoints[request.endpoint].model
        if reply.model and reply.model != asked:
            seen = self.progress.other_models
            seen[reply.model] = seen.get(reply.model, 0) + 1
        self._uncommitted[request.key] = reply
        done = self.store.enqueue(self.ledger.settle(**settle, reply=reply))
        done.add_done_callback(lambda _: self._uncommitted.pop(request.key, None))
        return reply

    async def _fail(self, failure, request, pace, tries, settle) -> Dead | Failed:
        kind, code = failure.kind, failure.code
        self.progress.failures[code] = self.progress.failures.get(code, 0) + 1
        logger.debug("%s %s: %s", request.stage, request.unit[:12], failure)
        pace.failed(code, kind.pace, failure.wait_s)
        dead = None
        if kind.action == STOP:
            pace.stop(f"{failure}; {kind.remedy}", kind.exit_code)
        elif kind.action != RETRY or (kind.tries and tries + 1 >= kind.tries):
            dead = Dead(code, failure.status, code in RETRYABLE, kind.remedy)
        booked = self.ledger.settle(
            **settle, billed=kind.billed, code=code, status=failure.status, dead=dead
        )
        await self.store.commit(booked)
        if pace.stopped:
            raise pace.stopped
        return dead or failure


def _step(work: Work, reply: Reply | Dead | None, done: object) -> Any:
    """The next request of a unit, or `done`; StopIteration cannot leave a thread."""
    try:
        return next(work) if reply is None else work.send(reply)
    except StopIteration:
        return done
