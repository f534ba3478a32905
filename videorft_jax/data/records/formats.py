"""Other people's rows as rows of our own: messages, ShareGPT and LLaVA, TRL, and VideoRFT itself.

    videorft   problem, solution, path ... as VideoRFT and Video-R1 write them; media and messages
    messages   messages of role and content (Qwen, Hugging Face), with images and videos
    sharegpt   conversations of from and value (ShareGPT, LLaVA, LLaVA-Video), with image or video
    trl        prompt with completion or solution, images, videos

A chat keeps its own wording: no template is laid around it. Where texts hold placeholders such as
<video>, the media stand there, and before the first question otherwise.
"""

from collections.abc import Mapping
from typing import Any

from videorft_jax.data.media.files import PICTURES
from videorft_jax.data.records.chats import PLACEHOLDER, RESIZED, ROLES
from videorft_jax.data.records.records import SCHEMA, RecordError
from videorft_jax.data.records.turns import SPEAKERS, TURN_KEYS, read_part, read_turn

FORMATS = ("auto", "videorft", "messages", "sharegpt", "trl")
SIGNS = {"messages": "messages", "sharegpt": "conversations", "trl": "prompt"}
MEDIA = {"image": "image", "images": "image", "video": "video", "videos": "video"}
MEDIA |= {"image_path": "image", "video_path": "video"}
TIMES = {"start": "start", "end": "end", "video_start": "start", "video_end": "end"}
# The keys by which an item says how it is to be read, and the names that `MediaItem` has for them.
OF_ITEMS = {"image": {}, "video": TIMES}
OF_ITEMS = {kind: names | {name: name for name in RESIZED} for kind, names in OF_ITEMS.items()}
TURN_NAMES = {name for names in TURN_KEYS for name in names}
IDS = ("problem_id", "id", "question_id", "index")
ANSWERS = ("solution", "answer", "ground_truth")


def detect_format(row: Any, where: str) -> str:
    """The format of a row by its columns; of one without any that a chat format has, videorft.
    Raises RecordError where a row fits two formats."""
    if not isinstance(row, dict):
        return "videorft"  # The check of that format refuses the row and says what one is.
    if "media" in row or ("path" in row and "data_type" in row):
        return "videorft"
    found = ["videorft"] if "problem" in row and "solution" in row else []
    found += [name for name, sign in SIGNS.items() if sign in row]
    if len(found) > 1:
        columns = ", ".join(SIGNS.get(name, "problem") for name in found)
        what = f"fits the formats {' and '.join(found)}"
        raise RecordError(where, columns, "value", what, "choose one as data.format")
    return found[0] if found else "videorft"


def convert_row(row: Any, form: str, where: str, index: int) -> Any:
    """A row of our own schema, see `records`, from one of another format. Raises RecordError."""
    if form == "videorft" or not isinstance(row, dict):
        return row
    sign = SIGNS[form]
    if sign not in row:
        raise RecordError(where, sign, "missing", "absent", f"write it, as format {form} has it")
    return _Converter(row, form, where).convert(index)


