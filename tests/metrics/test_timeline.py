"""The picture of a profiled step, from a trace that is written by hand."""

import gzip
import json

import pytest

from videorft_jax.metrics.profile import check_step
from videorft_jax.metrics.timeline import DEVICES, MARK, Span, draw, join, read_trace


def named(kind, pid, name, **more):
    return {"ph": "M", "name": f"{kind}_name", "pid": pid, "args": {"name": name}} | more


def lasting(pid, tid, name, start, length):
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": start, "dur": length}


EVENTS = [
    named("process", 1, "/device:TPU:0"),
    named("process", 2, "/host:CPU"),
    named("thread", 2, "python", tid=5),
    named("thread", 2, "tf_XLAPjRtCpuClient/123", tid=6),
    lasting(2, 5, f"{MARK}step: update", 1_000_000, 500_000),
    lasting(2, 5, f"{MARK}loader: decode a clip", 1_200_000, 100_000),
    lasting(2, 5, "PjitFunction(step)", 1_000_000, 10),
    lasting(2, 6, "dot.3", 1_100_000, 100_000),
    lasting(2, 6, "ThreadpoolListener::Record", 1_700_000, 100_000),
    lasting(1, 1, "fusion.1", 1_200_050, 100_000),
    lasting(1, 1, "fusion.2", 1_900_000, 100_000),
]


def write_trace(folder, events):
    target = folder / "plugins" / "profile" / "2026"
    target.mkdir(parents=True)
    with gzip.open(target / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)


def test_lanes_are_of_our_spans_and_of_what_computes(tmp_path):
    write_trace(tmp_path, EVENTS)
    spans = read_trace(tmp_path)
    found = [Span(*one[:2], round(one.start, 6), round(one.end, 6)) for one in spans]
    assert found == [
        Span("step", "update", 0.0, 0.5),
        Span(DEVICES, "", 0.1, 0.30005),  # The CPU's and the TPU's, 50 microseconds apart
        Span("loader", "decode a clip", 0.2, 0.3),
        Span(DEVICES, "", 0.9, 1.0),
    ]
    draw(spans, tmp_path / "timeline.png", "step 7")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_are_joined_where_they_touch():
    assert join([(3, 4), (0, 2), (1, 1.5), (2, 2.5)]) == [(0, 2.5), (3, 4)]
    assert join([]) == []


def test_a_folder_without_a_trace_and_a_step_that_never_comes(tmp_path):
    with pytest.raises(ValueError, match="holds no trace; name the folder"):
        read_trace(tmp_path)
    check_step("own", 5, 5)
    with pytest.raises(ValueError, match="^own: log.profile is 6 and the run has 5 steps; "):
        check_step("own", 6, 5)
