"""What a row may hold several of: media, turns of a chat, and placeholders in its texts."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.files import PICTURES
from videorft_jax.data.records.lines import MARK, REMEDY, Line, read_lines

KINDS = ("image", "video")
ROLES = ("system", "user", "assistant")
# How texts of the field say where a clip stands: LLaVA and ShareGPT, and Qwen's own control tokens.
PLACEHOLDER = re.compile(
    r"\n*(?:<(image|video)>|<\|vision_start\|><\|(image|video)_pad\|><\|vision_end\|>)\n*"
)
TIMES = ("start", "end", "fps")
RESIZED = ("resized_height", "resized_width")
Fail = Callable[..., None]  # (field, reason, value, remedy)


@dataclasses.dataclass(frozen=True, slots=True)
class MediaItem:
    """One video or image of a record: its kind, its path relative to the data root and, of a video,
    the seconds within the clip that are meant. A video may also be a folder of pictures, or a tuple
    of their paths, with `fps`, the frames that are shown a second. `resized` is the (height, width)
    in pixels that the row asks for in place of what the media contract would choose. `lines` are
    texts that are shown with a video, such as subtitles; `listed` says how they stand behind it,
    and where it is empty they stand between its frames (see `data.records.lines`)."""

    kind: str
    path: str | tuple[str, ...]
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    lines: tuple[Line, ...] = ()
    listed: str = ""
    resized: tuple[int, int] | None = None

    def load_arguments(self, contract: MediaContract) -> dict[str, Any]:
        """What `load_media` and `probe_media` are told of the item besides its path: how it is to
        be read under the contract of a run."""
        if self.resized is not None:
            high, wide = self.resized
            contract = dataclasses.replace(contract, resized_height=high, resized_width=wide)
        span = {"start": self.start, "end": self.end, "fps": self.fps}
        return {"contract": contract, "kind": self.kind} | span

    def to_row(self) -> dict[str, Any]:
        path = list(self.path) if isinstance(self.path, tuple) else self.path
        times = {name: getattr(self, name) for name in TIMES}
        times = {name: value for name, value in times.items() if value is not None}
        texts = {"lines": [list(line) for line in self.lines], "listed": self.listed}
        texts = {name: value for name, value in texts.items() if value}
        size = dict(zip(RESIZED, self.resized, strict=True)) if self.resized else {}
        return {"type": self.kind, "path": path} | times | size | texts

    @property
    def name(self) -> str:
        """The name of the item in messages."""
        if isinstance(self.path, tuple):
            return f"{self.path[0]} and {len(self.path) - 1} more"
        return self.path


def expand_media(row: dict[str, Any], fail: Fail) -> tuple[dict[str, Any], tuple[MediaItem, ...]]:
    """The row with the fields of its first item, and the items of its `media`; none where the row
    shows one plain file, which its own fields tell."""
    listed = row.get("media")
    sized = [name for name in RESIZED if row.get(name) is not None]
    is_frames = _is_frames(row)
    if listed is None and (is_frames or (sized and row.get("data_type") in KINDS)):
        names = ("path", "start", "end", *sized, *(("fps",) if is_frames else ()))
        kind = "video" if is_frames else row.get("data_type")
        listed = [{"type": kind} | {name: row[name] for name in names if name in row}]
        row = {name: value for name, value in row.items() if name not in names[3:]}
    if not isinstance(listed, list):
        return row, ()
    items = tuple(filter(None, (_read_item(i, item, fail) for i, item in enumerate(listed))))
    if not listed:
        fail("media", "value", listed)
    if not items:
        return row | {"data_type": "video", "path": "?"}, ()
    first = items[0]
    path = first.path if isinstance(first.path, str) else first.path[0]
    row = {name: value for name, value in row.items() if name not in ("start", "end")}
    row |= {"data_type": first.kind, "path": path}
    times = {name: getattr(first, name) for name in ("start", "end")}
    row |= {name: value for name, value in times.items() if value is not None}
    plain = MediaItem(first.kind, first.path, first.start, first.end)
    if items == (plain,) and isinstance(first.path, str):
        items = ()  # the row's own fields tell it all
    return row, items


def _is_frames(row: dict[str, Any]) -> bool:
    """Whether a row's own path is a list of pictures, or a folder of them with a rate."""
    path = row.get("path")
    if isinstance(path, list):
        return True
    named = isinstance(path, str) and "." not in path.rstrip("/").rsplit("/", 1)[-1]
    return named and "fps" in row and row.get("data_type") == "video"


