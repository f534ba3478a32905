"""Stage 1: each clip is described once, frame by frame, and the description is checked by code."""

from collections.abc import Generator
from typing import Any

from videorft_jax.curation import structured
from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.frames import Frames
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.prompts import Template
from videorft_jax.curation.requests import Dead, Reply, Request, draw_seed

TOKENS_A_FRAME, TOKENS_AROUND = 170, 300  # length of a reply
PROMPT_TOKENS = 1200
FAMILY_OF_TYPE = {"OCR": "ocr", "regression": "spatial", "numerical": "math"}
PEOPLE = (
    '"people": age, clothing and bearing of the people, as far as they can be seen; null if'
    " there is nobody."
)

Work = Generator[Request, Reply | Dead, Any]


class Describer:
    """Descriptions under one endpoint and one set of templates."""

    def __init__(
        self, endpoint: Endpoint, templates: dict[str, Template],
        families: dict[str, tuple[str, str]], contract: str, people: bool,
    ):  # fmt: skip
        self.endpoint, self.templates, self.families = endpoint, templates, families
        self.contract, self.people = contract, people

    def describe(self, entry: Entry, frames: Frames) -> Work:
        """A generator of requests whose result is the row of this clip, or Dead."""
        if entry.record.data_type == "image":
            return self._describe_image(entry, frames)
        return self._describe_video(entry, frames)

    def count_windows(self, frames: Frames) -> int:
        """How many requests a clip of so many frames is described in."""
        return -(-len(frames) // max(self._window(frames), 1))

    def _describe_image(self, entry: Entry, frames: Frames) -> Work:
        kind, family = entry.record.problem_type, entry.record.extra.get("family")
        if not (isinstance(family, str) and family):
            family = FAMILY_OF_TYPE.get(kind, "general")
        field, focus = self.families.get(family, self.families["general"])
        text = self.templates["describe_image"].fill(field=field, focus=focus)
        model = structured.image_model(field)
        parts = (frames.pictures[0], text)
        found = yield from self._ask(entry, "describe_image", parts, frames, 0, 1, model)
        return found if isinstance(found, Dead) else self._row(entry, frames, *found)

    def _describe_video(self, entry: Entry, frames: Frames) -> Work:
        size = self._window(frames)
        if size < 1:
            return Dead("too_long", detail="one frame does not fit the endpoint's limits")
        caption, entries, keys, repaired = "", [], [], False
        windows = [(i, min(i + size, len(frames))) for i in range(0, len(frames), size)]
        while windows:
            start, stop = windows.pop(0)
            before = entries[-1]["caption"] if entries else ""
            found = yield from self._ask_window(entry, frames, start, stop, before)
            if isinstance(found, Dead):
                if found.reason not in ("length", "too_long", "too_large") or stop - start < 2:
                    return found
                middle = (start + stop) // 2
                windows[:0] = [(start, middle), (middle, stop)]
                continue
            description, own_keys, own_repaired = found
            caption = caption or description["video_caption"]
            entries += description["frames"]
            keys += own_keys
            repaired |= own_repaired
        return self._row(
            entry, frames, {"video_caption": caption, "frames": entries}, keys, repaired
        )

    def _window(self, frames: Frames) -> int:
        """Most frames of one request under the endpoint's limits of context and output."""
        picture, end = frames.pictures[0], self.endpoint
        each = end.image_tokens or -(-picture.width * picture.height // 784)
        by_output = (end.max_output - TOKENS_AROUND) // TOKENS_A_FRAME
        room = end.context - PROMPT_TOKENS - TOKENS_AROUND
        return min(by_output, room // (each + 16 + TOKENS_A_FRAME), len(frames))

    def _ask_window(self, entry, frames, start, stop, before) -> Work:
        parts: list = []
        for time, picture in zip(
            frames.times[start:stop], frames.pictures[start:stop], strict=True
        ):
            parts += [f"[{time:g} s]", picture]
        carried = f"Just before them: {before}" if before else ""
        parts.append(
            self.templates["describe_video"].fill(
                num_frames=str(stop - start), before=carried, people=PEOPLE if self.people else ""
            )
        )
        model, times = structured.video_model(self.people), frames.times[start:stop]
        return self._ask(entry, "describe_video", tuple(parts), frames, start, stop, model, times)

    def _ask(self, entry, name, parts, frames, start, stop, model, times=None) -> Work:
        """(description, keys, repaired) of one request and at most one more that names the fault
        of the first, or Dead."""
        template, end, keys = self.templates[name], self.endpoint, []
        for attempt in range(2):
            request = Request(
                stage="describe", unit=entry.media, endpoint=end.name,
                model=f"{end.model}@{end.revision}", system=template.system, parts=parts,
                max_tokens=min(end.max_output, TOKENS_A_FRAME * (stop - start) + TOKENS_AROUND),
                temperature=end.temperature, top_p=end.top_p,
                seed=draw_seed(entry.media, attempt), template=template.digest,
                schema=structured.json_schema(model), structured=end.structured,
                extra_body=end.extra_body, contract=self.contract, attempt=attempt,
                load=frames.loader(start, stop),
            )  # fmt: skip
            keys.append(request.key)
            reply = yield request
            if isinstance(reply, Dead):
                return reply
            if ended := refused(reply):
                return ended
            try:
                description, repaired = structured.parse(reply.content, model)
                if times is not None:
                    structured.check_frames(description, times)
                return description, keys, repaired
            except structured.BadReply as fault:
                dead = Dead(fault.code, detail=str(fault))
                repair = self.templates["repair"].fill(fault=str(fault))
                parts = (*parts[:-1], f"{parts[-1]}\n\n{repair}")
        return dead

    def _row(self, entry, frames, description, keys, repaired) -> dict:
        text = str(description)
        return {
            "media": entry.media, "start": entry.record.start, "end": entry.record.end,
            "contract": self.contract, "frame_times": frames.times,
            "frame_digests": [picture.digest for picture in frames.pictures],
            "description": description, "uncertain": text.count("[Uncertain]"),
            "repaired": repaired, "requests": keys,
        }  # fmt: skip


def refused(reply: Reply) -> Dead | None:
    """The dead letter of a reply that is cut off or says nothing."""
    if reply.refusal:
        return Dead("refused")
    if reply.finish in ("content_filter", "length"):
        return Dead("filtered" if reply.finish == "content_filter" else "length")
    return None if reply.content.strip() or reply.reasoning.strip() else Dead("empty")
