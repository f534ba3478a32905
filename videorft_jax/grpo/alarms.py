"""A trainer that watches itself: known failures are named, and a collapsed policy ends the run.

Two windows of `alarms.window` steps that follow each other are compared. A mean has risen or fallen
where it differs by more than five standard errors of the difference, and by a least amount, so that
the noise of thousands of steps raises hardly an alarm. Each alarm is a metric of every step,
`alarm/NAME`, 0 or 1, and a warning when it is first raised:

    reward_without_accuracy   the total reward rises while the accuracy falls: the policy has found
                              something that pays and is not the answer
    truncation_rises          more completions reach the longest length
    semantic_saturates        of right answers nearly all have the highest semantic reward, which
                              therefore tells them apart no more

A collapse is a mean over one window beyond a bound that the user gives: entropy, divergence from
the reference policy, or length.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from videorft_jax.metrics.tracker import METRICS
from videorft_jax.parallel.processes import gather

log = logging.getLogger(__name__)

TOTAL, ACCURACY, SEMANTIC = (f"rewards/{name}/mean" for name in ("total", "accuracy", "semantic"))
TRUNCATED, LENGTH = "rollout/truncated", "rollout/length/mean"
_NAMES = (TOTAL, ACCURACY, SEMANTIC, TRUNCATED, LENGTH, "entropy", "kl")
_LEAST = 0.02  # A change of a mean that is smaller raises no alarm, however sure it is.
_ERRORS = 5.0  # Standard errors that a change must exceed.
_SATURATED = 0.95  # Share of the highest semantic reward, which is 1.
_REMEDIES = {
    "reward_without_accuracy": "look at the best paid completions in completions.jsonl",
    "truncation_rises": "add the reward overlong, or raise rollout.max_new_tokens",
    "semantic_saturates": "lower reward.scale",
}


@dataclasses.dataclass(frozen=True)
class AlarmOptions:
    """window: steps of a window, 0 for no alarms. entropy_below, kl_above, length_below: means over
    a window, in nats a token, nats a token and tokens, beyond which a run ends; 0 for never.

    Raises ValueError for a bound without a window.
    """

    window: int
    entropy_below: float
    kl_above: float
    length_below: float

    def __post_init__(self):
        if not self.window and (self.entropy_below or self.kl_above or self.length_below):
            raise ValueError(
                "alarms.window is 0 and a bound of alarms is given; give the steps of a window"
            )


class Watch:
    """Holds the windows of one run.

    history: the metrics of the steps before, in their order, as `read_history` gives them.
    semantic_is_gated: the semantic reward counts only where the answer is right.
    """

    def __init__(
        self, options: AlarmOptions, history: Sequence[Mapping[str, Any]], semantic_is_gated: bool
    ):
        self._options, self._is_gated = options, semantic_is_gated
        self._steps: deque[dict[str, float]] = deque(maxlen=2 * options.window)
        self._raised: set[str] = set()
        for metrics in history:
            self._steps.append(_pick(metrics))

    def __call__(self, number: int, metrics: Mapping[str, float]) -> tuple[dict[str, float], str]:
        """Takes in step `number`; returns (alarms as metrics, why the run must end or "")."""
        size = self._options.window
        if not size:
            return {}, ""
        self._steps.append(_pick(metrics))
        if len(self._steps) < size:
            return {}, ""
        collapse = self._find_collapse(list(self._steps)[-size:], number)
        if len(self._steps) < 2 * size:
            return {}, collapse
        found = self._find_alarms()
        for name in sorted(found - self._raised):
            log.warning("step %d: %s; %s", number, name.replace("_", " "), _REMEDIES[name])
        self._raised = found
        return {f"alarm/{name}": float(name in found) for name in _REMEDIES}, collapse

    def _find_alarms(self) -> set[str]:
        found = set()
        if self._change(TOTAL) > 0 > self._change(ACCURACY):
            found.add("reward_without_accuracy")
        if self._change(TRUNCATED) > 0:
            found.add("truncation_rises")
        late = list(self._steps)[self._options.window :]
        semantic = _values(late, SEMANTIC)
        right = _values(late, ACCURACY) if self._is_gated else np.ones(1)
        if semantic.size and right.size:
            is_top = semantic.mean() >= _SATURATED * right.mean()
            if is_top and right.mean() > _LEAST:
                found.add("semantic_saturates")
        return found

    def _change(self, name: str) -> float:
        """Tells by how much the mean of a metric has changed; 0 where that may be noise."""
        steps, size = list(self._steps), self._options.window
        before, after = _values(steps[:size], name), _values(steps[size:], name)
        if min(before.size, after.size) < 2:
            return 0.0
        change = float(after.mean() - before.mean())
        error = math.sqrt(before.var(ddof=1) / before.size + after.var(ddof=1) / after.size)
        return change if abs(change) > max(_ERRORS * error, _LEAST) else 0.0

    def _find_collapse(self, window, number) -> str:
        options = self._options
        for name, bound, sign in (
            ("entropy", options.entropy_below, -1),
            ("kl", options.kl_above, 1),
            (LENGTH, options.length_below, -1),
        ):
            values = _values(window, name)
            if bound and values.size and sign * (values.mean() - bound) > 0:
                option = {"entropy": "entropy_below", "kl": "kl_above"}.get(name, "length_below")
                return (
                    f"the policy has collapsed: {name} averages {values.mean():.4g} over the "
                    f"{options.window} steps up to step {number}, alarms.{option} is {bound:g}; go "
                    "on from an earlier checkpoint with a lower optim.lr or a higher grpo.beta"
                )
        return ""


def read_history(folder: str, start: int, num_steps: int) -> list[dict[str, Any]]:
    """Returns the metrics of the last `num_steps` steps up to step `start`, as process 0 has
    written them; all processes call it."""
    rows: list[dict[str, Any]] = []
    path = pathlib.Path(folder) / METRICS
    if jax.process_index() == 0 and num_steps and path.exists():
        lines = map(_parse, path.read_text().splitlines())
        rows = [row for row in lines if row.get("step", start + 1) <= start]
    return gather([_pick(row) for row in rows[-num_steps:]] if num_steps else [])[0]


def _parse(line):
    try:
        return json.loads(line)
    except ValueError:  # A torn last line is of a step that is taken again.
        return {}


def _pick(metrics):
    return {name: metrics[name] for name in _NAMES if metrics.get(name) is not None}


def _values(steps, name):
    return np.array([step[name] for step in steps if name in step])
