"""The loop of SFT and GRPO around their steps: log, look for trouble, save, stop when asked."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from videorft_jax.metrics.profile import profiled, warn_of_passed_step
from videorft_jax.metrics.tracker import Tracker
from videorft_jax.training.preemption import PreemptionGuard, stopped
from videorft_jax.training.run import Run
from videorft_jax.training.step import TrainState
from videorft_jax.training.validation import Measure, Validation

log = logging.getLogger(__name__)


class Taken(NamedTuple):
    """One step that was taken.

    metrics: name -> float. counts: keyword arguments of `Tracker.log`, see `training.counts`.
    records: those of each row. next_batch: the loader's batch that follows. is_empty: nothing of
    the batch, on any process, could be learnt from. collapse: why the run must end, as the metrics
    of several steps show; else empty.
    """

    state: TrainState
    metrics: dict[str, float]
    counts: dict[str, Any]
    records: Sequence[Sequence[Any]]
    next_batch: int
    is_empty: bool = False
    collapse: str = ""


def say_nothing_left(run: Run) -> None:
    """Tells that the checkpoint is that of the last step, and which options make more of them."""
    names = ["data.epochs"] if run.next_batch >= len(run.loader) else []
    if run.start >= (run.options.max_steps or math.inf):
        names.append("train.max_steps")
    option = " and ".join(names)
    log.info("step %d of %d: nothing left to do; raise %s to go on", run.start, run.total, option)


def begin_validation(run: Run, open_measure: Callable[[Run], Measure]) -> Validation | None:
    """The validation of a run that goes on from its checkpoint; None where no records are named.

    open_measure: makes the function that answers `validate.records`.
    """
    options = run.options.validate
    return (
        Validation(options, run.folder, run.start, open_measure(run)) if options.records else None
    )


def run_steps(
    run: Run,
    start: int,
    take_step: Callable[[int, TrainState, Tracker], Taken | None],
    *,
    show: Sequence[str] = ("loss",),
    before_save: Callable[[int], None] = lambda number: None,
    validation: Validation | None = None,
) -> None:
    """Takes the steps after `start` up to `run.total`, or until the data ends.

    take_step: (number, state, tracker) -> the step, or None where the data has ended. show: metrics
    that the console shows. before_save: called with the step of each checkpoint before it is
    written. validation: held-out records, asked while the run trains; a run that they show to have
    stalled ends before the data does.

    Raises RuntimeError when too many steps in a row were not finite or the policy has collapsed,
    and SystemExit once a checkpoint is written after SIGTERM or Ctrl-C.
    """
    options, state = run.options, run.state
    best = protect_best(run, validation)
    if best is not None and not run.checkpointer.holds(best):
        log.warning(
            "the best round is that of step %d, whose checkpoint is gone, since validate.keep_best "
            "was not set then; that of the next better round stays",
            best,
        )
    if validation and validation.has_stalled:
        _say_stalled(run, validation, start)
        return
    warn_of_passed_step(run.folder, options.log.profile, start)
    log.info("steps %d to %d; the first of each shape is compiled", start + 1, run.total)
    with (
        PreemptionGuard(run.checkpointer.describe_kept) as guard,
        Tracker(
            run.folder,
            run.total,
            start_step=start + 1,
            show=tuple(show),
            interval=options.log.interval_s,
            wandb=options.log.wandb or None,
            config=options.recorded,
        ) as tracker,
    ):
        empty_in_row = 0
        for number in range(start + 1, run.total + 1):
            with profiled(run.folder, options.log.profile, number):
                taken = take_step(number, state, tracker)
            if taken is None:
                log.info("the data ended after step %d of %d", number - 1, run.total)
                if validation and validation.last != number - 1:
                    with tracker.phase("validate"):
                        validation.take(number - 1, state)
                    protect_best(run, validation)
                before_save(number - 1)
                run.save(number - 1, state, len(run.loader))
                break
            state = taken.state
            rate = run.learning_rate(state)
            found = {}
            if validation and validation.is_due(number, run.total):
                with tracker.phase("validate"):
                    found = validation.take(number, state)
            tracker.log(number, taken.metrics | found | {"lr": rate}, **taken.counts)
            check_skipped(run, number, taken)
            empty_in_row = empty_in_row + 1 if taken.is_empty else 0
            _check_empty(run, number, empty_in_row)
            if taken.collapse:
                raise RuntimeError(f"{options.name}: {taken.collapse}")
            stop = guard.should_stop(number)
            is_kept = bool(found) and protect_best(run, validation) == number
            has_stalled = validation is not None and validation.has_stalled
            is_end = stop or has_stalled or number == run.total
            if is_end or is_kept or number % options.checkpoint.every == 0:
                with tracker.phase("checkpoint"):  # It counts in the line of the next step.
                    before_save(number)
                    run.save(number, state, taken.next_batch)
            if has_stalled:
                _say_stalled(run, validation, number)
                break
            if stop:
                log.info("stopped after step %d; the same command goes on from there", number)
                raise stopped()


def protect_best(run: Run, validation: Validation | None) -> int | None:
    """Keeps the checkpoint of the best round where `validate.keep_best` asks for it; returns its
    step, None where none is kept."""
    if validation is None or not run.options.validate.keep_best:
        return None
    run.checkpointer.protect(validation.best)
    return validation.best


def _say_stalled(run, validation, number):
    log.info(
        "stopped after step %d of %d: %d rounds of validate.records were no better than that of "
        "step %d; raise validate.patience to go on",
        number, run.total, run.options.validate.patience, validation.best,
    )  # fmt: skip


def check_skipped(run: Run, number: int, taken: Taken) -> None:
    """Warns of a step that was not finite, with its samples; raises RuntimeError when it was one
    too many in a row."""
    in_row = taken.metrics["skipped_in_row"]
    if not in_row:
        return
    ids = [record.problem_id for row in taken.records for record in row]
    log.warning("step %d was not finite and is skipped; samples %s", number, ids)
    if in_row >= run.options.max_skipped_in_row:
        raise RuntimeError(
            f"{run.options.name}: {int(in_row)} steps in a row were not finite, the last one step "
            f"{number} with samples {ids}; lower optim.lr or look at those samples"
        )


def _check_empty(run, number, in_row):
    """Raises RuntimeError when nothing was learnt for too many steps in a row."""
    if in_row >= run.options.max_skipped_in_row:
        raise RuntimeError(
            f"{run.options.name}: nothing could be learnt from {in_row} steps in a row, the last "
            f"one step {number}: clips could not be read or rewards failed in all of them; see "
            f"completions.jsonl and quarantine.jsonl in {run.folder}"
        )
