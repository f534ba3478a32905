"""Subtitles of a benchmark's clips in the formats of their releases."""

import dataclasses
import json
import math
import pathlib
import re

from videorft_jax.data.records.lines import MARK, Line

_CUE = re.compile(
    r"(\d+):(\d\d):(\d\d)[,.](\d+)[ \t]*-->[ \t]*(\d+):(\d\d):(\d\d)[,.](\d+)[^\n]*\n"
    r"(.*?)(?=\n\s*\n|\Z)",
    re.S,
)
LISTED = f"This video's subtitles are listed below:\n{MARK}\n"


@dataclasses.dataclass(frozen=True)
class Subtitles:
    """The file of a clip's subtitles, and how the official prompt shows them.

    Attributes:
      path: of the file, relative to the benchmark's folder; .srt, .json or .jsonl.
      listed: the text that holds the lines behind the clip, "" where they stand between its frames.
      is_whole: all lines are shown as one text, whichever frames are sampled.
      is_asked: only where the user asks for subtitles; LongVideoBench always has them.
      subject: what the question is "based on" where subtitles are shown, "" for no other words.
      begin: seconds of the film at which the clip begins.
      duration: of the clip in seconds, where a line without an end ends.
    """

    path: str
    listed: str = LISTED
    is_whole: bool = False
    is_asked: bool = True
    subject: str = ""
    begin: float = 0.0
    duration: float = math.inf


def read_subtitles(folder: pathlib.Path, subtitles: Subtitles) -> list[Line]:
    """The lines of a file, in seconds of the clip; none where there is no file. Raises ValueError
    for a file that holds no subtitles of a known form."""
    path = folder / subtitles.path
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".srt":
        return [_read_cue(match) for match in _CUE.finditer(text.replace("\r\n", "\n"))]
    lines = [text] if path.suffix == ".json" else filter(str.strip, text.split("\n"))
    try:
        found = [json.loads(line) for line in lines]
        rows = found[0] if path.suffix == ".json" else found
        return [_read_row(row, subtitles) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no subtitles ({error!r}); download the file again") from None


def _read_cue(match: re.Match) -> Line:
    numbers = [int(match[i]) for i in range(1, 9)]
    start, end = (h * 3600 + m * 60 + s + int(ms) / 10 ** len(str(match[4 * i + 4]))
                  for i, (h, m, s, ms) in enumerate((numbers[:4], numbers[4:])))  # fmt: skip
    return start, end, " ".join(re.sub(r"<[^>]*>", "", match[9]).split())


def _read_row(row: dict, subtitles: Subtitles) -> Line:
    """A line as LongVideoBench has it, in one of two forms, or a word of Video-MME-v2."""
    if "timestamp" in row:
        start, end = row["timestamp"]
        text = row["text"]
    elif "start_time" in row:
        return float(row["start_time"]), float(row["end_time"]), row["text"]
    else:
        start, end, text = _seconds(row["start"]), row["end"] and _seconds(row["end"]), row["line"]
    end = float(end) if isinstance(end, int | float) else subtitles.duration + subtitles.begin
    return float(start) - subtitles.begin, end - subtitles.begin, text


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
