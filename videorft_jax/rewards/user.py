"""Reward functions that users bring: loaded by name, called under a deadline, never trusted.

A user reward is any `module:function` in the form that TRL users write,

    def reward(prompts, completions, **kwargs) -> list[float | None]

or the same with `async def`, or a generator. `kwargs` holds each record field as a list, and during
training `completion_ids` (lists of token ids), `trainer_state` (`TrainerState`) and `log_metric`
(name, value). The function is called once per record, with that record's R completions, so one bad
record costs one group. All calls of a batch run in one worker thread.

Prompts and completions are texts. A function that fails on texts with a TypeError, AttributeError
or LookupError and succeeds on chats, [{"role": "assistant", "content": text}], as TRL gives them
for conversational data, gets chats from then on.

A Python thread cannot be killed. When the deadline passes, what is finished is kept, the rest is
masked, and the thread is left behind: it stops by itself before its next record, its late results
are dropped, and as long as it has not returned the same reward is not called again ("busy"), so
that one hanging reward holds one thread. It is a daemon and does not keep the program alive. A
function that hangs inside C code without releasing the interpreter lock stops everything; run
such a thing in a process of its own.
"""

import asyncio
import collections
import dataclasses
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
_NOT_GIVEN = ("prompt_ids", "log_extra")
# Arguments that are given where completions were drawn in training, and not to `vr.score`.
_IN_TRAINING = ("completion_ids", "trainer_state", "log_metric")


@dataclasses.dataclass(frozen=True)
class TrainerState:
    """Holds what a user reward may know of the run: the step that is being taken, counted from 1,
    the last step, and the epoch of the batch, counted from 0. The names are those of
    `transformers`."""

    global_step: int
    max_steps: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Training:
    """Holds what rewards get besides texts where completions were drawn in training.

    completion_ids: B lists of R lists of token ids.
    """

    completion_ids: Sequence[Sequence[Sequence[int]]]
    state: TrainerState


def load_function(spec: str, in_training: bool = False) -> Callable[..., Any]:
    """Returns the function that `module:function` names.

    in_training: calls give `completion_ids`, `trainer_state` and `log_metric`.

    Raises:
      ValueError: no such module or function, it does not take keywords that it does not name, or
        it needs arguments that no call gives.
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
    if inspect.isasyncgenfunction(function):
        raise ValueError(
            f"reward {spec}: is an async generator; return a list, or await and return"
        )
    missing = _NOT_GIVEN if in_training else (*_NOT_GIVEN, *_IN_TRAINING)
    for name in needed_arguments(function):
        if name in missing:
            raise ValueError(
                f"reward {spec}: needs {name}, which is not given here; give it a default, or use "
                "prompts, completions and the fields of the record"
            )
    return function


def needed_arguments(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments without which the function cannot be called."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]


def record_fields(record: Any, num_completions: int) -> dict[str, list[Any]]:
    """Makes keyword lists of one record: its fields and those of `record.extra`, R times each."""
    fields = {field: getattr(record, field, None) for field in FIELDS}
    taken = (*FIELDS, "prompts", "completions")
    extra = getattr(record, "extra", {})
    fields |= {key: value for key, value in extra.items() if key not in taken}
    return {key: [value] * num_completions for key, value in fields.items()}


class UserReward:
    """Holds one user function and the thread it may still be running in."""

    def __init__(self, spec: str, in_training: bool = False):
        self.spec, self._in_training = spec, in_training
        self.function = load_function(spec, in_training)
        self._thread: threading.Thread | None = None
        self._takes_chats: bool | None = None  # None: no call has shown it yet
        self._metrics: dict[str, list[float]] = {}

    def check_record(self, record: Any) -> None:
        """Raises ValueError for an argument of the function that is no field of the record."""
        given = {"prompts", "completions", *record_fields(record, 1)}
        given |= set(_IN_TRAINING) if self._in_training else set()
        for name in needed_arguments(self.function):
            if name not in given:
                raise ValueError(
                    f"reward {self.spec}: needs {name}, which is no field of the records; give it "
                    "a default, or add the field to every record"
                )

    def take_metrics(self) -> dict[str, float]:
        """Gives the means of what the function has logged since the last call, by name."""
        logged, self._metrics = self._metrics, {}
        return {name: float(np.mean(values)) for name, values in logged.items()}

    def _log_metric(self, name: str, value: Any) -> None:
        self._metrics.setdefault(str(name), []).append(float(value))

    def in_training(self, training: Training, row: int) -> dict[str, Any]:
        """Tells what the function gets in training besides the record of the given row."""
        return {
            "completion_ids": [list(ids) for ids in training.completion_ids[row]],
            "trainer_state": training.state,
            "log_metric": self._log_metric,
        }

    def start(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[str]],
        records: Sequence[Any],
        training: Training | None = None,
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
                more = {} if training is None else self.in_training(training, i)
                results[i] = self.call(prompts[i], completions[i], record, more)

        thread = threading.Thread(target=work, name=f"reward {self.spec}", daemon=True)
        self._thread = thread
        thread.start()

        def collect(deadline: float) -> tuple[np.ndarray, dict[str, int]]:
            thread.join(max(0.0, deadline - time.monotonic()))
            stop.set()
            return _gather(self.spec, list(results), sizes, "timeout")

        return collect

    def call(
        self, prompt: str, completions: Sequence[str], record: Any, more: dict[str, Any]
    ) -> tuple[list[float], dict[str, int], str]:
        """Calls the function for one record with its R completions.

        more: what the function is given besides the fields of the record.

        Returns:
          R values, NaN where failed, NOT_APPLICABLE for None; the number of samples for each
          reason; and the line of the exception that was raised, or "".
        """
        num, fields = len(completions), record_fields(record, len(completions)) | more

        def call(takes_chats: bool) -> Any:
            prompts: list[Any] = [prompt] * num
            texts: list[Any] = list(completions)
            if takes_chats:
                prompts = [[{"role": "user", "content": text}] for text in prompts]
                texts = [[{"role": "assistant", "content": text}] for text in texts]
            returned = self.function(prompts=prompts, completions=texts, **fields)
            if inspect.isawaitable(returned):
                returned = asyncio.run(_wait(returned))
            if isinstance(returned, Iterator):
                returned = list(itertools.islice(returned, num + 1))  # it may have no end
            return returned

        try:
            return *_to_floats(self._find_form(call), num), ""
        except BaseException as error:  # SystemExit too: it is not for us
            line = " ".join(traceback.format_exception_only(error)[-1].split())
            return [math.nan] * num, {"raised": num}, line

    def _find_form(self, call: Callable[[bool], Any]) -> Any:
        """Calls the function with texts or, where it takes those, chats; returns its result."""
        if self._takes_chats is not None:
            return call(self._takes_chats)
        try:
            returned = call(False)
        except (TypeError, AttributeError, LookupError) as error:
            try:
                returned = call(True)
            except Exception:
                raise error from None
            self._takes_chats = True
            logging.getLogger(__name__).info("reward %s: takes chats, not texts", self.spec)
            return returned
        self._takes_chats = False
        return returned


async def _wait(awaitable):
    return await awaitable


def _to_floats(returned: Any, num: int) -> tuple[list[float], dict[str, int]]:
    reasons: dict[str, int] = collections.Counter()
    # A set has no order, so that nobody knows whose number is whose.
    unordered = isinstance(returned, str | bytes | dict | set | frozenset)
    if unordered or not hasattr(returned, "__len__"):
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
