"""Parts of a chat as people pass them: placeholders in texts, and qwen-vl-utils' keys of media."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.chats import PLACEHOLDER, split_text

SPANS = {"start": "start", "end": "end", "video_start": "start", "video_end": "end"}
RATES = ("fps", "sample_fps")
VIDEO_FIELDS = {name: name for name in ("min_frames", "max_frames", "min_pixels", "max_pixels")}
VIDEO_FIELDS |= {"total_pixels": "total_pixels", "nframes": "num_frames"}
IMAGE_FIELDS = {"min_pixels": "image_min_pixels", "max_pixels": "image_max_pixels"}
FPS_FRAMES = {"min_frames": 4, "max_frames": 768}  # qwen-vl-utils, where fps decides the number


def place_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat with each picture and clip where the text of its turn has a placeholder such as
    <video>. Turns without placeholders stay as they are.

    Raises ValueError when a turn has another number of placeholders than of media.
    """
    placed = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list | tuple) and message.get("role") == "user":
            media = [part for part in content if part.get("type") != "text"]
            text = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
            found = len(PLACEHOLDER.findall(text))
            if found and found != len(media):
                raise ValueError(
                    f"prepare: message {index}: {found} placeholders, {len(media)} media; write"
                    " one placeholder for each item, or none"
                )
            if found:
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
    fields = VIDEO_FIELDS if kind == "video" else IMAGE_FIELDS
    known = {"type", kind, *fields, *(SPANS if kind == "video" else ()), *RATES}
    unknown = sorted(
        name for name, value in part.items() if name not in known and value is not None
    )
    if unknown:
        raise ValueError(
            f"prepare: {kind}: {', '.join(unknown)}: not known here; use {', '.join(sorted(known))}"
        )
    changes = {fields[name]: part[name] for name in fields if part.get(name) is not None}
    rate = part.get("fps") or part.get("sample_fps")
    if is_file and kind == "video" and rate is not None:
        changes = FPS_FRAMES | changes | {"fps": rate}
    times = {ours: part[name] for name, ours in SPANS.items() if part.get(name) is not None}
    return dataclasses.replace(contract, **changes), times
