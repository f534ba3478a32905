"""Curves of a report: which lines are drawn, how they are thinned, and how numbers stand there."""

import pytest

from videorft_jax.reporting.curves import format_number, make_panels


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.00042, "-4.2e-04"), (0.5, "0.5"), (1234.5, "1.23k"), (7.1e7, "71M"),
     (5e12, "5.0e+12")],
)  # fmt: skip
def test_numbers_are_short_at_any_size(value, text):
    assert format_number(value) == text


def test_curves_are_thinned_to_means_and_keep_their_ends():
    rows = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    (panel,) = make_panels([rows])
    (line,) = panel.lines
    assert len(line["points"]) == 250
    assert line["points"][0] == (4, 2.5)
    assert line["points"][-1] == (1000, 998.5)
    assert (panel.first_step, panel.last_step) == (4, 1000)
    ys = [float(pair.split(",")[1]) for pair in line["path"].split()]
    assert ys == sorted(ys, reverse=True)  # up is smaller in SVG


def test_a_tick_near_zero_has_no_sign():
    """As where one run's loss begins at 6 and the other's ends a little below 0."""
    (panel,) = make_panels([[{"step": 1, "loss": 6.3}], [{"step": 1, "loss": -0.027}]])
    assert [text for _, text in panel.ticks] == ["6.3", "3.1", "0.0"]


def test_curves_leave_out_values_that_are_missing():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 4.0}]
    (panel,) = make_panels([rows])
    assert panel.lines[0]["points"] == [(1, 2.0), (3, 4.0)]
    assert make_panels([[]]) == []


def test_steps_that_compiled_do_not_flatten_the_seconds_of_others():
    """Other panels keep them, and so does a run in which every step compiled."""
    rows = [{"step": n, "time/update": 0.1 * n, "memory/host_gib": 2.0} for n in (1, 2, 3)]
    rows[0] |= {"time/update": 90.0, "time/compile": 88.0}
    seconds, memory = make_panels([rows])
    assert [line["label"] for line in seconds.lines] == ["update"]
    assert [value for _, value in seconds.lines[0]["points"]] == pytest.approx([0.2, 0.3])
    assert len(memory.lines[0]["points"]) == 3
    alone, _ = make_panels([rows[:1]])
    assert [line["label"] for line in alone.lines] == ["compile", "update"]


def test_what_few_steps_have_is_drawn():
    """A type of question, or a checkpoint, may stand in neither the first step nor the last."""
    rows = [{"step": n, "time/update": 0.1, "rewards/total/mean/OCR": 1.0} for n in range(1, 6)]
    rows[2] |= {"time/checkpoint": 60.0, "rewards/total/mean/regression": 0.5}
    rewards, seconds, rare = make_panels([rows])
    assert [line["label"] for line in rewards.lines] == ["OCR", "regression"]
    assert [line["label"] for line in seconds.lines] == ["update"]  # It is no flat line.
    assert [(line["label"], line["points"]) for line in rare.lines] == [("checkpoint", [(3, 60.0)])]


def test_held_out_accuracy_is_drawn():
    """Rounds come every so many steps; their counts have no line."""
    rows = [{"step": step, "loss": 1.0} for step in range(1, 5)]
    for row, accuracy in ((rows[1], 0.25), (rows[3], 0.75)):
        row |= {"validate/accuracy": accuracy, "validate/low": 0.0, "validate/high": 1.0}
        row["validate/num_records"] = 400.0
    _, held_out = make_panels([rows])
    lines = {line["label"]: line["points"] for line in held_out.lines}
    assert lines == {
        "accuracy": [(2, 0.25), (4, 0.75)],
        "low": [(2, 0.0), (4, 0.0)],
        "high": [(2, 1.0), (4, 1.0)],
    }


def test_every_reward_has_a_line_however_many_there_are():
    """A run may be paid by all rewards that are built in, and by functions of its own."""
    names = [
        "accuracy",
        "format",
        "length",
        "mine:brevity",
        "order",
        "overlong",
        "semantic",
        "total",
    ]
    rows = [{"step": step, **{f"rewards/{name}/mean": 0.5 for name in names}} for step in (1, 2)]
    first, second = make_panels([rows, rows])
    assert (first.title, second.title) == ("Rewards", "Rewards, part 2")
    drawn = [(line["label"], line["is_second"]) for line in first.lines + second.lines]
    assert sorted(drawn) == sorted((name, other) for name in names for other in (False, True))
    assert max(line["colour"] for line in first.lines) == 5
    assert {line["colour"] for line in second.lines} == {0, 1}
