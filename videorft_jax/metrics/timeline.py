"""A picture of what the threads of a host and its devices did during one step, from its trace."""

import pathlib
from typing import NamedTuple

import jax

MARK = "videorft "  # The names of our own spans begin with it; what follows is `lane: what`.
_DEVICE = "/device:"  # Planes of a trace that stand for accelerators have such names.
_CPU_THREADS = ("tf_XLAPjRtCpuClient", "tf_XLAEigen")  # The threads on which CPUs run programs.
_WAITS = ("ThreadpoolListener", "SlinkyThreadPool", "end: ")
LANES = ("step", "rewards", "loader")  # From the top; the devices stand below.
DEVICES = "devices"


class Span(NamedTuple):
    """Something that lasted: in which lane, what, and from when to when, in seconds."""

    lane: str
    name: str
    start: float
    end: float


def read_trace(folder: str | pathlib.Path) -> list[Span]:
    """Reads our own spans, and when devices computed, off the newest trace below `folder`.

    Times count from the first of our spans. Raises ValueError where there is no trace.
    """
    paths = sorted(pathlib.Path(folder).glob("plugins/profile/*/*.xplane.pb"))
    if not paths:
        raise ValueError(f"{folder}: holds no trace; name the folder that log.profile wrote")
    own, busy = [], []
    # The file in JSON beside it ends with the first million events, which a second may have.
    for plane in jax.profiler.ProfileData.from_file(str(paths[-1])).planes:
        for line in plane.lines:
            computes = plane.name.startswith(_DEVICE) or line.name.startswith(_CPU_THREADS)
            times = []
            for event in line.events:
                name, start = event.name, event.start_ns / 1e9
                end = start + event.duration_ns / 1e9
                if name.startswith(MARK):
                    lane, _, what = name.removeprefix(MARK).partition(": ")
                    own.append(Span(lane, what, start, end))
                elif computes and not name.startswith(_WAITS):
                    times.append((start, end))
            busy += join(times)
    zero = min((span.start for span in own), default=0.0)
    spans = [Span(lane, name, start - zero, end - zero) for lane, name, start, end in own]
    spans += [Span(DEVICES, "", start - zero, end - zero) for start, end in join(busy)]
    return sorted(spans, key=lambda span: span.start)


def join(intervals: list[tuple[float, float]], gap: float = 1e-4) -> list[tuple[float, float]]:
    """Joins intervals, in any order, that overlap or are less than `gap` apart."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if joined and start - joined[-1][1] < gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def draw(spans: list[Span], path: str | pathlib.Path, title: str) -> None:
    """Draws the spans as bars over time, a row for each lane and for those that overlap in it."""
    import matplotlib.figure

    rows = _lay_out(spans)
    names = sorted({span.name for span in spans if span.lane != DEVICES})
    palette = matplotlib.colormaps["tab20"].colors
    colours = {name: palette[number % 20] for number, name in enumerate(names)} | {"": "0.35"}
    figure = matplotlib.figure.Figure((12, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, (_, row) in enumerate(rows):
        for name in {span.name for span in row}:  # Thousands of bars one by one take a minute.
            bars = [(span.start, span.end - span.start) for span in row if span.name == name]
            axes.broken_barh(
                bars, (height - 0.4, 0.8), facecolors=[colours[name]],
                edgecolor="white" if name else colours[name], linewidth=0.3,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.01)
    axes.set_xlabel("seconds")
    axes.set_title(title)
    marks = [matplotlib.patches.Patch(color=colours[name], label=name) for name in names]
    figure.legend(handles=marks, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)


def _lay_out(spans):
    """Lists (label, spans without overlap) from the top, a lane in as many rows as it needs."""
    rows = []
    lanes = [*LANES, *sorted({span.lane for span in spans} - {*LANES, DEVICES}), DEVICES]
    for lane in lanes:
        own: list[list[Span]] = []
        for span in (span for span in spans if span.lane == lane):
            free = next((row for row in own if row[-1].end <= span.start), None)
            if free is None:
                own.append([span])
            else:
                free.append(span)
        rows += [(lane if not number else "", row) for number, row in enumerate(own)]
    return rows
