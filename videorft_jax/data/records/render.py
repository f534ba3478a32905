"""From chat messages to token ids in the chat format of the Qwen VL models.

Ids are composed piece by piece. Control tokens (`<|im_start|>`, `<|video_pad|>` ...) are inserted
by id, and everything that comes from a record or a user is encoded by a copy of the tokenizer in
which such tokens do not exist, so text that spells a control token stays text. For harmless text
the ids equal `tokenizer.apply_chat_template`. The prompt without its answer is always an exact
prefix of the prompt with it, so what SFT trains on is what a rollout starts from.
"""

import copy
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.lines import place_lines
from videorft_jax.models.geometry import WINDOWED_14, Geometry

log = logging.getLogger(__name__)

CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class RenderedPrompt:
    """Token ids of one chat.

    tokens: int32 [T]; loss_mask: bool [T], True where the token is to be learnt: the last
    assistant turn (or each one), its `<|im_end|>` included; visual_spans: (start, stop) of each
    media item's pad tokens.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    visual_spans: tuple[tuple[int, int], ...]


Run = tuple[str, int]  # text before the markers, and how many visual tokens stand between them


class MediaText(NamedTuple):
    """How one media item is written: its runs of visual tokens, each between vision markers and
    behind a text of its own, whether another pair of markers stands around all of them, and the
    text behind them. `splits` are the frame pairs, but for the first, with which a run begins
    because a line of text stands there."""

    runs: tuple[Run, ...]
    is_wrapped: bool = False
    behind: str = ""
    splits: tuple[int, ...] = ()


def write_media(
    grid: tuple[int, int, int],
    stamps: Sequence[float],
    contract: MediaContract,
    item: MediaItem | None = None,
    times: Sequence[float] = (),
) -> MediaText:
    """The text of a clip of `grid` frame pairs x visual tokens down x across.

    Where the model reads times, every frame pair stands by itself behind its time, as in
    `<3.2 seconds>`. `stamps` has none for an image, which is written in one piece. The lines of
    `item`, where it has any, stand between or behind its frames, which are shown at `times`.
    """
    pairs, frame = grid[0], grid[1] * grid[2]
    before: dict[int, str] = {}
    behind, size = "", contract.temporal_patch_size
    if item is not None and item.lines:
        before, behind = place_lines(item.lines, item.listed, times, size)
    if not (contract.geometry.timestamps and stamps):
        splits = tuple(sorted(pair for pair in before if pair))
        edges = itertools.pairwise((0, *splits, pairs))
        runs = tuple((before.get(pair, ""), (end - pair) * frame) for pair, end in edges)
        return MediaText(runs, behind=behind, splits=splits)
    runs = tuple(
        (f"{before.get(pair, '')}<{seconds:.1f} seconds>", frame)
        for pair, seconds in enumerate(stamps)
    )
    return MediaText(runs, contract.video_wrapper == "hf5", behind)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    media: Sequence[int | MediaText],
    target: str | None = None,
    every_turn: bool = False,
    geometry: Geometry = WINDOWED_14,
    opening: str = "",
) -> RenderedPrompt:
    """Chat messages to token ids in the model's chat format.

    Args:
      tokenizer: one that has the Qwen control tokens; ids are read from it.
      messages: dicts of role (system, user, assistant) and content (a string, or parts of type
        text, image, video).
      media: how each media item is written, in order of appearance; a number is one run of so many
        visual tokens.
      target: the assistant's answer to learn; None ends the prompt where generation starts.
      geometry: tells what a chat without a system turn opens with.
      opening: what the assistant's answer begins with; it belongs to the prompt.
      every_turn: what the assistant says in `messages` is to be learnt too, not the target alone.

    Raises:
      ValueError: unknown role or part, counts that do not match the media, or a tokenizer without
        a control token.
    """
    encoder = _encoder(tokenizer, geometry)
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    learnt: list[slice] = []
    num_items, items = 0, [MediaText((("", x),)) if isinstance(x, int) else x for x in media]
    for role, content in _turns(messages, geometry):
        # Plain text is encoded from one control token to the next in one go, as the tokenizer
        # itself would, because BPE may merge across the seam of two parts.
        ids.append(encoder.ids["<|im_start|>"])
        text = f"{role}\n"
        if role == "assistant" and every_turn:  # so that the targets begin at a token's edge
            ids += encoder.encode(text)
            said, text = len(ids), ""
        text, num_items = _write_parts(encoder, ids, spans, text, content, items, num_items)
        ids += encoder.encode(text)
        ids.append(encoder.ids["<|im_end|>"])
        if role == "assistant" and every_turn:
            learnt.append(slice(said, len(ids)))
        ids += encoder.encode("\n")
    if num_items != len(items):
        raise ValueError(
            f"prompt: {num_items} media items but {len(items)} visual token counts; give one"
            " count per item"
        )
    ids.append(encoder.ids["<|im_start|>"])
    ids += encoder.encode(f"assistant\n{opening}")
    num_prompt = len(ids)
    if target is not None:
        ids += encoder.encode(target)
        ids.append(encoder.ids["<|im_end|>"])
    loss_mask = np.arange(len(ids)) >= num_prompt
    for span in learnt:
        loss_mask[span] = True
    return RenderedPrompt(
        tokens=np.array(ids, np.int32),
        loss_mask=loss_mask,
        visual_spans=tuple(spans),
    )


def render_reply(
    tokenizer: PreTrainedTokenizerBase,
    content: Sequence[Mapping[str, Any]],
    media: Sequence[MediaText],
    geometry: Geometry = WINDOWED_14,
) -> RenderedPrompt:
    """What stands in the chat between two turns of the assistant: a user turn of `content`, whose
    clips and images `media` writes.

    The first turn of the assistant has just ended with its `<|im_end|>`; the tokens go on from
    there to where the next one starts. `render` writes the same tokens at that place of the chat.
    Raises ValueError as `render` does.
    """
    encoder = _encoder(tokenizer, geometry)
    ids: list[int] = [*encoder.encode("\n"), encoder.ids["<|im_start|>"]]
    spans: list[tuple[int, int]] = []
    text, num_items = _write_parts(encoder, ids, spans, "user\n", content, media, 0)
    if num_items != len(media):
        raise ValueError(f"reply: {num_items} media items but {len(media)} written; give one each")
    ids += [*encoder.encode(text), encoder.ids["<|im_end|>"], *encoder.encode("\n")]
    ids += [encoder.ids["<|im_start|>"], *encoder.encode("assistant\n")]
    return RenderedPrompt(np.array(ids, np.int32), np.zeros(len(ids), bool), tuple(spans))


def _write_parts(encoder, ids, spans, text, content, items, num_items) -> tuple[str, int]:
    """Appends the parts of a turn behind `text`, of which `num_items` media were placed before;
    returns the text that is not yet encoded and the number of media placed."""
    for part in content:
        if part["type"] == "text":
            text += part["text"]
            continue
        if num_items == len(items):
            raise ValueError(
                f"prompt: more media items than the {len(items)} visual token counts; give"
                " one count per item"
            )
        _place(encoder, ids, spans, text, part["type"], items[num_items], num_items)
        num_items, text = num_items + 1, items[num_items].behind
    return text, num_items


def _place(encoder, ids, spans, text, kind, item: MediaText, number: int) -> None:
    """Appends the text that stands before a media item, and the item."""
    if item.is_wrapped:
        ids += encoder.encode(text)
        ids.append(encoder.ids["<|vision_start|>"])
        text = ""
    for before, count in item.runs:
        if count < 1:
            raise ValueError(f"prompt: media item {number}: {count} visual tokens; give 1+")
        ids += encoder.encode(text + before)
        ids.append(encoder.ids["<|vision_start|>"])
        spans.append((len(ids), len(ids) + count))
        ids += [encoder.ids[PADS[kind]]] * count
        ids.append(encoder.ids["<|vision_end|>"])
        text = ""
    if item.is_wrapped:
        ids.append(encoder.ids["<|vision_end|>"])


def render_text(
    messages: Sequence[Mapping[str, Any]], geometry: Geometry = WINDOWED_14, opening: str = ""
) -> str:
    """The chat as one string with one pad token per media item, generation prompt and the opening
    of the answer included: for people, logs and comparison with a tokenizer's own template. Never
    encode it."""
    media = {kind: f"<|vision_start|>{pad}<|vision_end|>" for kind, pad in PADS.items()}
    turns = [
        f"<|im_start|>{role}\n"
        + "".join(media.get(part["type"]) or part["text"] for part in content)
        + "<|im_end|>\n"
        for role, content in _turns(messages, geometry)
    ]
    return "".join(turns) + f"<|im_start|>assistant\n{opening}"


def _turns(
    messages: Sequence[Mapping[str, Any]], geometry: Geometry
) -> Iterable[tuple[str, list[Mapping[str, Any]]]]:
    """(role, parts) of each turn, checked, the default system turn included."""
    if not messages:
        raise ValueError("prompt: no messages; give at least a user turn")
    turns = []
    if messages[0].get("role") != "system" and geometry.default_system:
        turns.append(("system", [{"type": "text", "text": geometry.default_system}]))
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"prompt: message {index}: role {role!r}; use {', '.join(ROLES)}")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for part in content or [{}]:
            kind = part.get("type")
            if kind not in ("text", *PADS) or (
                kind == "text" and not isinstance(part.get("text"), str)
            ):
                raise ValueError(
                    f"prompt: message {index}: part {kind!r}; use text, image or video"
                )
        turns.append((role, content))
    return turns


class _Encoder:
    """Plain-text encoder and control-token ids of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, geometry: Geometry):
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in CONTROL_TOKENS if token not in vocabulary]
        if missing or not tokenizer.is_fast:
            lack = f"has no {', '.join(missing)}" if missing else "is not a fast tokenizer"
            raise ValueError(f"tokenizer {lack}; load the tokenizer of the checkpoint")
        self.ids = {token: vocabulary[token] for token in CONTROL_TOKENS}
        self._control = frozenset(self.ids.values())
        # A private copy: the switch is state of the tokenizer, and flipping it on a shared one
        # would race with other threads (and change what its owner gets).
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        # The system turn and other fixed texts are most of a prompt's text, and always among the
        # latest, whatever the threads encode in between.
        self.encode = functools.lru_cache(maxsize=128)(self._encode)
        if not self._control.isdisjoint(self.encode(" ".join(CONTROL_TOKENS))):
            raise ValueError(
                "tokenizer: control tokens are not marked special, so text could forge them; load"
                " the tokenizer of the checkpoint"
            )
        self._compare_template(tokenizer, geometry)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids) if text else ()

    @staticmethod
    def _compare_template(tokenizer: PreTrainedTokenizerBase, geometry: Geometry) -> None:
        if not tokenizer.chat_template:
            return
        probe = [
            {"role": "user", "content": [{"type": kind} for kind in PADS]},
            {"role": "assistant", "content": [{"type": "text", "text": "ok"}]},
        ]
        try:
            theirs = tokenizer.apply_chat_template(
                probe, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it may fail in any way
            theirs = f"{type(error).__name__}: {error}"
        ours = render_text(probe, geometry)
        if theirs == f"{ours}<think>\n":
            raise ValueError(
                "tokenizer: its chat template opens answers with <think>, as that of a Thinking"
                " edition does, but rewards expect the model to write it; use the Instruct edition"
            )
        if theirs != ours:
            log.warning(
                "the tokenizer's chat template is not the model's; prompts follow the model's"
                " (ours %r, theirs %r)",
                ours,
                theirs[:200],
            )


@functools.lru_cache(maxsize=4)
def _encoder(tokenizer: PreTrainedTokenizerBase, geometry: Geometry) -> _Encoder:
    return _Encoder(tokenizer, geometry)
