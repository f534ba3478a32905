"""How fast an endpoint is asked: token buckets, a rate that adapts, and a breaker.

A refusal for too many requests cuts the rate to a share of what the server was measured to accept,
from where it grows back along a cubic, as the adaptive mode of the AWS SDK does; after the first
refusals, which come of a burst, it doubles each second until it is refused again. A request counts
as accepted until it is refused, since replies of large models come long after refusals do. Signs of
overload halve the number of requests in flight instead. Only the refused request waits for its
Retry-After.
"""

import asyncio
import collections
import logging
import time
from collections.abc import Callable

from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.failures import EndpointStopped

logger = logging.getLogger(__name__)
BETA = 0.85  # share of the measured rate that remains after a refusal
CUBIC = 0.4
LEAST_CUT_S = 0.5
MEASURED_S = 2.0
PAUSE_ABOVE_S = 10.0  # a longer Retry-After holds the whole endpoint
SHARE = 0.97  # This share of a configured limit is used, since two clocks may differ.
EARLY_FAILURES = 5  # unreachable so often, and never a success: the address is wrong
BODY_FAILURES = 10
TELL_S = 30.0  # between two lines about the same kind of event
PATIENCE_S = 10.0  # A server that is away for a moment fails all requests in flight at once.


class Bucket:
    """Tokens that refill at `rate` a second up to `burst`."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]):
        self.rate, self.burst, self._clock = rate, max(burst, 1.0), clock
        self._level, self._at = self.burst, clock()

    def missing(self, amount: float) -> float:
        """Seconds until `amount` may be taken; more than a burst is waited for as a burst is."""
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.rate, self.burst)
        self._at = now
        return max(min(amount, self.burst) - self._level, 0.0) / self.rate

    def take(self, amount: float) -> None:
        self._level -= amount


class Pace:
    """Admits the requests of one endpoint; raises EndpointStopped once the breaker opened."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float] = time.monotonic):
        self.endpoint, self._clock = endpoint, clock
        self._requests = self._tokens = self._adaptive = None
        self._limits = (0, 0)
        self.learn(endpoint.rpm, endpoint.tpm)
        self._allowed = float(endpoint.concurrency)
        self._in_flight = 0
        self._free, self._turn = asyncio.Condition(), asyncio.Lock()
        self._sent: collections.deque[float] = collections.deque()
        self._refused: collections.deque[float] = collections.deque()
        self._cut_at, self._top, self._num_cuts = -1e9, 0.0, 0
        self._halved_at = -1e9
        self._paused_until = -1e9
        self._failures = collections.Counter()  # counts failures in a row, by code
        self._failing_since = 0.0
        self._told: dict[str, float] = {}
        self._last_good = self._started = clock()
        self._ever_good = False
        self.stopped: EndpointStopped | None = None

    def learn(self, requests: int, tokens: int) -> None:
        """Takes the requests and tokens a minute that the server says it allows, 0 for what it
        does not say. What the config says goes before."""
        end, known = self.endpoint, self._limits
        limits = (end.rpm or requests or known[0], end.tpm or tokens or known[1])
        if limits == known:
            return
        self._limits = limits
        rates = [SHARE * limit / 60 for limit in limits]
        if rates[0]:
            self._requests = Bucket(rates[0], rates[0] / 10, self._clock)
        if rates[1]:
            self._tokens = Bucket(rates[1], rates[1], self._clock)

    async def admit(self, tokens: int) -> None:
        """Returns when a request of `tokens` may leave; it is then in flight until `done`."""
        async with self._free:
            while self._in_flight >= max(int(self._allowed), 1) and not self.stopped:
                await self._free.wait()
            self._raise_if_stopped()
            self._in_flight += 1
        try:
            async with self._turn:
                await self._wait_for_turn(tokens)
        except BaseException:
            await self.done()
            raise
        self._note(self._sent)

    async def _wait_for_turn(self, tokens: int) -> None:
        # One request waits at a time, so that a cut holds for all that stand behind it.
        while True:
            self._raise_if_stopped()
            self._grow()
            amounts = [(self._requests, 1), (self._tokens, tokens), (self._adaptive, 1)]
            buckets = [(bucket, amount) for bucket, amount in amounts if bucket is not None]
            wait = max(bucket.missing(amount) for bucket, amount in buckets) if buckets else 0.0
            wait = max(wait, self._paused_until - self._clock())
            if wait <= 0:
                for bucket, amount in buckets:
                    bucket.take(amount)
                return
            await asyncio.sleep(min(max(wait, 0.001), 0.5))

    async def done(self) -> None:
        async with self._free:
            self._in_flight -= 1
            self._free.notify_all()

    def _raise_if_stopped(self) -> None:
        if self.stopped:
            raise self.stopped

    def _grow(self) -> None:
        """The adaptive rate at this moment: back to where it was cut, then beyond."""
        if self._adaptive is None:
            return
        since = self._clock() - self._cut_at
        if self._num_cuts == 1:
            # The first refusals come of a burst, which tells little about the rate.
            self._adaptive.rate = BETA * self._top * 2.0 ** min(since, 20.0)
        else:
            turn = (self._top * (1 - BETA) / CUBIC) ** (1 / 3)
            self._adaptive.rate = max(CUBIC * (since - turn) ** 3 + self._top, 0.1)

    def _measured(self) -> float:
        """Requests a second that were sent and not refused, over the last seconds."""
        now = self._clock()
        seconds = min(MEASURED_S, max(now - self._started, 1.0))
        counts = [sum(now - at <= seconds for at in times) for times in (self._sent, self._refused)]
        return max(counts[0] - counts[1], 0) / seconds

    def _note(self, times: collections.deque[float]) -> None:
        times.append(self._clock())
        while times[-1] - times[0] > MEASURED_S:
            times.popleft()

    def succeeded(self) -> None:
        now = self._clock()
        self._last_good, self._ever_good = now, True
        self._failures.clear()
        if self._allowed < self.endpoint.concurrency:
            self._allowed = min(self._allowed + 1 / self._allowed, self.endpoint.concurrency)

    def failed(self, code: str, pace: str, wait_s: float) -> None:
        """Takes note of a failure of the endpoint; may open the breaker."""
        now = self._clock()
        if not self._failures:
            self._failing_since = now
        self._failures[code] += 1
        if pace == "cut":
            self._note(self._refused)
        if pace == "cut" and now - self._cut_at >= LEAST_CUT_S:
            self._top = max(self._measured(), 0.5)
            self._cut_at = now
            self._num_cuts += 1
            if self._adaptive is None:
                self._adaptive = Bucket(BETA * self._top, 1, self._clock)
            self._grow()
            self._tell("rate", f"refuses some; {BETA * self._top:.1f} requests a second, growing")
        if pace == "overload" and now - self._halved_at >= 1.0:
            self._halved_at = now
            self._allowed = max(self._allowed / 2, 1.0)
            self._tell("load", f"{code}; at most {self._allowed:.0f} requests in flight now")
        if wait_s > PAUSE_ABOVE_S:
            self._paused_until = max(self._paused_until, now + wait_s)
            self._tell("pause", f"asked for {wait_s:.0f} s of patience, which it gets")
        self._break(code, wait_s, now)

    def _tell(self, kind: str, what: str) -> None:
        """Logs an event in one line, unless one of its kind was logged a moment ago."""
        now = self._clock()
        if now - self._told.get(kind, -1e9) >= TELL_S:
            self._told[kind] = now
            logger.info("endpoint %s: %s", self.endpoint.name, what)

    def _break(self, code: str, wait_s: float, now: float) -> None:
        end, silent = self.endpoint, now - self._last_good
        rows = sum(self._failures.values())
        lasts = now - self._failing_since >= min(PATIENCE_S, end.breaker_s)
        grave = rows - self._failures["rate"] - self._failures["bad_request"]
        if wait_s > end.breaker_s:
            self.stop(f"asks for {wait_s:.0f} s of patience; start again then", 75)
        elif not self._ever_good and self._failures["unreachable"] >= EARLY_FAILURES:
            self.stop(f"{end.base_urls[0]} cannot be reached; start it, or mend base_urls", 75)
        elif self._failures["bad_body"] >= min(BODY_FAILURES, end.breaker_failures):
            self.stop("answers with something else than JSON; is base_urls right?", 1)
        elif self._failures["bad_request"] >= end.breaker_failures and not self._ever_good:
            self.stop("refuses every request as malformed; check model and extra_body", 1)
        elif lasts and grave >= end.breaker_failures:
            self.stop(f"{rows} failures in a row, the last: {code}; start again later", 75)
        elif silent > end.breaker_s:
            self.stop(f"no success for {silent:.0f} s, the last: {code}; start again later", 75)

    def stop(self, why: str, exit_code: int) -> None:
        self.stopped = self.stopped or EndpointStopped(self.endpoint.name, why, exit_code)
