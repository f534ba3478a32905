"""Parts of a chat as people pass them: placeholders in texts, and qwen-vl-utils' keys of media."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from videorft_jax.data.media.contract import MediaContract, cut_text
from videorft_jax.data.media.given import read_base64, read_given
from videorft_jax.data.records.chats import KINDS, PLACEHOLDER, check_placeholders, split_text
from videorft_jax.data.records.formats import MEDIA, SIGNS, convert_row, detect_format
from videorft_jax.data.records.prompts import build_messages
from videorft_jax.data.records.records import Record, parse_row
from videorft_jax.data.records.turns import SOURCES, name_speaker, read_part

SPANS = {"start": "start", "end": "end", "video_start": "start", "video_end": "end"}
RATES = ("fps", "sample_fps")
VIDEO_FIELDS = {name: name for name in ("min_frames", "max_frames", "min_pixels", "max_pixels")}
VIDEO_FIELDS |= {"total_pixels": "total_pixels", "nframes": "num_frames"}
IMAGE_FIELDS = {"min_pixels": "image_min_pixels", "max_pixels": "image_max_pixels"}
COUNTS = ("nframes", "min_frames", "max_frames")
RESIZED = {name: name for name in ("resized_height", "resized_width")}
_IN_MAPPING = ("bytes", "url", "path")
MOST_RATE = 10_000  # frames a second; as many seconds may lie between two
MOST = 10**12  # No number of a part means anything above it.
# The bounds of qwen-vl-utils where a rate, and no fixed count, decides the number of frames.
FPS_FRAMES = {"min_frames": 4, "max_frames": 768}


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
    if not isinstance(chat, list | tuple) or not all(isinstance(turn, Mapping) for turn in chat):
        raise ValueError("prepare: a chat is a list of turns or a record; got something else")
    return place_media([_read_turn(index, turn) for index, turn in enumerate(chat)])


def _read_record(record: Record) -> list[dict[str, Any]]:
    if record.opening or any(item.lines for item in record.media):
        raise ValueError(
            "prepare: an opened answer and the lines of a clip are of evaluations; leave them out"
        )
    return build_messages(record)


def _read_row(row: dict[str, Any]) -> list[dict[str, Any]]:
    if ("role" in row and "content" in row) or ("from" in row and "value" in row):
        raise ValueError("prepare: a turn stands where a chat belongs; give a list of chats")
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
        {"type": item["type"], item["type"]: read_given(item["path"], item["type"])}
        | {name: item[name] for name in ("start", "end", "fps") if name in item}
        for item in made["media"]
    ]
    return [turn | {"content": split_text(turn["content"], media)} for turn in made["messages"]]


def _read_turn(index: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list | tuple):
        content = [_read_part(index, part) for part in content]
    elif not isinstance(content, str):
        what = type(content).__name__
        raise ValueError(f"prepare: message {index}: its content is a {what}; give text or parts")
    return {"role": name_speaker(role), "content": content}


def _read_part(index: int, part: Any) -> dict[str, Any]:
    """The part with its source under the name of its kind, where others call it path or url."""
    where = f"prepare: message {index}"
    found = read_part(part)
    if found is None:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            what = type(part.get("text")).__name__
            raise ValueError(f"{where}: a part of text whose text is a {what}; write a string")
        raise ValueError(f"{where}: part {cut_text(repr(kind))}; use text, image or video")
    kind = found["type"]
    if kind == "text":
        return found
    names = (kind, f"{kind}_url", f"input_{kind}", *SOURCES, "base64")
    given = [name for name in names if part.get(name) is not None]
    if not given:
        raise ValueError(f"{where}: a part without its {kind}; add a path")
    if len(given) > 1:
        raise ValueError(f"{where}: a part with {' and '.join(given)}; give one of them")
    source = part[given[0]]
    if isinstance(source, Mapping):
        source = _read_mapping(source, where)
    source = read_base64(source, kind) if given[0] == "base64" else read_given(source, kind)
    rest = {name: value for name, value in found.items() if name not in names}
    return rest | {kind: source}


def _read_mapping(value: Mapping[str, Any], where: str) -> Any:
    """The source in {"url": ...}, as chats of OpenAI have it, or in {"path": ..., "bytes": ...}, as
    data sets of Hugging Face do; the bytes go first."""
    if set(value) - {*_IN_MAPPING, "detail"} or value.get("detail") not in (None, "auto"):
        names = cut_text(", ".join(map(str, value)))
        raise ValueError(f"{where}: a source with {names}; give a path, or url alone")
    found = next((value[name] for name in _IN_MAPPING if value.get(name) is not None), None)
    if found is None:
        raise ValueError(f"{where}: a source without its url; add one")
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
    part: Mapping[str, Any], contract: MediaContract, is_file: bool, *, is_array: bool = False
) -> tuple[MediaContract, dict[str, Any]]:
    """The contract of one part, with its own limits in place of the run's, and its start and end.

    is_file: a file, whose `fps` says how densely it is sampled; of frames it is their own rate.
    is_array: frames that are decoded already, of which all are taken. Where a part gives a greatest
    number alone, a least one above it comes down to it, and the other way round.

    Raises ValueError, one line, for a key that is not known or would change nothing, and for what
    is no number.
    """
    kind = part["type"]
    fields = (VIDEO_FIELDS if kind == "video" else IMAGE_FIELDS) | RESIZED
    known = {"type", kind, *fields, *(SPANS if kind == "video" else ()), *RATES}
    given = {name: value for name, value in part.items() if value is not None}
    if unknown := sorted(map(str, given.keys() - known)):
        names = cut_text(", ".join(unknown))
        raise ValueError(
            f"prepare: {kind}: {names}: not known here; use {', '.join(sorted(known))}"
        )
    values = {name: _read_number(kind, name, given[name]) for name in given if name in
               {*fields, *RATES, *SPANS}}  # fmt: skip
    if is_array and (unused := sorted(values.keys() & {*SPANS, *COUNTS})):
        raise ValueError(
            f"prepare: {kind}: {', '.join(unused)}: of decoded frames all are taken; take them out "
            "of the array instead"
        )
    changes = {fields[name]: values[name] for name in fields if name in values}
    rate = values.get("fps", values.get("sample_fps"))
    if rate is not None and not 1 / MOST_RATE <= rate <= MOST_RATE:
        raise ValueError(
            f"prepare: {kind}: fps: {rate} is no rate; give frames a second, at most {MOST_RATE}"
        )
    if is_file and kind == "video" and rate is not None:
        if "num_frames" in changes:
            raise ValueError("prepare: video: fps and nframes contradict each other; give one")
        changes = FPS_FRAMES | changes | {"fps": rate}
    times = {ours: values[name] for name, ours in SPANS.items() if name in values}
    return dataclasses.replace(contract, **_widen(contract, changes)), times


def _widen(contract, changes):
    """The changes, and with a bound alone the other one where it would lie on the wrong side."""
    for least in ("min_frames", "min_pixels", "image_min_pixels"):
        most = least.replace("min", "max")
        if most in changes and least not in changes:
            changes |= {least: min(getattr(contract, least), changes[most])}
        if least in changes and most not in changes:
            changes |= {most: max(getattr(contract, most), changes[least])}
    return changes


def _read_number(kind: str, name: str, value: Any) -> int | float:
    """A number as Python has it, of NumPy's too; counts and sizes are whole."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not abs(value) < MOST:
        shown = cut_text(repr(value), 40)
        raise ValueError(f"prepare: {kind}: {name}: {shown} is no number; write one")
    if name in (*RATES, *SPANS):
        return float(value) if not isinstance(value, numbers.Integral) else int(value)
    if value != int(value):
        if name in RESIZED:
            return float(value)  # The contract says that both are in pixels.
        raise ValueError(f"prepare: {kind}: {name}: {value} is no whole number; write one")
    return int(value)