def _read_item(index: int, item: Any, fail: Fail) -> MediaItem | None:
    where = f"media {index}"
    remedy = 'write {"type": "video" or "image", "path": "a.mp4"}'
    if not isinstance(item, dict) or item.get("type") not in KINDS:
        fail("media", "value", f"{where}: {item!r}", remedy)
        return None
    unknown = set(item) - {"type", "path", "lines", "listed", *TIMES, *RESIZED}
    if unknown:
        what = f"{where}: {', '.join(sorted(map(str, unknown)))}"
        known = "write type, path, start, end, resized_height, resized_width, and fps of frames"
        fail("media", "value", what, known)
        return None
    sides = tuple(item.get(name) for name in RESIZED)
    if sides != (None, None) and not all(_is_length(side) for side in sides):
        what = f"{where}: resized_height {sides[0]!r}, resized_width {sides[1]!r}"
        fail("media", "value", what, "write both as whole numbers of pixels above 0, or neither")
        return None
    kind, path = item["type"], item.get("path")
    if isinstance(path, list) and kind == "video":
        path = tuple(path)
    parts = path if isinstance(path, tuple) else (path,)
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        fail("media", "value", f"{where}: path {item.get('path')!r}", remedy)
        return None
    times = {name: item.get(name) for name in TIMES}
    for name, value in times.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not number:
            fail("media", "type", f"{where}: {name} {value!r}", "write a number of seconds")
            return None
    fps = times["fps"]
    if fps is not None and not (0 < fps < math.inf and kind == "video"):
        fail("media", "value", f"{where}: fps {fps!r}", "write the frames a second, of frames only")
        return None
    if isinstance(path, tuple) and fps is None:
        is_frames = all(part.lower().endswith(PICTURES) for part in path)
        known = "write fps, the frames a second of the list"
        other = "write each video as an item of its own; a list is of pictures, which are frames"
        fail("media", "missing", f"{where}: fps", known if is_frames else other)
        return None
    if len(parts) and not check_times(kind, times["start"], times["end"], fail, where):
        return None
    try:
        lines, listed = read_lines(item.get("lines")), item.get("listed") or ""
    except (TypeError, ValueError) as error:
        fail("media", "value", f"{where}: lines {error}", REMEDY)
        return None
    if lines and kind != "video" or not isinstance(listed, str) or (listed and MARK not in listed):
        fail("media", "value", f"{where}: listed {listed!r}", f"{REMEDY}; name {MARK} in listed")
        return None
    resized = None if sides == (None, None) else (int(sides[0]), int(sides[1]))
    return MediaItem(kind, path, **times, lines=lines, listed=listed, resized=resized)


def _is_length(side: Any) -> bool:
    """Whether a side is a whole number of pixels; columns of tables hold them as fractions too."""
    number = isinstance(side, int | float) and not isinstance(side, bool)
    return number and math.isfinite(side) and side > 0 and side == int(side)


def check_times(kind: str | None, start: Any, end: Any, fail: Fail, where: str = "") -> bool:
    """Whether start and end, seconds or None, can be of an item of this kind."""
    sound = True

    def refuse(name: str, value: Any, remedy: str = "") -> None:
        nonlocal sound
        sound = False
        if where:
            fail("media", "value", f"{where}: {name} {value!r}", remedy or "write 0 <= start < end")
        else:
            fail(name, "value", value, remedy)

    for name, value in (("start", start), ("end", end)):
        if value is None:
            continue
        if kind == "image":
            refuse(name, value, "remove it: an image has no time")
        elif not math.isfinite(value) or value < 0:
            refuse(name, value)
    low = start or 0.0
    if end is not None and math.isfinite(low) and math.isfinite(end) and end <= low:
        refuse("end", end)
    return sound


