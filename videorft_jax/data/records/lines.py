"""Timed lines of a clip, such as subtitles, and where they stand among its frame pairs.

The rules are those of LongVideoBench's data set class: a line counts where a sampled frame is shown
while the line is, and the middle of the line decides its place among the frames.
"""

import math
from collections.abc import Sequence
from typing import Any

from videorft_jax.data.media.sampling import pair_times

MARK = "{lines}"  # where the lines stand in the text of `listed`
MIN_SECONDS = 1.0  # A shorter line is widened to this around its middle.
REMEDY = 'write [[start, end, "text"], ...] in seconds, of a video only'

Line = tuple[float, float, str]  # start and end in seconds of the clip, text


def read_lines(value: Any) -> tuple[Line, ...]:
    """The lines of a media item of a row. Raises ValueError where they are no such lists."""
    lines = []
    for line in value or ():
        if not isinstance(line, list | tuple) or len(line) != 3 or not isinstance(line[2], str):
            raise ValueError(f"{line!r}")
        times = [x for x in line[:2] if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(times) != 2 or not all(map(math.isfinite, times)):
            raise ValueError(f"{line!r}")
        lines.append((float(times[0]), float(times[1]), line[2]))
    return tuple(lines)


def find_shown(lines: Sequence[Line], times: Sequence[float]) -> list[Line]:
    """The lines during which one of the frames at `times` seconds is shown, in their order."""
    shown = []
    for start, end, text in lines:
        middle = (start + end) / 2
        if end - start < MIN_SECONDS:
            start, end = middle - MIN_SECONDS / 2, middle + MIN_SECONDS / 2
        if any(start < time < end for time in times):
            shown.append((start, end, text))
    return shown


def place_lines(
    lines: Sequence[Line], listed: str, times: Sequence[float], size: int
) -> tuple[dict[int, str], str]:
    """(text in front of frame pairs, by their number; text behind the clip).

    A line stands behind the frame pairs that are shown before its middle. Where `listed` is a text,
    all lines stand behind the clip instead, a line each in place of its mark {lines}, and nothing
    stands there where no line is shown. times: of the frames, in seconds; size: frames of a pair.
    """
    shown = find_shown(lines, times)
    if listed:
        texts = "\n".join(text for *_, text in shown)
        return {}, listed.replace(MARK, texts) if shown else ""
    moments, before, behind = pair_times(list(times), size), {}, ""
    for start, end, text in shown:
        middle = (start + end) / 2
        pair = next((i for i, moment in enumerate(moments) if moment > middle), None)
        if pair is None:
            behind += text
        else:
            before[pair] = before.get(pair, "") + text
    return before, behind
