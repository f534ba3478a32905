"""Reward functions that users bring: loaded by name, called under a deadline, never trusted.

A user reward is any `module:function` in the form that TRL users write,

    def reward(prompts, completions, **kwargs) -> list[float | None]

or the same with `async def`, or a generator. `kwargs` holds each record field as a list. The
function is called once per record, with that record's R completions, so one bad record costs one
group. All calls of a batch run in one worker thread.

A Python thread cannot be killed. When the deadline passes, what is finished is kept, the rest is
masked, and the thread is left behind: it stops by itself before its next record, its late results
are dropped, and as long as it has not returned the same reward is not called again ("busy"), so
that one hanging reward holds one thread. It is a daemon and does not keep the program alive. A
function that hangs inside C code without releasing the interpreter lock stops everything; run
such a thing in a process of its own.
"""

import asyncio
import collections
import importlib
import inspect
import itertools
import logging
import math
import numbers
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

FIELDS = (
    "problem_id", "problem", "data_type", "problem_type", "options", "process", "solution",
    "path", "data_source",
)  # fmt: skip


NOT_APPLICABLE = math.inf  # stands for no score: the reward says nothing of the completion
# Arguments that TRL gives and we do not.
_NOT_GIVEN = ("completion_ids", "prompt_ids", "trainer_state", "log_extra", "log_metric")


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
      ValueError: no such module or function, or it does not take keywords that it does not name.
    """
    module_name, _, name = spec.partition(":")
    try:
        function: Any = importlib.import_module(module_name)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # importing runs the user's code
        raise ValueError(f"reward {spec}: {error}; write module:function, importable") from error
    try:
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {spec}: {error}; name a function written in Python") from None
    if inspect.Parameter.VAR_KEYWORD not in kinds or inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise ValueError(f"reward {spec}: takes no **kwargs; take (prompts, completions, **kwargs)")
    _refuse_unknown_arguments(spec, function)
    return function


def _refuse_unknown_arguments(spec, function):
    """Raises ValueError for an argument without a default that no call would ever give."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name in _NOT_GIVEN and parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"reward {spec}: needs {name}, which is not given here; give it a default, or use "
                "prompts, completions and the fields of the record"
            )


def record_fields(record: Any, num_completions: int) -> dict[str, list[Any]]:
    """Keyword lists of one record: its fields and those of `record.extra`, R times each."""
    fields = {field: getattr(record, field, None) for field in FIELDS}
    taken = (*FIELDS, "prompts", "completions")
    extra = getattr(record, "extra", {})
    fields |= {key: value for key, value in extra.items() if key not in taken}
    return {key: [value] * num_completions for key, value in fields.items()}


class UserReward:
    """One user function and the thread it may still be running in."""

    def __init__(self, spec: str):
        self.spec = spec
        self.function = load_function(spec)
        self._thread: threading.Thread | None = None

    def start(
        self, prompts: Sequence[str], completions: Sequence[Sequence[str]], records: Sequence[Any]
    ) -> Callable[[float], tuple[np.ndarray, dict[str, int]]]:
        """Starts the calls for B records with R completions each and returns at once.

        Returns:
          `collect(deadline)`, which waits until done or until `time.monotonic()` reaches
          `deadline`, and gives float64 [B, R] (NaN where failed, NOT_APPLICABLE where the function
          returned None) and the number of samples for each reason: raised, timeout, busy,
          wrong_type, wrong_length, not_finite, not_applicable.
        """
        results: list[tuple[list[float], dict[str, int], str] | None] = [None] * len(records)
        sizes = [len(texts) for texts in completions]
        stop = threading.Event()
        if self._thread is not None and self._thread.is_alive():
            return lambda deadline: _gather(self.spec, results, sizes, "busy")

        def work() -> None:
            for i, record in enumerate(records):
                if stop.is_set():
                    return
                results[i] = self._call(prompts[i], completions[i], record)

        thread = threading.Thread(target=work, name=f"reward {self.spec}", daemon=True)
        self._thread = thread
        thread.start()

        def collect(deadline: float) -> tuple[np.ndarray, dict[str, int]]:
            thread.join(max(0.0, deadline - time.monotonic()))
            stop.set()
            return _gather(self.spec, list(results), sizes, "timeout")

        return collect

    def _call(
        self, prompt: str, completions: Sequence[str], record: Any
    ) -> tuple[list[float], dict[str, int], str]:
        num = len(completions)
        try:
            returned = self.function(
                prompts=[prompt] * num,
                completions=list(completions),
                **record_fields(record, num),
            )
            if inspect.iscoroutine(returned):
                returned = asyncio.run(returned)
            if isinstance(returned, Iterator):
                returned = list(itertools.islice(returned, num + 1))  # it may have no end
            return *_to_floats(returned, num), ""
        except BaseException as error:  # SystemExit too: it is not for us
            line = " ".join(traceback.format_exception_only(error)[-1].split())
            return [math.nan] * num, {"raised": num}, line


def _to_floats(returned: Any, num: int) -> tuple[list[float], dict[str, int]]:
    reasons: dict[str, int] = collections.Counter()
    if isinstance(returned, str | bytes | dict) or not hasattr(returned, "__len__"):
        return [math.nan] * num, {"wrong_type": num}
    if len(returned) != num:
        return [math.nan] * num, {"wrong_length": num}
    values = []
    for value in returned:
        if value is None:
            values.append(NOT_APPLICABLE)
            reasons["not_applicable"] += 1
            continue
        is_number = isinstance(value, numbers.Real) or hasattr(value, "__float__")
        try:
            number = float(value) if is_number else math.nan
        except (TypeError, ValueError, OverflowError, RuntimeError):
            is_number, number = isinstance(value, int), math.nan
        if not math.isfinite(number):
            reasons["not_finite" if is_number else "wrong_type"] += 1
            number = math.nan
        values.append(number)
    return values, dict(reasons)


def _gather(
    spec: str, results: list, sizes: list[int], missing: str
) -> tuple[np.ndarray, dict[str, int]]:
    """Stacks the results of a batch; a record without one gets the reason `missing`."""
    counts: dict[str, int] = collections.Counter()
    rows, first_error = [], ""
    for result, size in zip(results, sizes, strict=True):
        values, reasons, error = result or ([math.nan] * size, {missing: size}, "")
        rows.append(values)
        counts.update(reasons)
        first_error = first_error or error
    if counts.keys() - {"not_applicable"}:
        logging.getLogger(__name__).warning(
            "reward %s: samples masked or skipped: %s %s", spec, dict(counts), first_error[:200]
        )
    return np.array(rows, np.float64), dict(counts)