def expand_chat(
    row: dict[str, Any], fail: Fail
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """The row with the question and the answer of its `messages`, and their (role, text) pairs;
    no pairs where the row is no chat.

    The answer is the text of the last assistant turn, which must be the last one; without an
    <answer> tag all of it counts.
    """
    messages = row.get("messages")
    if not isinstance(messages, list):
        return row, ()
    turns = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(text, str) or not text.strip():
            remedy = f"write a role of {', '.join(ROLES)} and a text"
            fail("messages", "value", f"turn {index}: {message!r}", remedy)
            return row, ()
        turns.append((role, text))
    order = [role for role, _ in turns if role != "system"]
    late = any(role == "system" for role, _ in turns[1:])
    if late or not order or order != ["user", "assistant"] * (len(order) // 2):
        remedy = "write a system turn first or none, then user and assistant in turn to the end"
        fail("messages", "value", ", ".join(role for role, _ in turns), remedy)
        return row, ()
    said = turns[-1][1]
    thought = re.search(r"<think>(.*?)</think>", said, re.DOTALL | re.IGNORECASE)
    answer = re.search(r"<answer>(.*?)</answer>", said, re.DOTALL | re.IGNORECASE)
    bare = re.sub(r"<think>.*?</think>", "", said, flags=re.DOTALL | re.IGNORECASE)
    solution = (answer[1] if answer else bare).strip()
    is_bare = solution and not re.search("</?think>", solution, re.IGNORECASE)
    if not is_bare and not row.get("solution"):
        remedy = "write the answer of the last turn behind one <think>...</think>"
        fail("messages", "tags", said, remedy)
        solution = "?"  # Nothing more is said of this row's answer.
    given = {
        "problem": PLACEHOLDER.sub("", turns[-2][1]).strip() or turns[-2][1],
        "problem_type": "free-form",
        "process": thought[1].strip() if thought else "",
        "solution": solution,
    }
    return given | row, tuple(turns)


def find_opening(row: dict[str, Any], fail: Fail) -> str:
    """How the answer of a chat begins in the prompt already, as in "Best option: (": the `opening`
    of its last turn, "" where it has none."""
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    opening = last.get("opening") or "" if isinstance(last, dict) else ""
    if not isinstance(opening, str) or opening != opening.encode("utf-8", "ignore").decode():
        fail("messages", "value", f"opening {opening!r}", "write a text, or leave it out")
        return ""
    return opening


def check_placeholders(texts: Sequence[str], kinds: Sequence[str | None], fail: Fail) -> None:
    """Refuses texts that name another number of clips than the row has, or other kinds. Texts that
    name none are fine: the media then come first. `<image>` alone stands for videos too, as LLaVA's
    files have it."""
    found = [mark[1] or mark[2] for text in texts for mark in PLACEHOLDER.finditer(text)]
    if found and len(found) != len(kinds):
        what = f"{len(found)} placeholders such as <{found[0]}>, {len(kinds)} media"
        fail("media", "value", what, "write one placeholder for each item, or none")
    elif len(set(found)) > 1 and found != list(kinds):
        what = f"placeholders {', '.join(found)}; media {', '.join(map(str, kinds))}"
        fail("media", "value", what, "write placeholders of the media's kinds, in their order")


def split_text(text: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a turn: text, and the next of `media` (which is emptied) at each placeholder.
    Line breaks beside a placeholder belong to it, as in Qwen's own fine-tuning code."""
    parts, place = [], 0
    for mark in PLACEHOLDER.finditer(text):
        parts += [{"type": "text", "text": text[place : mark.start()]}, media.pop(0)]
        place = mark.end()
    parts.append({"type": "text", "text": text[place:]})
    return [part for part in parts if part.get("text") != ""]
