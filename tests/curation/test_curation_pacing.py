"""The pace of an endpoint against servers that limit or fail, in virtual time."""

import logging
import math
import random
import time

import pytest
from virtual_time import LimitedServer, ask_virtually

from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.failures import EndpointStopped, read_limits


def endpoint(**fields):
    return Endpoint("think", "m", base_urls=("http://h/v1",), **({"concurrency": 64} | fields))


def ask(server, seconds=60, workers=64, **fields):
    """(share of the server's rate that was answered, share of the requests that it refused)."""
    ask_virtually(endpoint(**fields), server, seconds, workers)
    answered = sum(at <= seconds + 2 * server.latency_s for at in server.good)
    most = server.rate * seconds + server.burst
    return answered / most, len(server.refused) / (len(server.refused) + len(server.good))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("rate", "workers", "wait_s"),
    [(100, 64, 0.0), (20, 64, 1.0), pytest.param(100, 64, 1.0, marks=SLOW),
     pytest.param(20, 64, 0.0, marks=SLOW), pytest.param(100, 256, 0.0, marks=SLOW),
     pytest.param(100, 256, 1.0, marks=SLOW)],
)  # fmt: skip
def test_09_an_unknown_limit_is_found_and_kept(rate, workers, wait_s):
    server = LimitedServer(rate, wait_s=wait_s)
    goodput, refused = ask(server, workers=workers, concurrency=workers)
    assert goodput >= 0.9
    assert refused <= 0.1


@pytest.mark.parametrize("rate", [20, pytest.param(100, marks=SLOW)])
def test_09_a_configured_limit_is_used_and_never_exceeded(rate):
    server = LimitedServer(rate, burst=0.1 * rate)
    goodput, refused = ask(server, rpm=60 * rate)
    assert goodput >= 0.95
    assert refused == 0


def test_09_twenty_seconds_of_requests_are_enough_to_find_a_limit():
    server = LimitedServer(100, latency_s=0.5)
    server.random.uniform = lambda low, high: 1.0
    ask_virtually(endpoint(), server, 10**6, times=2000)
    assert 20 / server.good[-1] >= 0.92
    assert len(server.refused) <= 0.1 * 2000


def test_09_a_limit_that_headers_tell_is_kept_from_then_on():
    server = LimitedServer(20, burst=2, limits=(1200, 0))
    goodput, _ = ask(server)
    assert goodput >= 0.9
    assert not [at for at in server.refused if at > 15]  # Those of the first burst are sent anew.
    server = LimitedServer(20, burst=2, limits=(600, 0))
    goodput, _ = ask(server, rpm=1200)
    assert goodput >= 0.9  # What the config says goes before.


@SLOW
def test_09_a_limit_configured_too_high_is_corrected():
    goodput, refused = ask(LimitedServer(100), rpm=9000)
    assert goodput >= 0.9
    assert refused <= 0.1


@SLOW
def test_09_replies_that_take_a_minute_hide_no_limit():
    server = LimitedServer(20, latency_s=60.0)
    goodput, refused = ask(server, seconds=600, workers=2000, concurrency=2000)
    assert goodput >= 0.85  # the first replies come after a minute
    assert refused <= 0.25


def test_21_places_in_flight_are_filled_again_at_once():
    """The seconds that a program needs depend on the machine and are measured in benchmarks; that
    no place waits for another does not. Two commits of 5 ms are part of each request."""
    server = LimitedServer(math.inf, burst=math.inf)
    server.random.uniform = lambda low, high: 1.225  # 0.49 s after the 0.01 s of the way
    runner = ask_virtually(endpoint(), server, 10**6, times=64 * 20, commit_s=0.005)
    assert len(server.good) == 64 * 20
    assert 20 * 0.5 <= server.good[-1] <= 20 * 0.5 / 0.97
    assert not runner.stopped


def test_tokens_a_minute_are_kept_by_requests_larger_than_a_second_of_them():
    server = LimitedServer(math.inf, burst=math.inf)  # NoLedger counts 100 tokens a request
    ask_virtually(endpoint(tpm=3000), server, 120)
    assert 0.9 * 60 <= sum(at <= 120 for at in server.good) <= 60 + 3


def test_tokens_a_minute_that_headers_tell_are_kept():
    server = LimitedServer(math.inf, burst=math.inf, limits=(0, 3000))
    ask_virtually(endpoint(), server, 120)
    assert 0.9 * 60 <= sum(at <= 120 for at in server.good) <= 60 + 3 + 64  # all sent at once first


@pytest.mark.parametrize(
    ("requests", "tokens", "limits"),
    [("500", "30000", (500, 30000)), ("500", None, (500, 0)), ("-5", "1e3", (0, 0)),
     ("", "nan", (0, 0)), ("9" * 20, "²", (0, 0))],
)  # fmt: skip
def test_limits_are_read_from_headers(requests, tokens, limits):
    names = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")
    values = zip(names, (requests, tokens), strict=True)
    headers = {name: value for name, value in values if value is not None}
    assert read_limits(headers) == limits


def test_a_server_that_flaps_is_waited_for_and_kills_nothing():
    server = LimitedServer(1000, latency_s=0.4, is_up=lambda now: now % 10 >= 3)
    ask_virtually(endpoint(), server, 10**6, times=2000)  # a dead letter would raise or be missing
    assert len(server.good) == 2000
    assert server.down


@pytest.mark.parametrize("wait_s", [0.0, 1.0, 5.0])
def test_10_refusals_without_end_stop_in_bounded_time(wait_s):
    server = LimitedServer(1e-9, burst=0, wait_s=wait_s)
    with pytest.raises(EndpointStopped, match="no success for") as caught:
        ask_virtually(endpoint(breaker_s=60.0), server, 10**6)
    assert caught.value.exit_code == 75
    assert 60 <= server.refused[-1] <= 75


def test_10_a_dead_server_stops_after_some_failures_and_seconds():
    server = LimitedServer(100, is_up=lambda now: False)
    with pytest.raises(EndpointStopped, match="in a row"):
        ask_virtually(endpoint(), server, 10**6)
    assert 10 <= server.down[-1] <= 15


def test_an_event_is_one_line_and_is_not_repeated_every_second(caplog):
    caplog.set_level(logging.INFO, "videorft_jax.curation.pacing")
    ask(LimitedServer(20, wait_s=12.0, is_up=lambda now: now % 20 >= 2), seconds=60)
    for what in ("requests a second, growing", "requests in flight now", "12 s of patience"):
        lines = [text for text in caplog.messages if what in text]
        assert 1 <= len(lines) <= 6, what
        assert all(text.startswith("endpoint think: ") for text in lines)


def test_the_wall_clock_has_no_say_in_pacing(monkeypatch):
    draws = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: draws.uniform(0, 2e9))  # It jumps.
    goodput, _ = ask(LimitedServer(20), seconds=30)
    assert goodput >= 0.85
