"""The ways in which the field writes a turn of a chat and its parts, read as Hugging Face's."""

from collections.abc import Mapping
from typing import Any

# Who speaks, in small letters.
SPEAKERS = {"human": "user", "user": "user", "system": "system"}
SPEAKERS |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant")
TURN_KEYS = (("role", "content"), ("from", "value"))
# Types of parts in OpenAI's protocols.
PART_TYPES = {"image_url": "image", "video_url": "video"}
PART_TYPES |= {"input_text": "text", "input_image": "image", "input_video": "video"}
UNTYPED = ("text", "image", "video", *PART_TYPES)  # what tells the type of a part without one
SOURCES = ("path", "url")  # other names of what stands under "video" or "image"


def name_speaker(role: Any) -> Any:
    """system, user or assistant; of a role that is not known, the role itself."""
    return SPEAKERS.get(role.strip().lower(), role) if isinstance(role, str) else role


def read_turn(turn: Any) -> tuple[Any, Any] | None:
    """(role, what is said) of a turn of role and content, or of from and value; None of others."""
    for role, said in TURN_KEYS:
        if isinstance(turn, Mapping) and role in turn and said in turn:
            return name_speaker(turn[role]), turn[said]
    return None


def read_part(part: Any) -> dict[str, Any] | None:
    """A part as {"type": "text", "text": ...}, or {"type": "video", "video": source, ...} with its
    other keys, without the source where it has none; None for a part of another type.

    The type may be absent where the part says by a key what it is, or be that of OpenAI's protocols
    such as image_url. A source may be called path or url, and may begin with file://.
    """
    if not isinstance(part, Mapping):
        return None
    named = [name for name in UNTYPED if name in part]
    # Tables fill up with None what a part does not have.
    told = [name for name in named if part[name] is not None] or named
    written = part.get("type") or next(iter(told), None)
    kind = PART_TYPES.get(written, written) if isinstance(written, str) else None
    if kind == "text":
        return {"type": "text", "text": part["text"]} if isinstance(part.get("text"), str) else None
    if kind not in ("image", "video"):
        return None
    # A part of type input_image holds its source as image_url, as OpenAI's Responses have it.
    names = (kind, *(name for name, of in PART_TYPES.items() if of == kind), *SOURCES)
    source = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(source, Mapping):
        source = next((source[name] for name in SOURCES if source.get(name)), source)
    if isinstance(source, str):
        source = source.removeprefix("file://")
    more = {name: value for name, value in part.items() if name not in ("type", *names)}
    return {"type": kind, **more} | ({} if source is None else {kind: source})
