"""Descriptions out of model text: a ladder of parsers, then checks that no schema can express."""

import functools
import json
import math
import re
from typing import Annotated, Any

import json_repair
import pydantic

MAX_DEPTH = 8
MAX_STRING = 4096
TIME_TOLERANCE_S = 0.5
_THINK = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)

Text = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class Frame(_Strict):
    """One frame of a clip. Every key is required; what there may be nothing of is nullable."""

    time: float
    caption: Text
    objects: list[str]
    actions: list[str]
    scene: Text
    notable_features: str | None
    spatial_relations: list[str]
    interactions: str | None


class FrameWithPeople(Frame):
    """A frame with what is to be seen of people: personal data, which is asked for only on wish."""

    people: str | None


class BadReply(ValueError):
    """Content that cannot be used. `code` is bad_json, bad_schema or frame_count; str() is one
    sentence that a model can act on and holds none of the content."""

    def __init__(self, code: str, fault: str):
        super().__init__(fault)
        self.code = code


@functools.cache
def video_model(people: bool) -> type[pydantic.BaseModel]:
    """The model of a clip's description."""
    frame = FrameWithPeople if people else Frame
    return pydantic.create_model(
        "VideoDescription", __base__=_Strict, video_caption=(Text, ...), frames=(list[frame], ...)
    )


@functools.cache
def image_model(field: str) -> type[pydantic.BaseModel]:
    """The model of a picture's description: a caption, and a list under the family's field."""
    own = {"caption": (Text, ...), field: (list[str], ...)}
    return pydantic.create_model("ImageDescription", __base__=_Strict, **own)


@functools.cache
def json_schema(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The schema in the subset that providers share: all keys required, no others, no lengths."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return plain(definitions[node["$ref"].rsplit("/", 1)[1]])
        dropped = ("title", "description", "minLength", "default")
        own = {}
        for key, value in node.items():
            if key == "properties":  # its keys are names of fields, "title" perhaps
                own[key] = {name: plain(value[name]) for name in value}
            elif key not in dropped:
                own[key] = plain(value)
        return own

    return plain(schema)


def parse(content: str, model: type[pydantic.BaseModel]) -> tuple[dict[str, Any], bool]:
    """(description, whether it had to be repaired). Raises BadReply."""
    value, is_repaired = _parse_json(content)
    if not isinstance(value, dict):
        raise BadReply("bad_json", "It is not a JSON object.")
    if (depth := _depth(value)) > MAX_DEPTH:
        raise BadReply("bad_schema", f"It nests {depth} levels deep.")
    try:
        return model.model_validate(value).model_dump(), is_repaired
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"])
        place = re.sub(r"[^\w.]", "?", place)
        raise BadReply("bad_schema", f"At {place or 'the top'}: {first['type']}.") from None


def check_frames(description: dict[str, Any], times: list[float]) -> None:
    """Raises BadReply frame_count unless there is one entry for each time, in order."""
    frames = description["frames"]
    if len(frames) != len(times):
        raise BadReply("frame_count", f"There are {len(times)} frames and {len(frames)} entries.")
    for number, (frame, time) in enumerate(zip(frames, times, strict=True)):
        if not abs(frame["time"] - time) <= TIME_TOLERANCE_S:
            raise BadReply("frame_count", f"The time of entry {number + 1} is not {time:g}.")


def _parse_json(content: str) -> tuple[Any, bool]:
    text = _THINK.sub("", content, count=1).strip()
    for candidate in (text, _first_object(text)):
        try:
            return _loads(candidate), candidate != content.strip()
        except json.JSONDecodeError:
            continue
    candidate = _first_object(text)
    if "{" not in candidate:
        raise BadReply("bad_json", "It holds no JSON object.")
    try:
        repaired = json_repair.loads(candidate)
        return _loads(json.dumps(repaired)), True
    except (ValueError, RecursionError):
        raise BadReply("bad_json", "It is not valid JSON.") from None


def _loads(text: str) -> Any:
    def pairs(items):
        if len({key for key, _ in items}) != len(items):
            raise BadReply("bad_schema", "A key occurs twice in one object.")
        for key, value in items:
            for item in (key, *(value if isinstance(value, list) else [value])):
                if isinstance(item, str) and len(item) > MAX_STRING:
                    raise BadReply("bad_schema", f"A text is longer than {MAX_STRING} characters.")
        return dict(items)

    def constant(name):
        raise BadReply("bad_schema", f"{name} is no number of JSON.")

    def number(text):
        value = float(text)
        if not math.isfinite(value):
            raise BadReply("bad_schema", "A number is too large.")
        return value

    try:
        return json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number
        )
    except RecursionError:
        raise BadReply("bad_schema", f"It nests deeper than {MAX_DEPTH} levels.") from None


def _first_object(text: str) -> str:
    """The first balanced {...}, or from the first brace on where none is balanced."""
    start = text.find("{")
    if start < 0:
        return text
    depth, is_string, is_escaped = 0, False, False
    for place in range(start, len(text)):
        char = text[place]
        if is_string:
            if is_escaped:
                is_escaped = False
            elif char == "\\":
                is_escaped = True
            elif char == '"':
                is_string = False
        elif char == '"':
            is_string = True
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if not depth:
                return text[start : place + 1]
    return text[start:]


def _depth(value: Any) -> int:
    level, nodes = 0, [value]
    while nodes:
        level += 1
        nodes = [
            child
            for node in nodes
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return level
