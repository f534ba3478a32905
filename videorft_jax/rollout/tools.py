"""What a completion may call: frames of the clip on demand, or a function of the user.

A user's tool is any `module:function` of three arguments,

    def tool(arguments: dict[str, str], record: Record, root: str)

where `arguments` are those of the call, `record` is the question and `root` the folder that its
paths start from. It returns a text, or frames uint8 [n, h, w, 3], alone or with their rate as
(frames, fps). The name of the function is the name of the tag that calls it.

No call ends a run. One that is malformed, raises, hangs or returns too much becomes a text that the
model reads in place of the result. A Python thread cannot be killed: a function that hangs is left
behind at its limit of time, and its result is dropped.
"""

import dataclasses
import importlib
import inspect
import math
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.data.batch.patches import Media, make_media, pair_planes
from videorft_jax.data.loader.watchdog import call_within
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import pair_times, target_size
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.records import Record
from videorft_jax.data.records.render import render_reply, write_media
from videorft_jax.data.records.source import Source, media_of
from videorft_jax.rollout.calls import Call, read_number
from videorft_jax.rollout.options import ToolOptions

FRAMES = "frames"
MALFORMED, FAILED, TIMEOUT = "malformed", "failed", "timeout"
_LONGEST = 160  # characters that the model reads of what went wrong
_FPS = 2.0  # A tool that returns frames without a rate means this one.


class Reply(NamedTuple):
    """What the model reads after a call. `starts` says where each run of visual tokens begins in
    `tokens`, int32 [n]. `fault` is empty, or one of MALFORMED, FAILED and TIMEOUT; `text` is for
    the log."""

    tokens: np.ndarray
    starts: tuple[int, ...]
    media: tuple[Media, ...]
    text: str
    fault: str = ""


