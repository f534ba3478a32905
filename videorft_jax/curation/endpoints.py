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
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"price: {name} is {value}; give dollars per million tokens")
        if not 0 <= self.batch_factor <= 1:
            raise ValueError(f"price: batch_factor is {self.batch_factor}; give 0 to 1")

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

        require(self.model, "model is empty; name the model that the server serves")
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
            parts = urlsplit(url)
            require(
                parts.scheme in ("http", "https") and parts.hostname and not parts.username,
                f"{url!r} is no address of a server; write http(s)://host:port/v1, no key in it",
            )
        self._check_numbers(require)

    def _check_numbers(self, require):
        require(self.concurrency >= 1, "concurrency is below 1; allow one request at least")
        for name in ("deadline_s", "breaker_s"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value}; give seconds above 0")
        require(self.breaker_failures >= 1, "breaker_failures is below 1; give a number")
        require(self.max_output >= 1, "max_output is below 1; give tokens")
        require(
            self.context > self.max_output,
            f"context is {self.context}, of which a reply takes max_output = {self.max_output}; "
            "give more, or lower max_output",
        )
        for name in ("image_tokens", "rpm", "tpm"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}; give a number, or 0 where it is not known")
        require(0 <= self.temperature <= 2, f"temperature is {self.temperature}; give 0 to 2")
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; give above 0 to 1")
        try:
            json.dumps(dict(self.extra_body), allow_nan=False)
        except (TypeError, ValueError):
            require(False, "extra_body holds what JSON cannot; give finite numbers, texts and such")

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
