"""Known failures of a run are named from its metrics, and only those; a collapse ends it."""

import json
import math
import warnings

import numpy as np
import pytest

from videorft_jax.grpo.alarms import AlarmOptions, Watch, read_history

OFF = {"entropy_below": 0.0, "kl_above": 0.0, "length_below": 0.0}
NAMES = ("reward_without_accuracy", "truncation_rises", "semantic_saturates")
FALL = {"rewards__semantic__mean": -0.004}  # It falls as there are fewer right answers.


def make_steps(num, seed=0, **slopes):
    """Metrics of `num` steps with noise, some of which change by a slope a step."""
    rng = np.random.default_rng(seed)
    middle = {
        "rewards/total/mean": 1.0, "rewards/accuracy/mean": 0.5, "rewards/semantic/mean": 0.2,
        "rollout/truncated": 0.1, "rollout/length/mean": 100.0, "entropy": 1.0, "kl": 0.1,
    }  # fmt: skip
    slopes = {name.replace("__", "/"): slope for name, slope in slopes.items()}
    return [
        {n: v + slopes.get(n, 0.0) * step + 0.02 * rng.standard_normal() for n, v in middle.items()}
        for step in range(num)
    ]


def run(steps, window=10, gated=True, first=1, history=(), **bounds):
    """(alarms of each step, the first collapse)"""
    watch = Watch(AlarmOptions(window, **(OFF | bounds)), history, gated)
    found = []
    for number, metrics in enumerate(steps, first):
        alarms, collapse = watch(number, metrics)
        found.append({name for name in NAMES if alarms.get(f"alarm/{name}")})
        if collapse:
            return found, collapse
    return found, ""


def test_noise_raises_nothing():
    for seed in range(20):
        alarms, collapse = run(make_steps(100, seed))
        assert not any(alarms)
        assert not collapse


@pytest.mark.parametrize(
    ("slopes", "wanted"),
    [
        ({"rewards__total__mean": 0.02, "rewards__accuracy__mean": -0.01, **FALL}, NAMES[0]),
        ({"rewards__total__mean": 0.02, "rewards__accuracy__mean": 0.01}, None),
        ({"rewards__total__mean": -0.02, "rewards__accuracy__mean": -0.01, **FALL}, None),
        ({"rollout__truncated": 0.01}, NAMES[1]),
        ({"rollout__truncated": -0.002}, None),
        ({"rewards__semantic__mean": 0.01}, NAMES[2]),
    ],
)
def test_known_failures(slopes, wanted, caplog):
    alarms, _ = run(make_steps(45, **slopes))
    assert not any(alarms[:19])  # Two windows are needed.
    assert alarms[-1] == ({wanted} if wanted else set())
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == sum(
        bool(now - before) for before, now in zip([set(), *alarms], alarms, strict=False)
    )


def test_semantic_reward_saturates_among_right_answers_where_it_is_gated():
    steps = make_steps(20, rewards__semantic__mean=0.0)
    for step in steps:
        step["rewards/semantic/mean"] = 0.97 * step["rewards/accuracy/mean"]
    assert run(steps, gated=True)[0][-1] == {"semantic_saturates"}
    assert run(steps, gated=False)[0][-1] == set()


@pytest.mark.parametrize(
    ("bounds", "slopes", "word"),
    [
        ({"entropy_below": 0.5}, {"entropy": -0.05}, "entropy averages"),
        ({"kl_above": 0.5}, {"kl": 0.05}, "kl averages"),
        ({"length_below": 50.0}, {"rollout__length__mean": -4.0}, "rollout/length/mean averages"),
    ],
)
def test_a_collapse_ends_the_run(bounds, slopes, word):
    steps = make_steps(60, **slopes)
    alarms, collapse = run(steps, **bounds)
    assert word in collapse
    assert "\n" not in collapse
    name, bound = slopes and next(iter(slopes)).replace("__", "/"), next(iter(bounds.values()))
    means = [np.mean([step[name] for step in steps[end - 10 : end]]) for end in range(10, 61)]
    is_beyond = [mean > bound if "kl" in name else mean < bound for mean in means]
    assert len(alarms) == 10 + is_beyond.index(True)
    assert not run(make_steps(60), **bounds)[1]


def test_steps_without_a_metric_do_not_count():
    """A step in which nothing took part has no entropy, and a value that was not finite is null."""
    steps = make_steps(20)
    for step in steps[::2]:
        del step["entropy"]
    assert not run(steps, entropy_below=0.5)[1]
    assert run(steps, entropy_below=2.0)[1]
    for step in steps:
        del step["rewards/accuracy/mean"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of the mean of nothing.
        assert run(steps)[0][-1] == set()


def test_a_restart_goes_on_with_the_windows(tmp_path):
    steps = make_steps(45, rewards__total__mean=0.02, rewards__accuracy__mean=-0.01)
    rows = [{"step": number, **step} for number, step in enumerate(steps, 1)]
    rows[3]["entropy"] = None
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 46, "lo')
    whole = run(steps)[0]
    for start in (0, 5, 30, 40):
        history = read_history(str(tmp_path), start, 19)
        assert len(history) == min(start, 19)
        later = run(steps[start:], first=start + 1, history=history)[0]
        assert later == whole[start:]
    assert read_history(str(tmp_path / "none"), 5, 19) == []
    assert all(math.isfinite(v) for row in read_history(str(tmp_path), 5, 19) for v in row.values())


def test_a_bound_needs_a_window():
    assert run(make_steps(30), window=0) == ([set()] * 30, "")
    with pytest.raises(ValueError, match="alarms.window is 0"):
        AlarmOptions(0, 0.5, 0.0, 0.0)
