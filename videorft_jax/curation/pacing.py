"""How fast an endpoint is asked: token buckets, a rate that adapts, and a breaker.

A refusal for too many requests cuts the rate to a share of what was measured to succeed, from where
it grows back along a cubic, as the adaptive mode of the AWS SDK does. Signs of overload halve the
number of requests in flight instead. Only the refused request waits for its Retry-After.
"""

import asyncio
import collections
import time
from collections.abc import Callable

from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.failures import EndpointStopped

BETA = 0.85  # share of the measured rate that remains after a refusal
CUBIC = 0.4
LEAST_CUT_S = 0.5
PAUSE_ABOVE_S = 10.0  # a longer Retry-After holds the whole endpoint
SHARE = 0.95  # This share of a configured limit is used, since two clocks may differ.
EARLY_FAILURES = 5  # unreachable so often, and never a success: the address is wrong
BODY_FAILURES = 10


class Bucket:
    """Tokens that refill at `rate` a second up to `burst`."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]):
        self.rate, self.burst, self._clock = rate, max(burst, 1.0), clock
        self._level, self._at = self.burst, clock()

    def wait(self, amount: float) -> float:
        """Takes `amount`; returns the seconds until it would have been there."""
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.rate, self.burst) - amount
        self._at = now
        return max(-self._level / self.rate, 0.0)


class Pace:
    """Admits the requests of one endpoint; raises EndpointStopped once the breaker opened."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float] = time.monotonic):
        self.endpoint, self._clock = endpoint, clock
        self._requests = self._tokens = self._adaptive = None
        if endpoint.rpm:
            rate = SHARE * endpoint.rpm / 60
            self._requests = Bucket(rate, min(rate, 10), clock)
        if endpoint.tpm:
            rate = SHARE * endpoint.tpm / 60
            self._tokens = Bucket(rate, rate, clock)
        self._allowed = float(endpoint.concurrency)
        self._in_flight = 0
        self._free = asyncio.Condition()
        self._successes: collections.deque[float] = collections.deque(maxlen=400)
        self._cut_at, self._top = -1e9, 0.0
        self._halved_at = -1e9
        self._paused_until = -1e9
        self._failures = collections.Counter()  # counts failures in a row, by code
        self._last_good = self._started = clock()
        self._ever_good = False
        self.stopped: EndpointStopped | None = None

    async def admit(self, tokens: int) -> None:
        """Returns when a request of `tokens` may leave; it is then in flight until `done`."""
        async with self._free:
            while self._in_flight >= max(int(self._allowed), 1) and not self.stopped:
                await self._free.wait()
            self._raise_if_stopped()
            self._in_flight += 1
        try:
            self._grow()
            wait = self._paused_until - self._clock()
            for bucket, amount in (
                (self._requests, 1), (self._tokens, tokens), (self._adaptive, 1)
            ):  # fmt: skip
                if bucket is not None:
                    wait = max(wait, bucket.wait(amount))
            while wait > 0:
                await asyncio.sleep(min(wait, 0.5))
                wait -= 0.5
                self._raise_if_stopped()
        except BaseException:
            await self.done()
            raise

    async def done(self) -> None:
        async with self._free:
            self._in_flight -= 1
            self._free.notify_all()

    def _raise_if_stopped(self) -> None:
        if self.stopped:
            raise self.stopped

    def _grow(self) -> None:
        """The adaptive rate at this moment: back to where it was cut, then beyond."""
        if self._adaptive is not None:
            since = self._clock() - self._cut_at
            turn = (self._top * (1 - BETA) / CUBIC) ** (1 / 3)
            self._adaptive.rate = max(CUBIC * (since - turn) ** 3 + self._top, 0.1)

    def _measured(self) -> float:
        """Successes a second over the last two."""
        now = self._clock()
        recent = sum(now - at < 2.0 for at in self._successes)
        return recent / min(2.0, max(now - self._started, 0.1))

    def succeeded(self) -> None:
        now = self._clock()
        self._successes.append(now)
        self._last_good, self._ever_good = now, True
        self._failures.clear()
        if self._allowed < self.endpoint.concurrency:
            self._allowed = min(self._allowed + 1 / self._allowed, self.endpoint.concurrency)

    def failed(self, code: str, pace: str, wait_s: float) -> None:
        """Takes note of a failure of the endpoint; may open the breaker."""
        now = self._clock()
        self._failures[code] += 1
        if pace == "cut" and now - self._cut_at >= LEAST_CUT_S:
            self._top = max(self._measured(), 0.5)
            self._cut_at = now
            if self._adaptive is None:
                self._adaptive = Bucket(BETA * self._top, 1, self._clock)
            self._grow()
        if pace == "overload" and now - self._halved_at >= 1.0:
            self._halved_at = now
            self._allowed = max(self._allowed / 2, 1.0)
        if wait_s > PAUSE_ABOVE_S:
            self._paused_until = max(self._paused_until, now + wait_s)
        self._break(code, wait_s, now)

    def _break(self, code: str, wait_s: float, now: float) -> None:
        end, silent = self.endpoint, now - self._last_good
        rows = sum(self._failures.values())
        if wait_s > end.breaker_s:
            self.stop(f"asks for {wait_s:.0f} s of patience; start again then", 75)
        elif not self._ever_good and self._failures["unreachable"] >= EARLY_FAILURES:
            self.stop(f"{end.base_urls[0]} cannot be reached; start it, or mend base_urls", 75)
        elif self._failures["bad_body"] >= min(BODY_FAILURES, end.breaker_failures):
            self.stop("answers with something else than JSON; is base_urls right?", 1)
        elif self._failures["bad_request"] >= end.breaker_failures and not self._ever_good:
            self.stop("refuses every request as malformed; check model and extra_body", 1)
        elif rows - self._failures["rate"] - self._failures["bad_request"] >= end.breaker_failures:
            self.stop(f"{rows} failures in a row, the last: {code}; start again later", 75)
        elif silent > end.breaker_s:
            self.stop(f"no success for {silent:.0f} s, the last: {code}; start again later", 75)

    def stop(self, why: str, exit_code: int) -> None:
        self.stopped = self.stopped or EndpointStopped(self.endpoint.name, why, exit_code)
