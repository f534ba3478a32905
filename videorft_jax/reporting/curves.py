"""Curves of a run as SVG, a small panel for each kind of metric; a second run is dashed."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

MOST_POINTS = 300  # points of a line; more steps are averaged
MOST_LINES = 6  # lines of a panel
WIDTH, HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 22  # margins
_SECONDS = "Seconds of a step"
# Title of a panel -> pattern of the names of its metrics. The group in it is the name of the line.
PANELS = (
    ("Loss", r"(loss)"),
    ("Rewards", r"rewards/([^/]+)/mean"),
    ("Total reward by type", r"rewards/total/mean/(.+)"),
    ("Accuracy by type", r"rewards/accuracy/mean/(.+)"),
    ("Held-out accuracy and its interval", r"validate/(accuracy|low|high)"),
    ("Spread of rewards in a group", r"rewards/(total)/group_std"),
    ("Groups", r"groups/(.+)"),
    ("Gates that are open", r"gate/open/?(.*)"),
    ("Entropy", r"(entropy)"),
    ("Divergence from the reference", r"(kl)"),
    ("Clipped tokens", r"(clip_fraction)"),
    ("Gap of sampler and trainer", r"(sampler_gap|sampler_gap_max)"),
    ("Completion length in tokens", r"rollout/length/(.+)"),
    ("Truncated completions", r"rollout/(truncated)"),
    ("Gradient norm", r"(grad_norm)"),
    ("Goodput in tokens a second", r"perf/(tokens_per_s)"),
    ("Utilisation", r"perf/(mfu|hfu|padding)"),
    (_SECONDS, r"time/(?!validate$|checkpoint$)(.+)"),
    ("Seconds of held-out records and checkpoints", r"time/(validate|checkpoint)"),
    ("Memory in GiB", r"memory/(.+)_gib"),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A metric of one run: label, number of its colour, whether it is the second run's."""

    label: str
    colour: int
    is_second: bool
    points: list[tuple[float, float]]  # (step, value)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart, ready for a template: its lines as SVG paths and its axes as texts."""

    title: str
    lines: list[dict[str, Any]]
    ticks: list[tuple[float, str]]  # (height in pixels, text)
    first_step: int
    last_step: int


def make_panels(runs: Sequence[Sequence[dict[str, Any]]]) -> list[Panel]:
    """The panels that one or two runs have values for. runs: the logged lines of each run.

    Metrics of one kind that have no room in a panel follow in further ones.
    """
    panels = []
    for title, pattern in PANELS:
        shown = list(map(_without_compiling, runs)) if title == _SECONDS else runs
        labels = sorted({label for run in shown for label in _labels(run, pattern).values()})
        for start in range(0, len(labels), MOST_LINES):
            lines = _make_lines(shown, pattern, labels[start : start + MOST_LINES])
            if lines:
                part = start // MOST_LINES + 1
                panels.append(_draw(title if part == 1 else f"{title}, part {part}", lines))
    return panels


def _make_lines(runs, pattern, labels):
    """The lines of a panel: of each run the metrics whose labels stand in it."""
    lines = []
    for number, run in enumerate(runs):
        names = _labels(run, pattern)
        for name, label in sorted(names.items(), key=lambda item: item[1]):
            points = _thin([(row["step"], row.get(name)) for row in run])
            if points and label in labels:
                lines.append(Line(label or "all", labels.index(label), number > 0, points))
    return lines


def _without_compiling(run):
    """The rows of steps in which nothing was compiled, since beside minutes of compiling all other
    steps are a flat line; every row where there are no others."""
    return [row for row in run if not row.get("time/compile")] or run


def _labels(run, pattern):
    """{name of a metric: label of its line}."""
    names = set().union(*run)  # A step may lack what others have: a checkpoint, a type of record.
    found = {name: re.fullmatch(pattern, name) for name in names}
    return {name: match[1] for name, match in found.items() if match}


def _thin(points):
    """At most MOST_POINTS means of neighbouring steps, without values that are missing."""
    known = [(step, value) for step, value in points if value is not None]
    size = max(1, math.ceil(len(known) / MOST_POINTS))
    parts = [known[start : start + size] for start in range(0, len(known), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _draw(title, lines):
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low or 1) / 10, high + abs(high or 1) / 10
    first, last = min(steps), max(steps)

    def across(step):
        share = (step - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def down(value):
        return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    drawn = []
    for line in lines:
        places = [f"{across(step):.1f},{down(value):.1f}" for step, value in line.points]
        if len(places) == 1:  # a dot: a line of no length with round ends
            places *= 2
        last_value = format_number(line.points[-1][1])
        drawn.append(dataclasses.asdict(line) | {"path": " ".join(places), "last": last_value})
    middle = (low + high) / 2
    ticks = [(down(value), _format_tick(value, high - low)) for value in (high, middle, low)]
    return Panel(title, drawn, ticks, int(first), int(last))


def _format_tick(value, span):
    """As `format_number`, with the digits that tell values apart in an axis of this length."""
    decimals = 1 - math.floor(math.log10(span))
    if abs(value) >= 10_000 or decimals > 4 or decimals < 0:
        return format_number(value)
    return f"{value:z.{decimals}f}"


def format_number(value: float) -> str:
    """Three significant digits, with k and M for thousands and millions, and as a power of ten
    what is beyond these."""
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.1e}"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