class _Converter:
    """One row on its way. Media of columns wait until a placeholder, or the first question, takes
    them."""

    def __init__(self, row: Mapping[str, Any], form: str, where: str):
        self._row, self._form, self._where = row, form, where
        self._items: list[dict[str, Any]] = []
        self._unused: dict[str, Any] = {}
        self._waiting = [
            self._item(kind, source, row, column)
            for column, kind in MEDIA.items()
            for source in self._listed(column, kind)
        ]

    def convert(self, index: int) -> dict[str, Any]:
        turns = [self._turn(number, role, said) for number, (role, said) in self._speech()]
        if not self._items and self._waiting:
            turns = self._place_first(turns)
        if self._waiting:
            count = len(self._waiting) + len(self._items)
            what = f"{len(self._items)} placeholders, {count} media"
            self._fail("media", "value", what, "write one placeholder for each item, or none")
        taken = {SIGNS[self._form], *MEDIA, *TIMES, *RESIZED, *IDS, "fps", "system"}
        taken |= {"messages", "media"} | ({"completion"} if self._form == "trl" else set())
        rest = {name: value for name, value in self._row.items() if name not in taken}
        known = {name: rest.pop(name) for name in tuple(rest) if name in SCHEMA}
        found = [self._row[name] for name in IDS if isinstance(self._row.get(name), int | str)]
        return {
            "problem_id": found[0] if found else index,
            "media": self._items,
            "messages": [{"role": role, "content": text} for role, text in turns],
            **known,
            **rest,
            **self._unused,
        }

    def _fail(self, field: str, reason: str, value: Any, remedy: str) -> None:
        raise RecordError(self._where, field, reason, value, remedy)

    def _speech(self) -> list[tuple[int, tuple[Any, Any]]]:
        """(number, (role, what is said)) of each turn."""
        said = self._row[SIGNS[self._form]]
        if self._form == "trl":
            said = self._read_trl(said)
        if not isinstance(said, list):
            self._fail(SIGNS[self._form], "type", said, "write a list of turns")
        turns = []
        for turn in said:
            found = read_turn(turn)
            if found is None:
                names = "from and value" if self._form == "sharegpt" else "role and content"
                self._fail(SIGNS[self._form], "value", turn, f"write turns of {names}")
            for name in turn.keys() - TURN_NAMES:
                if turn[name] is not None:
                    self._unused[f"turn.{name}"] = turn[name]
            turns.append(found)
        system = self._row.get("system")
        if isinstance(system, str) and system.strip():
            if turns and turns[0][0] == "system":
                self._fail("system", "value", system, "remove it, or the chat's own system turn")
            turns.insert(0, ("system", system))
        return list(enumerate(turns))

    def _read_trl(self, prompt: Any) -> list[Any]:
        answer = self._row.get("completion")
        if answer is None:
            known = [self._row[name] for name in ANSWERS if isinstance(self._row.get(name), str)]
            given = next((name for name in ANSWERS if self._row.get(name) is not None), None)
            if not known and given is not None:
                self._fail(given, "type", self._row[given], "write the answer as a text")
            if not known:
                remedy = f"write the completion, or one of {', '.join(ANSWERS)}"
                self._fail("completion", "missing", "absent", remedy)
            text = known[0]
            answer = text if "<answer>" in text else f"<answer>{text}</answer>"
        parts = []
        for role, part in (("user", prompt), ("assistant", answer)):
            parts += part if isinstance(part, list) else [{"role": role, "content": part}]
        return parts

    def _turn(self, number: int, role: Any, said: Any) -> tuple[str, str]:
        sign = SIGNS[self._form]
        if role not in ROLES:
            remedy = f"use {', '.join(SPEAKERS)}; calls of tools are not supported"
            self._fail(sign, "value", f"turn {number}: {role!r}", remedy)
        if isinstance(said, str):
            for mark in PLACEHOLDER.finditer(said):
                self._take(mark[1] or mark[2])
            return role, said
        if not isinstance(said, list):
            self._fail(sign, "type", f"turn {number}: {said!r}", "write a text or a list of parts")
        before = len(self._items)
        parts = [self._read_part(number, part) for part in said]
        pieces = [self._show_part(number, part) for part in parts]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        marks = list(PLACEHOLDER.finditer("".join(texts)))
        if not marks:
            return role, "".join(pieces)
        own, self._items = self._items[before:], self._items[:before]
        self._waiting = own + self._waiting
        for mark in marks:
            self._take(mark[1] or mark[2])
        return role, "".join(texts)

    def _read_part(self, number: int, part: Any) -> dict[str, Any]:
        found = read_part(part)
        if found is None:
            remedy = "write parts of type text, image or video, with paths of files"
            self._fail(SIGNS[self._form], "value", f"turn {number}: part {part!r}", remedy)
        return found

    def _show_part(self, number: int, part: dict[str, Any]) -> str:
        """The text of one part of a turn, a placeholder for a picture or clip."""
        kind = part["type"]
        if kind == "text":
            return part["text"]
        source = part.get(kind)
        if not source:
            self._take(kind)
        else:
            self._items.append(self._item(kind, source, part, f"turn {number}"))
            taken = {"type", kind, *OF_ITEMS[kind]}
            if not isinstance(source, str):
                taken |= {"fps", "sample_fps"}
            for name in part.keys() - taken:
                if part[name] is not None:
                    self._unused[f"{kind}.{name}"] = part[name]
        return f"<{kind}>"

    def _place_first(self, turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Puts media that no text mentions in front of the first question."""
        kinds = {item["type"] for item in self._waiting}
        if len(kinds) > 1:
            remedy = "write <image> and <video> where they belong, their order is not known"
            self._fail("media", "value", "images and videos without placeholders", remedy)
        marks = "".join(f"<{item['type']}>" for item in self._waiting)
        self._items, self._waiting = self._waiting, []
        first = next((i for i, (role, _) in enumerate(turns) if role == "user"), 0)
        return [
            (role, marks + text) if i == first else (role, text)
            for i, (role, text) in enumerate(turns)
        ]

    def _take(self, kind: str) -> None:
        """Moves the next waiting item of a kind to where a placeholder stands; <image> takes a
        video where there is no image, as LLaVA's files have it."""
        found = [item for item in self._waiting if item["type"] == kind]
        if not found and kind == "image" and not any(i["type"] == "image" for i in self._items):
            found = self._waiting
        if not found:
            what = f"a placeholder <{kind}> without a {kind}"
            remedy = "write one placeholder for each item, or none"
            if not any(self._row.get(column) for column in MEDIA):
                remedy = f"name its file in a column {kind}s, or in a part of the turn"
            self._fail("media", "value", what, remedy)
        item = found[0]
        self._waiting = [other for other in self._waiting if other is not item]
        self._items.append(item)

    def _listed(self, column: str, kind: str) -> list[Any]:
        """The sources that a column holds, whether its name is a plural or not. A list of pictures
        in the column `video` is one source, the frames of a clip."""
        value = self._row.get(column)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            return [value]
        is_frames = all(isinstance(x, str) and x.lower().endswith(PICTURES) for x in value)
        of_video = MEDIA[column] == "video" and not column.endswith("s")
        return [value] if of_video and value and is_frames else list(value)

    def _item(self, kind: str, source: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        if isinstance(source, dict):  # As Hugging Face's and verl's files name a file.
            names = ("path", "url", kind)
            own = {name: value for name, value in source.items() if value is not None}
            given = {**given, **own}
            for name in own.keys() - {*names, "type", "bytes", "fps", "sample_fps"}:
                if name not in OF_ITEMS[kind]:
                    self._unused[f"{kind}.{name}"] = own[name]
            source = next((own[name] for name in names if own.get(name)), None)
        paths = source if isinstance(source, list | tuple) else [source]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            remedy = "write the path of a file; bytes inside rows are not read"
            self._fail("media", "type", f"{where}: a {kind} of another kind than a path", remedy)
        if kind == "image" and len(paths) > 1:
            what = f"{where}: {len(paths)} images as one"
            self._fail("media", "value", what, "write each as a part of its own")
        paths = [path.removeprefix("file://") for path in paths]
        frames = isinstance(source, list | tuple) and kind == "video"
        item = {"type": kind, "path": paths if frames else paths[0]}
        for name, ours in OF_ITEMS[kind].items():
            if given.get(name) is not None:
                item[ours] = given[name]
        if kind == "video":
            rate = given.get("fps") or given.get("sample_fps")
            if frames and rate is not None:
                item["fps"] = rate
            elif rate is not None:
                self._unused[f"{kind}.fps"] = rate
        return item
