"""Requests: what is asked of a model, and the key under which its reply is kept for good.

A key holds everything that shapes the reply and nothing else, so that another server of the same
model, another API key or another limit keeps every reply, and a changed template keeps none.
"""

import dataclasses
import functools
import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

KEY_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A frame by the sha256 of its RGB pixels; the pixels themselves are read when it is sent."""

    digest: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Request:
    """One question to one endpoint.

    Attributes:
      stage, unit: which stage asks, for which record or clip; for people, no part of the key.
      endpoint: name of the endpoint; no part of the key.
      model: model and revision.
      system: the system turn. parts: the user's turn, texts and `Picture`s in order.
      max_tokens, temperature, top_p, seed: how the reply is drawn.
      schema: JSON schema of the reply, or None. structured: how it is asked for.
      extra_body: further fields of the body.
      template: digest of the template. contract: digest of the media contract, "" without media.
      attempt: 0, or the number of the semantic attempt: a wrong or unreadable answer, asked again.
      load: returns the JPEG bytes of every picture, in order of `parts`.
    """

    stage: str
    unit: str
    endpoint: str
    model: str
    system: str
    parts: tuple[str | Picture, ...]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    template: str
    schema: Mapping[str, Any] | None = None
    structured: str = "none"
    extra_body: tuple[tuple[str, Any], ...] = ()
    contract: str = ""
    attempt: int = 0
    load: Callable[[], list[bytes]] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes of all text in the request, its schema's included."""
        texts = [self.system, *(part for part in self.parts if isinstance(part, str))]
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return size + (len(canonical(self.schema)) if self.schema else 0)

    @functools.cached_property
    def key(self) -> str:
        """sha256 over canonical JSON: sorted keys, no spaces, text in Unicode's form C."""
        parts = [
            {"picture": part.digest, "size": [part.width, part.height]}
            if isinstance(part, Picture)
            else {"text": part}
            for part in self.parts
        ]
        fields = {
            "version": KEY_VERSION,
            "model": self.model,
            "system": self.system,
            "parts": parts,
            "max_tokens": self.max_tokens,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "seed": self.seed,
            "template": self.template,
            "schema": self.schema,
            "structured": self.structured if self.schema else "none",
            "extra_body": dict(self.extra_body),
            "contract": self.contract,
            "attempt": self.attempt,
        }
        return digest(fields)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model said. `finish` is the provider's reason, `model` the name that it returned;
    `estimated` says that the usage was missing or absurd and an upper bound stands for it."""

    content: str
    reasoning: str = ""
    finish: str = "stop"
    refusal: str = ""
    model: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False


@dataclasses.dataclass(frozen=True)
class Dead:
    """A request given up: the reason's code, the last HTTP status, whether asking again may help.
    `detail` is one line without any text of prompt or headers."""

    reason: str
    status: int | None = None
    retryable: bool = False
    detail: str = ""


def canonical(value: Any) -> str:
    """JSON of `value` that does not depend on key order or on Unicode's form."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return unicodedata.normalize("NFC", text)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def draw_seed(unit: str, attempt: int) -> int:
    """A seed below 2^31 from the unit's name: resumed runs draw alike, equal questions do not."""
    return int(hashlib.sha256(f"{unit}/{attempt}".encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def estimate_tokens(request: Request, image_tokens: int) -> int:
    """Input tokens of a request, rounded up: two and a half characters a token, far below what
    tokenizers of today reach on prose, so that a budget reserved by it is an upper bound there;
    `image_tokens` for an image, or one for each 784 pixels where it is 0."""
    images = sum(image_tokens or -(-p.width * p.height // 784) for p in request.pictures)
    return -(-2 * request.num_bytes // 5) + images + 64
