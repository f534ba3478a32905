"""From the URLs of a request to parts of a chat: data in the request, or files below a root."""

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from videorft_jax.data.media.contract import Limits, MediaError
from videorft_jax.data.media.files import resolve
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.options import ServeOptions
from videorft_jax.serving.protocol import ChatRequest

# Keys of media_io_kwargs lead to those of `Model.prepare`.
KEYS = {
    "video": {"num_frames": "nframes", "fps": "fps", "min_frames": "min_frames",
              "max_frames": "max_frames", "min_pixels": "min_pixels", "max_pixels": "max_pixels",
              "total_pixels": "total_pixels"},
    "image": {"min_pixels": "min_pixels", "max_pixels": "max_pixels"},
}  # fmt: skip
# With these keys of "image", consecutive images are one clip.
FRAMES_KEYS = ("as_frames", "fps")
_ALL = 999  # frames a second, the most that a media contract takes
_DATA = re.compile(r"data:(image|video)/[\w.+-]+;base64,", re.IGNORECASE)
_FORMAT = (
    "Answer with one JSON object and nothing else, no code fence and no word before or after it."
)


def make_chat(
    request: ChatRequest, read_frame: Callable[[Mapping], np.ndarray], options: ServeOptions
) -> list[dict[str, Any]]:
    """The messages in the form that `Model.prepare` reads.

    read_frame: a part that is an image -> its pixels [h, w, 3], used where images become the frames
    of a clip. A chat without a system turn gets that of the options, where they have one. Raises
    Refused for a URL that is neither data nor a file below a root; nothing is ever fetched.
    """
    keys = read_keys(request.media_keys)
    frames = request.media_keys.get("image", {})
    chat, count = [], 0
    for index, message in enumerate(request.messages):
        role = "system" if message["role"] == "developer" else message["role"]
        content = message["content"]
        if isinstance(content, list):
            where = f"messages[{index}].content"
            parts = [_read_part(p, f"{where}[{i}]", keys, options) for i, p in enumerate(content)]
            count += sum(part["type"] != "text" for part in parts)
            if frames.get("as_frames"):
                shared = {"fps": float(frames.get("fps", 1.0)), **keys["image"]}
                parts = _join_frames(parts, shared, read_frame)
            content = parts
            if role != "user":
                content = "".join(part["text"] for part in parts)
        chat.append({"role": role, "content": content})
    if count > options.max_media:
        raise Refused(400, f"{count} media, at most {options.max_media} are taken", "messages")
    if options.system and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": options.system})
    if request.json_schema is not None:
        text = _FORMAT
        if request.json_schema:
            text += f" It follows this JSON schema: {json.dumps(dict(request.json_schema))}"
        _add_system(chat, text)
    return chat


def _add_system(chat, text):
    """Adds a text to the system's message, which it makes where there is none."""
    if chat[0]["role"] == "system":
        chat[0] = {"role": "system", "content": f"{chat[0]['content']}\n{text}"}
    else:
        chat.insert(0, {"role": "system", "content": f"You are a helpful assistant.\n{text}"})


def read_keys(given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys of parts by "video" and "image", of checked `media_io_kwargs`. Raises Refused."""
    found: dict[str, dict[str, Any]] = {"video": {}, "image": {}}
    for kind, fields in given.items():
        for name, value in fields.items():
            where = f"media_io_kwargs.{kind}.{name}"
            if kind == "image" and name == "as_frames":
                if not isinstance(value, bool):
                    raise Refused(400, f"{where} is no boolean", where, "invalid_type")
                continue
            if name not in KEYS[kind] and not (kind == "image" and name in FRAMES_KEYS):
                names = ", ".join([*KEYS[kind], *(FRAMES_KEYS if kind == "image" else ())])
                raise Refused(400, f"{where[:100]} is not known; use {names}", where[:100])
            whole = name != "fps"
            is_number = isinstance(value, int if whole else int | float)
            if isinstance(value, bool) or not is_number or not 0 < value < 1e9:
                raise Refused(400, f"{where} is no positive number", where, "invalid_type")
            if name in KEYS[kind]:
                found[kind][KEYS[kind][name]] = value
    frames = given.get("image", {})
    if "fps" in frames and not frames.get("as_frames"):
        where = "media_io_kwargs.image.fps"
        raise Refused(400, f"{where} is of images as frames; add as_frames: true", where)
    _spread_frames(found["video"])
    return found


def _spread_frames(keys: dict[str, Any]) -> None:
    """Writes a number of frames as the bounds of a rate that no clip has, so that a clip of fewer
    frames shows all of them, as in vLLM, and is not refused."""
    if (count := keys.pop("nframes", None)) is None:
        return
    where = "media_io_kwargs.video.num_frames"
    if count < 2:
        raise Refused(400, f"{where} is {count}; a clip has at least 2", where, "invalid_value")
    if both := keys.keys() & {"fps", "min_frames", "max_frames"}:
        raise Refused(400, f"{where} is given beside {min(both)}; give one of them", where)
    keys |= {"fps": _ALL, "min_frames": 2, "max_frames": count}


def _read_part(part, where, keys, options) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    name = kind.removesuffix("_url")
    return {"type": name, name: _read_url(part[kind]["url"], where, options), **keys[name]}


def _read_url(url: str, where: str, options: ServeOptions) -> bytes | str:
    """The bytes in a data URL, or the real path of a file below a root."""
    if match := _DATA.match(url):
        try:
            return base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, "the data URL is not base64", where) from None
    try:
        parts = urlsplit(url)
        is_file = parts.scheme == "file" and parts.netloc in ("", "localhost")
    except ValueError:
        is_file = False
    if not is_file:
        raise Refused(
            400, "the URL is neither data:image/...;base64, nor data:video/...;base64, nor file:// "
            "below a root of this server; nothing is fetched", where, "url_not_allowed",
        )  # fmt: skip
    outside = Refused(403, "the file is not below a root of this server", where, "path_not_allowed")
    try:
        limits = Limits(roots=options.roots)
        real = resolve(unquote(parts.path), options.roots[0], limits) if options.roots else ""
    except MediaError:
        raise outside from None
    if not real:
        raise outside
    if not os.path.isfile(real):
        raise Refused(404, "there is no such file", where, "file_not_found")
    return real


def _join_frames(parts, keys: dict[str, Any], read_frame) -> list[dict[str, Any]]:
    """The parts with each run of two or more images as one clip that has these keys."""
    joined: list[dict[str, Any]] = []
    run: list[dict[str, Any]] = []
    for part in [*parts, {"type": "end"}]:
        if part["type"] == "image":
            run.append(part)
            continue
        joined += run if len(run) < 2 else [_make_clip(run, keys, read_frame)]
        run = []
        joined.append(part)
    return joined[:-1]


def _make_clip(run, keys, read_frame):
    frames = [read_frame(part) for part in run]
    if len({frame.shape for frame in frames}) > 1:
        raise Refused(400, "images that are frames of one clip have different sizes", "messages")
    return {"type": "video", "video": np.stack(frames), **keys}
