"""An event loop whose clock jumps to the next event, so that minutes of waiting take no time."""

import asyncio
import random

from videorft_jax.curation.failures import Failed
from videorft_jax.curation.pacing import Pace
from videorft_jax.curation.requests import Reply, Request
from videorft_jax.curation.running import Runner


class VirtualLoop(asyncio.SelectorEventLoop):
    """Works for code that waits by asyncio alone: no threads, no sockets."""

    def __init__(self):
        super().__init__()
        self._now = 0.0

    def time(self):
        return self._now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()


def run_virtually(coroutine):
    """The result of a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


class NoStore:
    """Keeps nothing; a commit takes `commit_s`."""

    def __init__(self, commit_s=0.0):
        self.commit_s = commit_s

    def find(self, key):
        return None

    async def commit(self, writes):
        if self.commit_s:
            await asyncio.sleep(self.commit_s)

    def enqueue(self, writes):
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def flush(self):
        await self.commit([])

    def write(self, writes):
        pass


class NoLedger:
    """Allows everything."""

    def worst_case(self, request, is_batch=False):
        return 0, 100

    def reserve(self, request):
        return 0, ("", ())

    def settle(self, *_, **__):
        return []


class LimitedServer:
    """Answers after `latency_s`, `rate` requests a second with bursts of `burst`; the rest are
    refused, with a Retry-After of `wait_s` or none. is_up(now): whether it answers at all. limits:
    the requests and tokens a minute that its headers would tell."""

    def __init__(
        self, rate, burst=20, latency_s=0.4, wait_s=0.0, is_up=lambda now: True, limits=(0, 0)
    ):
        self.limits = limits
        self.rate, self.burst, self.latency_s, self.wait_s = rate, burst, latency_s, wait_s
        self.is_up, self.level, self.at = is_up, burst, 0.0
        self.good, self.refused, self.down = [], [], []
        self.random = random.Random(0)

    async def send(self, request):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.01)
        now = loop.time()
        self.level = min(self.level + (now - self.at) * self.rate, self.burst)
        self.at = now
        if not self.is_up(now):
            self.down.append(now)
            raise Failed("overloaded", 503)
        if self.level < 1:
            self.refused.append(now)
            raise Failed("rate", 429, wait_s=self.wait_s)
        self.level -= 1
        await asyncio.sleep(self.latency_s * self.random.uniform(0.5, 1.5))
        self.good.append(loop.time())
        return Reply("a", model=request.model)


def ask_virtually(endpoint, server, seconds, workers=64, times=None, commit_s=0.0):
    """Asks `server` with so many workers for so many seconds of virtual time, or `times` times;
    returns the runner."""

    async def ask_all():
        loop = asyncio.get_running_loop()
        runner = Runner(
            NoStore(commit_s), NoLedger(), {endpoint.name: endpoint}, {endpoint.name: server}
        )
        runner.paces = {endpoint.name: Pace(endpoint, loop.time)}
        numbers = iter(range(times or 10**9))

        async def work():
            for number in numbers:
                if loop.time() > seconds:
                    return
                await runner.ask(
                    Request("s", "u", endpoint.name, "m", "", (str(number),), 9, 0, 1, 0, "")
                )

        random.seed(0)
        await asyncio.gather(*(work() for _ in range(workers)))
        return runner

    return run_virtually(ask_all())
