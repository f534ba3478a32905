"""The failures of an endpoint: what each is called, how it is booked and what is done about it."""

import dataclasses
import email.utils
import json
import math
import re
import time
from collections.abc import Mapping

# What is done: keep the reply, send the same request again, give it up, stop the endpoint.
KEEP, RETRY, DEAD, STOP = "keep", "retry", "dead", "stop"


@dataclasses.dataclass(frozen=True)
class Kind:
    """billed: "no", or "unknown", which stays booked at the worst case. tries: how often the same
    request is sent altogether, 0 for no limit but the breaker's. pace: "none", "cut" the rate, or
    "overload", which halves the number in flight. exit_code of a stop: 75, if a later start may
    go on by itself, else 1. remedy: what a person can do about it."""

    action: str
    billed: str = "no"
    tries: int = 1
    pace: str = "none"
    exit_code: int = 1
    remedy: str = ""


KINDS = {
    "bad_shape": Kind(RETRY, "unknown", 3, "overload", remedy="the reply has no usable choice"),
    "bad_body": Kind(RETRY, "unknown", 3, "overload", remedy="is base_urls right?"),
    "redirect": Kind(STOP, remedy="write the address that the server itself answers at"),
    "too_long": Kind(DEAD, remedy="use fewer frames, or lower endpoint.context"),
    "bad_request": Kind(DEAD, remedy="see the endpoint's rules for its parameters"),
    "auth": Kind(STOP, remedy="check the key in the variable that key_env names"),
    "quota": Kind(STOP, exit_code=75, remedy="add credit at the provider, then start again"),
    "no_model": Kind(STOP, remedy="check model and base_urls: the server knows neither"),
    "busy": Kind(RETRY, "no", 6, remedy="start again later"),
    "too_large": Kind(DEAD, remedy="use fewer or smaller frames"),
    "rate": Kind(RETRY, "no", 0, "cut", remedy="lower rpm, or start again later"),
    "server": Kind(RETRY, "unknown", 6, "overload", remedy="start again when the server is well"),
    "overloaded": Kind(RETRY, "no", 0, "overload", remedy="start again when the server is well"),
    "unreachable": Kind(RETRY, "no", 0, "overload", remedy="start the server, or mend base_urls"),
    "dropped": Kind(RETRY, "unknown", 6, "overload", remedy="start again when the server is well"),
    "timeout": Kind(RETRY, "unknown", 3, "overload", remedy="raise deadline_s"),
    "other_model": Kind(STOP, "unknown", remedy="another model answered and pin_model is set"),
}
STATUS = {
    401: "auth", 402: "quota", 403: "auth", 404: "no_model", 408: "busy", 409: "busy",
    413: "too_large", 425: "busy", 429: "rate", 503: "overloaded", 529: "overloaded",
}  # fmt: skip
# Dead letters that a later start may ask again; the others would only fail again.
RETRYABLE = frozenset(("server", "dropped", "timeout", "bad_body", "bad_shape", "busy"))
LONGEST_WAIT_S = 3600.0


class Failed(Exception):
    """One attempt that brought no reply. str() holds no text of the request or its headers."""

    def __init__(self, code: str, status: int | None = None, detail: str = "", wait_s: float = 0.0):
        super().__init__(code, status, detail)
        self.code, self.status, self.detail, self.wait_s = code, status, detail, wait_s

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def __str__(self) -> str:
        status = f" (HTTP {self.status})" if self.status else ""
        return f"{self.code}{status}: {self.detail or self.kind.remedy}"


class EndpointStopped(RuntimeError):
    """An endpoint that is asked no more in this run; exit_code 75: a later start may go on."""

    def __init__(self, name: str, why: str, exit_code: int):
        super().__init__(f"endpoint {name}: {why}")
        self.name, self.why, self.exit_code = name, why, exit_code


def classify(status: int, headers: Mapping[str, str], body: bytes, host: str) -> Failed:
    """The failure that an HTTP status other than 200 stands for."""
    error = _read_error(body)
    said = _error_code(error)
    if 300 <= status < 400:
        target = headers.get("location", "").split("?")[0][:120]
        return Failed("redirect", status, f"{host} sends on to {target!r}, which is not followed")
    if status == 429 and isinstance(error, dict) and error.get("status") == "RESOURCE_EXHAUSTED":
        return _classify_google(str(error).lower(), headers)
    if status == 429 and any(word in said for word in ("quota", "billing", "credit", "balance")):
        return Failed("quota", status)
    if status in STATUS:
        return Failed(STATUS[status], status, wait_s=read_retry_after(headers))
    if status >= 500:
        return Failed("server", status, wait_s=read_retry_after(headers))
    is_long = "context" in said and any(word in said for word in ("length", "window", "size"))
    if status in (400, 422) and (is_long or "too long" in said):
        return Failed("too_long", status)
    return Failed("bad_request", status)


def _classify_google(said: str, headers: Mapping[str, str]) -> Failed:
    """What a refusal of Google's stands for: it names a "quota" and "billing" for the limit of a
    minute as well, where only that of a day needs a person. How long to wait stands in the body."""
    if "perday" in said or "per day" in said:
        return Failed("quota", 429)
    delay = re.search(r"'retrydelay': '(\d{1,6}(?:\.\d*)?)s'", said)
    wait_s = min(float(delay[1]), LONGEST_WAIT_S) if delay else read_retry_after(headers)
    return Failed("rate", 429, wait_s=wait_s)


def _read_error(body: bytes) -> object:
    """The error of a body, "" where there is none. Servers put it under "error" as OpenAI does, at
    the top (SGLang, older vLLM), into a list (Gemini), or write a text in its place (TGI, Ollama).
    """
    try:
        data = json.loads(body[:65536])
    except (ValueError, RecursionError):
        return ""
    if isinstance(data, list) and data:
        data = data[0]
    return data.get("error", data) if isinstance(data, dict) else ""


def _error_code(error: object) -> str:
    """Lower-case code, type and message of an error; never shown, only searched."""
    if isinstance(error, dict):
        names = ("code", "type", "message", "detail")
        error = " ".join(str(error.get(name, "")) for name in names)
    return error.lower() if isinstance(error, str) else ""


def read_limits(headers: Mapping[str, str]) -> tuple[int, int]:
    """(requests, tokens) a minute that a server says it allows, 0 where it says nothing usable. A
    limit of a day is read as one of a minute, which allows more and so does no harm."""
    names = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")
    texts = [headers.get(name, "").strip() for name in names]
    requests, tokens = (
        int(text) if text.isascii() and text.isdecimal() and len(text) < 13 else 0 for text in texts
    )
    return requests, tokens


def read_retry_after(headers: Mapping[str, str], now: float | None = None) -> float:
    """Seconds that `Retry-After` asks for, as seconds or as an HTTP date; 0 for nonsense. The most
    is an hour, beyond any breaker's patience."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(text)
            seconds = when.timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError, OverflowError):
            return 0.0
    if not math.isfinite(seconds) or seconds < 0:
        return 0.0
    return min(seconds, LONGEST_WAIT_S)
