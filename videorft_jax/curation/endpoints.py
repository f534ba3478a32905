"""Endpoints: the models that curation asks, what they cost, and keys that never show.

An amount of money is an integer of nano-dollars, since one token at $0.03 a million costs 30 of
them and sums of floats would drift over a million requests.
"""

import dataclasses
import functools
import json
import logging
import math
import operator
import os
import re
from fractions import Fraction
from urllib.parse import urlsplit

from videorft_jax.curation.licences import Terms

NANO = 10**9
STRUCTURED = ("json_schema", "json_object", "none")
KINDS = ("http", "local")
MOST_TOKENS = 10**9  # No request has so many, and their price is a number that SQLite can hold.
MOST_DOLLARS = 10**6  # for a million tokens
MOST_CONNECTIONS = 10_000
# Fields of a request's body that curation writes, and those that change what a reply is or costs.
OWN_FIELDS = frozenset(
    ("model", "messages", "max_tokens", "temperature", "top_p", "seed", "response_format", "n",
     "stream")
)  # fmt: skip
_SECRET = re.compile(r"(Bearer\s+|\bsk-)[^\s'\"\\,;]+", re.IGNORECASE)


class Secret:
    """An API key whose `repr` never shows it; `reveal` is called where a header is made."""

    __slots__ = ("_text",)

    def __init__(self, text: str):
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self):
        raise TypeError("a secret is not pickled")


