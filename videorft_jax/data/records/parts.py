"""Parts of a chat as people pass them: placeholders in texts, and qwen-vl-utils' keys of media."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.chats import KINDS, PLACEHOLDER, check_placeholders, split_text
from videorft_jax.data.records.formats import MEDIA, SIGNS, convert_row, detect_format
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import Record, parse_row
from videorft_jax.data.records.turns import name_speaker, read_part

SPANS = {"start": "start", "end": "end", "video_start": "start", "video_end": "end"}
RATES = ("fps", "sample_fps")
VIDEO_FIELDS = {name: name for name in ("min_frames", "max_frames", "min_pixels", "max_pixels")}
VIDEO_FIELDS |= {"total_pixels": "total_pixels", "nframes": "num_frames"}
IMAGE_FIELDS = {"min_pixels": "image_min_pixels", "max_pixels": "image_max_pixels"}
RESIZED = {name: name for name in ("resized_height", "resized_width")}
FPS_FRAMES = {"min_frames": 4, "max_frames": 768}  # qwen-vl-utils, where fps decides the number


def read_chat(chat: Any) -> list[dict[str, Any]]:
    """A chat in Hugging Face's form from one as people have it: a list of turns, of role and
    content or of from and value, or a plain dict, a row of any format that files may have.

    A row of VideoRFT becomes the prompt of a rollout, without its answer; of a row that is a chat
    all turns are kept. Media stand where the text of their turn has placeholders such as <video>.
    Raises ValueError, one line, for a part without a source, for keys that would change nothing,
    and for a turn with another number of placeholders than of media.
    """
    if isinstance(chat, Record):
        return _read_record(chat)
    if isinstance(chat, Mapping):
        return _read_row(dict(chat))
    if isinstance(chat, str) or not all(isinstance(turn, Mapping) for turn in chat):
        raise ValueError("prepare: a chat is a list of turns or a record; got something else")
    return place_media([_read_turn(index, turn) for index, turn in enumerate(chat)])


def _read_record(record: Record) -> list[dict[str, Any]]:
    if record.opening or any(item.lines for item in record.media):
        raise ValueError(
            "prepare: an opened answer and the lines of a clip are of evaluations; leave them out"
        )
    return build_messages(record)


def _read_row(row: dict[str, Any]) -> list[dict[str, Any]]:
    form = detect_format(row, "prepare")
    sign = SIGNS.get(form, "")
    if sign and form != "trl" and not any(row.get(column) for column in MEDIA):
        return read_chat(row[sign])  # All media stand in the turns, with keys of their own.
    if form == "videorft":
        return _read_record(parse_row(row, "prepare"))
    made = convert_row(row, form, "prepare", 0)
    unused = [name for name in made if name.partition(".")[0] in KINDS]
    if unused:
        raise ValueError(
            f"prepare: {', '.join(sorted(unused))}: not known beside columns of media; put each"
            " item into its turn"
        )
    media = [
        {"type": item["type"], item["type"]: item["path"]}
        | {name: item[name] for name in ("start", "end", "fps") if name in item}
        for item in made["media"]
    ]
    return [turn | {"content": split_text(turn["content"], media)} for turn in made["messages"]]


def _read_turn(index: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list | tuple):
        content = [_read_part(index, part) for part in content]
    return {"role": name_speaker(role), "content": content}


def _read_part(index: int, part: Any) -> dict[str, Any]:
    """The part with its source under the name of its kind, where others call it path or url."""
    found = read_part(part)
    if found is None:
        kind = part.get("type") if isinstance(part, Mapping) else None
        raise ValueError(f"prepare: message {index}: part {kind!r}; use text, image or video")
    kind = found["type"]
    if kind != "text" and kind not in found:
        raise ValueError(f"prepare: message {index}: a part without its {kind}; add a path")
    return found


def place_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat with each picture and clip where the text of its turn has a placeholder such as
    <video>. Turns without placeholders stay as they are.

    Raises ValueError when a turn has another number of placeholders than of media, or of others.
    """
    placed = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str | list | tuple):
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            media = [part for part in parts if part.get("type") != "text"]
            text = "".join(part.get("text") or "" for part in parts if part.get("type") == "text")

            def fail(field: str, reason: str, what: str, remedy: str, index: int = index) -> None:
                raise ValueError(f"prepare: message {index}: {what}; {remedy}")

            check_placeholders([text], [part.get("type") for part in media], fail)
            if media and PLACEHOLDER.search(text):
                message = {**message, "content": split_text(text, media)}
        placed.append(dict(message))
    return placed


def read_keys(
    part: Mapping[str, Any], contract: MediaContract, is_file: bool
) -> tuple[MediaContract, dict[str, Any]]:
    """The contract of one part, with its own limits in place of the run's, and its start and end.

    is_file: a file, whose `fps` says how densely it is sampled; of frames it is their own rate.
    Raises ValueError for a key that is not known, which would change nothing.
    """
    kind = part["type"]
    fields = (VIDEO_FIELDS if kind == "video" else IMAGE_FIELDS) | RESIZED
    known = {"type", kind, *fields, *(SPANS if kind == "video" else ()), *RATES}
    unknown = sorted(
        name for name, value in part.items() if name not in known and value is not None
    )
    if unknown:
        raise ValueError(
            f"prepare: {kind}: {', '.join(unknown)}: not known here; use {', '.join(sorted(known))}"
        )
    wrong = [name for name in {*fields, *RATES, *SPANS} if not _is_number(part.get(name))]
    if wrong:
        name = min(wrong)
        raise ValueError(f"prepare: {kind}: {name}: {part[name]!r} is no number; write one")
    changes = {fields[name]: part[name] for name in fields if part.get(name) is not None}
    rate = part.get("fps") or part.get("sample_fps")
    if is_file and kind == "video" and rate is not None:
        if "num_frames" in changes:
            raise ValueError("prepare: video: fps and nframes contradict each other; give one")
        changes = FPS_FRAMES | changes | {"fps": rate}
    times = {ours: part[name] for name, ours in SPANS.items() if part.get(name) is not None}
    return dataclasses.replace(contract, **changes), times


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
