"""The picture of a profiled step, from a trace that is written by hand."""

import logging

import jax
import matplotlib.collections
import matplotlib.figure
import pytest

from videorft_jax.metrics.profile import check_step, profiled, warn_of_passed_step
from videorft_jax.metrics.timeline import DEVICES, MARK, Span, draw, join, read_trace

EVENTS = [  # plane, thread, event, start and duration in microseconds
    ("/host:CPU", "python", f"{MARK}step: update", 1_000_000, 500_000),
    ("/host:CPU", "python", f"{MARK}loader: decode a clip", 1_200_000, 100_000),
    ("/host:CPU", "python", "PjitFunction(step)", 1_000_000, 10),
    ("/host:CPU", "tf_XLAPjRtCpuClient/123", "dot.3", 1_100_000, 100_000),
    ("/host:CPU", "tf_XLAPjRtCpuClient/123", "ThreadpoolListener::Record", 1_700_000, 100_000),
    ("/device:TPU:0", "XLA Ops", "fusion.1", 1_200_050, 100_000),
    ("/device:TPU:0", "XLA Ops", "fusion.2", 1_900_000, 100_000),
]


def write_trace(folder, events):
    """Writes what the profiler keeps whole. Beside it lies the same as JSON, of which it leaves out
    what follows the first million events; nothing of that is read here."""
    planes = [
        f'planes {{ id: {number} name: "{plane}" lines {{ id: 1 name: "{thread}" '
        f"timestamp_ns: {start * 1000} "
        f"events {{ metadata_id: 1 duration_ps: {length * 1_000_000} }} }} "
        f'event_metadata {{ key: 1 value {{ id: 1 name: "{name}" }} }} }}'
        for number, (plane, thread, name, start, length) in enumerate(events)
    ]
    body = jax.profiler.ProfileData.text_proto_to_serialized_xspace(" ".join(planes))
    target = folder / "plugins" / "profile" / "2026"
    target.mkdir(parents=True)
    (target / "host.xplane.pb").write_bytes(body)


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


def test_a_step_that_was_taken_before_is_told_unless_its_trace_is_there(tmp_path, caplog):
    warn_of_passed_step(str(tmp_path), 0, 4)
    warn_of_passed_step(str(tmp_path), 5, 4)
    assert not caplog.records
    warn_of_passed_step(str(tmp_path), 4, 4)
    assert "log.profile is 4 and the run goes on after step 4: nothing is recorded" in caplog.text
    caplog.clear()
    (tmp_path / "profile" / "00000004").mkdir(parents=True)
    warn_of_passed_step(str(tmp_path), 4, 4)
    assert not caplog.records


def test_a_trace_that_cannot_be_written_costs_no_step(tmp_path, caplog):
    (tmp_path / "profile").write_text("in the way")
    done = []
    with profiled(str(tmp_path), 3, 3):
        done.append(3)
    (record,) = caplog.records
    assert (done, record.levelno) == ([3], logging.WARNING)
    assert record.message.startswith("step 3: no trace in ")
    assert "make room or move what is in the way" in record.message


def test_thousands_of_bars_are_few_things_to_draw(tmp_path, monkeypatch):
    """One by one they would keep a run waiting for a minute."""
    drawn = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **kwargs):
        drawn.extend(figure.axes[0].get_children())
        save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    busy = [Span(DEVICES, "", 0.1 * n, 0.1 * n + 0.05) for n in range(3000)]
    draw([Span("step", "update", 0.0, 300.0), *busy], tmp_path / "timeline.png", "step 1")
    bars = [one for one in drawn if isinstance(one, matplotlib.collections.PolyCollection)]
    assert sorted(len(one.get_paths()) for one in bars) == [1, 3000]
    assert len(drawn) < 30