class HideSecrets(logging.Filter):
    """A filter of log handlers that blanks what looks like a key in any message."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if _SECRET.search(text):
            record.msg, record.args = _SECRET.sub(r"\1...", text), ()
        return True


@dataclasses.dataclass(frozen=True)
class Price:
    """Dollars per million tokens, as of a date that the data card prints. batch_factor: share of
    them that a request in a batch file costs."""

    input: float
    cached: float
    output: float
    as_of: str = ""
    batch_factor: float = 1.0

    def __post_init__(self):
        for name in ("input", "cached", "output"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= MOST_DOLLARS):
                raise ValueError(f"price: {name} is {value!r}; give dollars per million tokens")
        if not isinstance(self.as_of, str):
            raise ValueError(f'price: as_of is {self.as_of}; write a text, "{self.as_of}"')
        if not (_is_number(self.batch_factor) and 0 <= self.batch_factor <= 1):
            raise ValueError(f"price: batch_factor is {self.batch_factor!r}; give 0 to 1")

    def cost(
        self, input_tokens: int, output_tokens: int, cached_tokens: int = 0, *,
        is_batch: bool = False,
    ) -> int:  # fmt: skip
        """Nano-dollars of one request, rounded up."""
        cached = min(cached_tokens, input_tokens)
        *each, whole = self._batch_parts if is_batch else self._parts
        counts = (input_tokens - cached, cached, output_tokens)
        return -(-sum(map(operator.mul, each, counts)) // whole)

    @functools.cached_property
    def _parts(self) -> tuple[int, ...]:
        return self._split(Fraction(1))

    @functools.cached_property
    def _batch_parts(self) -> tuple[int, ...]:
        return self._split(Fraction(str(self.batch_factor)))

    def _split(self, factor: Fraction) -> tuple[int, ...]:
        """Nano-dollars of an input, a cached and an output token as whole numbers of the same
        fraction, and that fraction's denominator: requests are many, and fractions slow."""
        prices = [Fraction(str(p)) * factor for p in (self.input, self.cached, self.output)]
        nano = [price * NANO / 1_000_000 for price in prices]
        whole = math.lcm(*(price.denominator for price in nano))
        return (*(int(price * whole) for price in nano), whole)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One model to ask.

    Attributes:
      name: how configs, reports and the card call it; no part of a request's key.
      model, revision: what is asked for; both are part of the key.
      kind: "http", a server that speaks the OpenAI protocol, or "local", this project's model in
        the same process; no part of the key either.
      base_urls: addresses, up to and with /v1, of the servers of kind "http"; requests are spread
        over them by their keys.
      checkpoint, dtype: what kind "local" loads, as `videorft serve` does: a folder, and bfloat16
        or float32.
      key_env: environment variable that holds the API key; empty: no key is sent.
      structured: what the server enforces: a JSON schema, any JSON object, or nothing.
      context, max_output: most tokens of a request altogether, and of its reply.
      image_tokens: input tokens of one image; 0: one for each 784 pixels.
      rpm, tpm: requests and tokens a minute that the provider allows; 0: not known.
      concurrency: most requests in flight. deadline_s: most seconds from sending to the last byte.
      breaker_failures, breaker_s: failures in a row, or seconds without a success, that stop it.
      temperature, top_p: how it draws. extra_body: further fields of the request body.
      pin_model: stop when the server says that another model answered.
      terms: what the model's provider says about training on its outputs, for the card.
    """

    name: str
    model: str
    revision: str = ""
    kind: str = "http"
    base_urls: tuple[str, ...] = ()
    checkpoint: str = ""
    dtype: str = "bfloat16"
    key_env: str = ""
    structured: str = "json_schema"
    context: int = 32768
    max_output: int = 4096
    image_tokens: int = 0
    rpm: int = 0
    tpm: int = 0
    concurrency: int = 32
    deadline_s: float = 300.0
    breaker_failures: int = 20
    breaker_s: float = 600.0
    temperature: float = 0.6
    top_p: float = 0.95
    extra_body: tuple[tuple[str, object], ...] = ()
    pin_model: bool = False
    price: Price | None = None
    terms: Terms = Terms("unknown")

    def __post_init__(self):
        def require(ok, what):
            if not ok:
                raise ValueError(f"endpoint {self.name}: {what}")

        require(
            isinstance(self.model, str) and self.model,
            "model is no text or empty; name the model that the server serves",
        )
        require("@" not in self.revision, f"revision is {self.revision!r}; leave the @ out")
        require(
            self.structured in STRUCTURED,
            f"structured is {self.structured!r}; choose one of {', '.join(STRUCTURED)}",
        )
        require(self.kind in KINDS, f"kind is {self.kind!r}; choose http or local")
        if self.kind == "local":
            require(self.checkpoint, "checkpoint is empty; give the folder of the local model")
            require(not self.base_urls, "kind is local, which has no base_urls; leave them out")
            require(not self.key_env, "kind is local, which needs no key; leave key_env out")
            require(
                self.dtype in ("bfloat16", "float32"),
                f"dtype is {self.dtype!r}; choose bfloat16 or float32",
            )
        else:
            require(self.base_urls, "base_urls is empty; give the server's address, with /v1")
            require(not self.checkpoint, "checkpoint is for kind local; leave it out")
        for url in self.base_urls:
            require(
                _is_address(url),
                f"{url!r} is no address of a server; write http(s)://host:port/v1, no key in it",
            )
        self._check_numbers(require)

    def _check_numbers(self, require):
        for name, least, most in (
            ("concurrency", 1, MOST_CONNECTIONS), ("max_output", 1, MOST_TOKENS),
            ("context", 1, MOST_TOKENS), ("image_tokens", 0, MOST_TOKENS // 1000),
            ("rpm", 0, MOST_TOKENS), ("tpm", 0, MOST_TOKENS), ("breaker_failures", 1, MOST_TOKENS),
        ):  # fmt: skip
            value = getattr(self, name)
            require(least <= value <= most, f"{name} is {value}; give {least} to {most}")
        require(
            self.context > self.max_output,
            f"context is {self.context}, of which a reply takes max_output = {self.max_output}; "
            "give more, or lower max_output",
        )
        for name in ("deadline_s", "breaker_s"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"{name} is {value}; give seconds above 0")
        temperature, top_p = self.temperature, self.top_p
        require(
            math.isfinite(temperature) and temperature >= 0,
            f"temperature is {temperature}; give a number from 0",
        )
        require(0 < top_p <= 1, f"top_p is {top_p}; give a number above 0, and 1 at most")
        own = sorted(OWN_FIELDS.intersection(name for name, _ in self.extra_body))
        require(
            not own, f"extra_body has {', '.join(own)}, which curation sets itself; leave it out"
        )
        try:
            json.dumps(dict(self.extra_body), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"endpoint {self.name}: extra_body cannot be sent: {error}; give values of JSON"
            ) from None

    def read_key(self) -> Secret | None:
        """The key of this endpoint; ValueError names the variable that is not set."""
        if not self.key_env:
            return None
        text = os.environ.get(self.key_env, "")
        if not text or not text.isascii() or any(c.isspace() for c in text):
            raise ValueError(
                f"endpoint {self.name}: the environment variable {self.key_env} holds no key; "
                f"export {self.key_env}=..., or clear key_env if the server wants none"
            )
        return Secret(text)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_address(url: object) -> bool:
    """Whether requests can be sent to a path below `url`, which holds no secret."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        is_port = parts.port is None or parts.port > 0
    except ValueError:  # brackets that do not close, a port that is no number
        return False
    is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_web and is_port and not (parts.username or parts.query or parts.fragment)
