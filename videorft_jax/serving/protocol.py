"""Reads the body of a chat completion in OpenAI's protocol, field by field."""

import dataclasses
import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from videorft_jax.serving.drawing import NUM_TOP
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.options import ServeOptions

log = logging.getLogger(__name__)

KNOWN = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
    "seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "response_format",
    "media_io_kwargs", "user",
}  # fmt: skip
FORMATS = ("text", "json_object", "json_schema")
_GREEDY = 1e-5  # Below this temperature logits overflow before they are drawn from.
_warned: set[str] = set()


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """What a client asks for, checked.

    messages: as they came, roles and contents of the right types. max_tokens: at most this many;
    None: as many as the server allows. num_top: likeliest ids to tell of each place. media_keys:
    `media_io_kwargs`, by "video" and "image". json_schema: what the reply follows, {} for any
    object and None for text. temperature: one that is so near to 0 that nothing but the likeliest
    token is drawn is 0.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    num_choices: int
    seed: int
    stop: tuple[str, ...]
    is_streamed: bool
    has_usage: bool
    has_logprobs: bool
    num_top: int
    media_keys: Mapping[str, Mapping[str, Any]]
    json_schema: Mapping[str, Any] | None


def read_chat(body: bytes, options: ServeOptions) -> ChatRequest:
    """The request in a body. Raises Refused, which names the field at fault."""
    fields = _read_object(body)
    _warn(fields)
    model = _take(fields, "model", str, options.name)
    if model != options.name:
        raise Refused(
            404, f"no model {model[:80]!r} is served here, only {options.name!r}", "model",
            "model_not_found",
        )  # fmt: skip
    limit = fields.get("max_completion_tokens")
    name = "max_tokens" if limit is None else "max_completion_tokens"
    stream = _take(fields, "stream", bool, False)
    more = _take(fields, "stream_options", dict, {})
    has_logprobs = _take(fields, "logprobs", bool, False)
    num_top = _number(fields, "top_logprobs", 0, 0, NUM_TOP, int)
    if num_top and not has_logprobs:
        raise Refused(400, "top_logprobs is given without logprobs; set that too", "top_logprobs")
    seed = fields.get("seed")
    temperature = _number(fields, "temperature", 1.0, 0, 2, float)
    return ChatRequest(
        messages=_read_messages(fields),
        max_tokens=_number(fields, name, None, 1, options.max_new_tokens, int),
        temperature=temperature if temperature >= _GREEDY else 0.0,
        top_p=_number(fields, "top_p", 1.0, 1e-6, 1, float),
        num_choices=_number(fields, "n", 1, 1, options.max_slots, int),
        seed=secrets.randbits(32) if seed is None
        else _number(fields, "seed", 0, -(2**63), 2**63 - 1, int) % 2**32,
        stop=_read_stop(fields),
        is_streamed=stream,
        has_usage=_take(more, "include_usage", bool, False),
        has_logprobs=has_logprobs,
        num_top=num_top,
        media_keys=_read_media_keys(fields),
        json_schema=_read_format(fields),
    )  # fmt: skip


def _read_object(body: bytes) -> dict[str, Any]:
    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    try:
        text = body.decode("utf-8")
        fields = json.loads(text, parse_constant=refuse)
        if "\\u" in text:  # Half of a surrogate pair is no character that could be sent back.
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON in UTF-8", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise Refused(400, "the body is no JSON object", code="invalid_json")
    return fields


def _warn(fields):
    """Says once of each key that it changes nothing here."""
    for name in fields.keys() - KNOWN - _warned:
        if len(_warned) < 100:
            _warned.add(name)
            log.warning("serve: requests hold %.60r, which is not known here and ignored", name)


def _take(fields, name, kind, default):
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise Refused(400, f"{name} is no {kind.__name__}", name, "invalid_type")
    return value


def _number(fields, name, default, low, high, kind):
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise Refused(400, f"{name} is no {kind.__name__}", name, "invalid_type")
    if not low <= value <= high:  # NaN lies in no bounds, and a whole number may have any size.
        shown = repr(value)[:40]
        raise Refused(400, f"{name} is {shown}; give {low} to {high}", name, "invalid_value")
    return kind(value)


def _read_stop(fields) -> tuple[str, ...]:
    stop = fields.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 16:
        raise Refused(400, "stop is no text and no list of at most 16", "stop", "invalid_type")
    if not all(isinstance(text, str) and 0 < len(text) <= 1000 for text in stop):
        raise Refused(400, "stop holds what is no text of 1 to 1000 characters", "stop")
    return tuple(stop)


def _read_media_keys(fields):
    found = _take(fields, "media_io_kwargs", dict, {})
    for kind, keys in found.items():
        if kind not in ("video", "image") or not isinstance(keys, dict):
            raise Refused(
                400, "media_io_kwargs holds objects under video and image only", "media_io_kwargs"
            )
    return found


def _read_format(fields):
    found = _take(fields, "response_format", dict, {"type": "text"})
    kind = found.get("type")
    if kind not in FORMATS:
        raise Refused(
            400, f"response_format: type is none of {', '.join(FORMATS)}", "response_format"
        )
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    schema = found.get("json_schema")
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise Refused(400, "response_format: json_schema holds no schema", "response_format")
    return schema


def _read_messages(fields):
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages is no list of at least one message", "messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise Refused(400, f"{where} is no object", where, "invalid_type")
        if message.get("role") not in ("system", "developer", "user", "assistant"):
            raise Refused(400, f"{where}: role is none of system, user, assistant", where)
        content = message.get("content")
        if not isinstance(content, str | list) or content == []:
            told = f"{where}: content is no text and no list of at least one part"
            raise Refused(400, told, where)
        for place, part in enumerate(content if isinstance(content, list) else ()):
            _check_part(part, f"{where}.content[{place}]", message["role"])
    if messages[-1]["role"] != "user":
        raise Refused(400, "the last message is not the user's", "messages")
    return tuple(messages)


def _check_part(part, where, role):
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url", "video_url"):
        raise Refused(400, f"{where}: type is none of text, image_url, video_url", where)
    value = part.get(kind)
    if kind == "text":
        if not isinstance(value, str):
            raise Refused(400, f"{where}: text is no text", where, "invalid_type")
        return
    if role != "user":
        raise Refused(400, f"{where}: only the user's messages hold media", where)
    if not isinstance(value, dict) or not isinstance(value.get("url"), str):
        raise Refused(400, f"{where}: {kind} is no object with a url", where, "invalid_type")