class _Fault(Exception):
    """A call that cannot be answered; its text is what the model is told."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def load_tools(names: tuple[str, ...]) -> dict[str, Callable[..., Any] | None]:
    """Tag name -> function of the user, None for `frames`.

    Raises ValueError for a name that is neither, a function that does not take three arguments, and
    two tools with the same tag.
    """
    found: dict[str, Callable[..., Any] | None] = {}
    for name in names:
        tag = name.rpartition(":")[2]
        if tag in found:
            raise ValueError(f"tools.names has {tag} twice; a tag calls one tool")
        found[tag] = None if name == FRAMES else _load_function(name)
    return found


def _load_function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    remedy = f"write {FRAMES}, or module:function of a module that can be imported"
    if not (module and attribute.isidentifier()):
        raise ValueError(f"tools.names has {name!r}; {remedy}")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # Importing runs the user's code.
        raise ValueError(f"tools.names has {name!r}: {_line(error)}; {remedy}") from error
    try:
        inspect.signature(function).bind({}, None, "")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"tools.names has {name!r}: {_line(error)}; take (arguments, record, root)"
        ) from None
    return function


def _line(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())


class Tools:
    """The tools of one run, which answer calls about the records of one source.

    contract, limits, isolate: how clips are read, as in the loader.
    """

    def __init__(
        self,
        options: ToolOptions,
        tokenizer,
        contract: MediaContract,
        source: Source,
        limits: Limits,
        isolate: bool = False,
    ):
        self.options, self.tokenizer, self.contract = options, tokenizer, contract
        self.source, self.limits, self.isolate = source, limits, isolate
        self.functions = load_tools(options.names)

    @property
    def pairs(self) -> int:
        """The most frame pairs of one reply."""
        return -(-self.options.max_frames // self.contract.temporal_patch_size)

    def read(self, tokens: np.ndarray) -> str:
        """The text of a turn, int32 [n], without control tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def answer(
        self, call: Call, index: int, record: Record, size: tuple[int, int], windows: int
    ) -> Reply:
        """The reply to a call of a completion about `record`, the record `index` of the source.

        size: (height, width) of the frames that the prompt shows; those of the reply are as large.
        windows: windows of a frame pair that the batch has room for. Never raises for what a call
        or a tool does.
        """
        try:
            if call.fault:
                raise _Fault(MALFORMED, call.fault)
            function = self.functions[call.name]
            run = self._frames if function is None else self._user
            media, text = self._within(run, call, index, record, size)
            return self._write(media, text, windows)
        except _Fault as fault:
            return self._explain(call, str(fault), fault.kind)

    def _within(self, run, *arguments):
        """The result of a tool, waited for no longer than the limit."""

        def caught():
            try:
                return run(*arguments)
            except _Fault as fault:
                return fault
            except BaseException as error:  # SystemExit too: it is not for us.
                return _Fault(FAILED, _line(error))

        limit = self.options.timeout_s
        try:
            found = call_within(limit, caught)
        except TimeoutError:
            raise _Fault(TIMEOUT, f"no result within {limit:g} seconds") from None
        if isinstance(found, _Fault):
            raise found
        return found

    def _frames(self, call: Call, index: int, record: Record, size):
        """Media of a clip of the record, from `start` to `end` seconds of what the prompt shows."""
        try:
            start, end, count = (read_number(call, name) for name in ("start", "end", "n"))
        except ValueError as error:
            raise _Fault(MALFORMED, str(error)) from None
        unknown = call.arguments.keys() - {"start", "end", "n"}
        most = self.options.max_frames
        if unknown:
            raise _Fault(MALFORMED, f"{min(unknown)} is unknown; give start, end and n")
        if not 0 <= start < end:
            raise _Fault(MALFORMED, "start must be at least 0 and before end")
        if count != int(count) or not 2 <= count <= most:
            raise _Fault(MALFORMED, f"n must be a whole number from 2 to {most}")
        item = next((item for item in record.media if item.kind == "video"), None)
        if item is None:
            raise _Fault(FAILED, "there is no video")
        return self._read(item, index, start, end, int(count), size), ""

    def _read(self, item: MediaItem, index: int, start, end, count: int, size):
        first = item.start or 0.0
        if item.end is not None and first + start >= item.end:
            raise _Fault(FAILED, f"the video ends after {item.end - first:g} seconds")
        last = first + end if item.end is None else min(first + end, item.end)
        shape = {"resized_height": size[0], "resized_width": size[1]}
        clip = load_media(
            media_of(self.source, index, item),
            self.source.data_root,
            dataclasses.replace(self.contract, num_frames=count, **shape),
            start=first + start,
            end=last,
            fps=item.fps,
            limits=self.limits,
            isolate=self.isolate,
        )
        if isinstance(clip, MediaError):
            raise _Fault(FAILED, clip.detail or clip.reason)
        media = pair_planes(clip.planes, clip.fps, self.contract.geometry)
        return media, clip.stamps

    def _user(self, call: Call, index: int, record: Record, size):
        function = self.functions[call.name]
        assert function is not None
        found = function(dict(call.arguments), record, self.source.data_root)
        if isinstance(found, str):
            return None, found
        frames, fps = found if isinstance(found, tuple) and len(found) == 2 else (found, _FPS)
        is_pixels = isinstance(frames, np.ndarray) and frames.dtype == np.uint8
        if not (is_pixels and frames.ndim == 4 and frames.shape[-1] == 3 and frames.size):
            raise _Fault(FAILED, "the tool returned neither a text nor frames uint8 [n, h, w, 3]")
        if not (isinstance(fps, int | float) and 0 < fps < math.inf):
            raise _Fault(FAILED, f"the tool returned frames at {fps!r} a second")
        if len(frames) > self.options.max_frames:
            most = self.options.max_frames
            raise _Fault(FAILED, f"the tool returned {len(frames)} frames, at most {most} are read")
        bounds = {"min_pixels": 1, "max_pixels": size[0] * size[1], "budget": "frame"}
        contract = dataclasses.replace(self.contract, **bounds)
        height, width = frames.shape[1:3]
        sides = target_size(height, width, len(frames), contract)
        planes = np.stack([resize_planes(frame, *sides) for frame in frames])
        frames = planes.transpose(0, 2, 3, 1)
        media = make_media(frames, float(fps), self.contract.geometry)
        times = np.arange(len(frames)) / fps
        return (media, pair_times(times, self.contract.temporal_patch_size)), ""

    def _write(self, found, text: str, windows: int) -> Reply:
        """The tokens of a result. Raises _Fault for one that has no room."""
        most = self.options.max_tokens
        if found is None:
            rendered = render_reply(
                self.tokenizer, [{"type": "text", "text": text}], [], self.contract.geometry
            )
            if len(rendered.tokens) > most:
                raise _Fault(
                    FAILED, f"the result takes {len(rendered.tokens)} tokens, at most {most} fit"
                )
            return Reply(rendered.tokens, (), (), text)
        media, stamps = found
        if media.num_windows > windows:
            raise _Fault(FAILED, "the frames are larger than those of the question")
        written = write_media(media.grid, stamps, self.contract)
        parts = [{"type": "video"}]
        rendered = render_reply(self.tokenizer, parts, [written], self.contract.geometry)
        if len(rendered.tokens) > most:
            raise _Fault(
                FAILED,
                f"{2 * media.grid[0]} frames take {len(rendered.tokens)} tokens, at most {most} "
                "fit; ask for fewer",
            )
        starts = tuple(start for start, _ in rendered.visual_spans)
        pairs, down, across = media.grid
        return Reply(rendered.tokens, starts, (media,), f"[{pairs} x {down} x {across} tokens]")

    def _explain(self, call: Call, text: str, kind: str) -> Reply:
        """The reply to a call that failed, in as many words as have room."""
        text = f"{call.name}: {text}"[:_LONGEST]
        while True:
            parts = [{"type": "text", "text": text}]
            rendered = render_reply(self.tokenizer, parts, [], self.contract.geometry)
            if len(rendered.tokens) <= self.options.max_tokens or not text:
                return Reply(rendered.tokens, (), (), text, kind)
            text = text[: len(text) // 2]
