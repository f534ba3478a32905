"""Time spans in text, and how well one covers another."""

import json
import re

_NUMBER = r"\d+(?:\.\d+)?"
_TIME = re.compile(
    rf"(?P<clock>\d+:\d{{2}}(?::\d{{2}})?(?:[.,]\d+)?)"
    rf"|(?P<minutes>{_NUMBER})\s*(?:m|min|mins|minutes?)(?![^\W\d_])(?:\s*(?:and\s*)?(?P<seconds>{_NUMBER})"
    rf"\s*(?:s|secs?|seconds?)\b)?"
    rf"|(?P<plain>(?<![\w.]){_NUMBER})"
)


def read_span(text: str) -> tuple[float, float] | None:
    """(start, end) in seconds of the one span that a text names: "24.3 - 30.4 seconds", "from 00:24
    to 00:30", "[24.3, 30.4]", `{"time": [24.3, 30.4]}`. None for no or one time, for more than two,
    and for an end before the start."""
    match = re.search(r'"time"\s*:\s*(\[[^\]]*\])', text)
    if match:
        try:
            times = [float(value) for value in json.loads(match[1])]
        except (ValueError, TypeError):
            return None
    else:
        text = re.sub(r"(\d)\s*秒钟?", r"\1 s ", text).translate({ord(c): " to " for c in "到至"})
        times = [_seconds(match) for match in _TIME.finditer(text)]
    if len(times) != 2 or times[1] < times[0]:
        return None
    return times[0], times[1]


def _seconds(match: re.Match) -> float:
    if match["clock"]:
        total = 0.0
        for part in match["clock"].split(":"):
            total = total * 60 + float(part.replace(",", "."))
        return total
    if match["minutes"]:
        return float(match["minutes"]) * 60 + float(match["seconds"] or 0)
    return float(match["plain"])


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Intersection over union of two spans; 0 for two spans of no length."""
    common = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - common
    return common / union if union > 0 else 0.0
