"""The rehearsal of a run's rewards: what judges completions is tried before a weight is read.

A reward that fails masks its samples, so one that always fails would teach nothing for as long as
the run lasts. Each user reward is therefore called with made-up completions of a few real records,
and the files of SigLIP are checked without reading their arrays.
"""

import logging
import math
import queue
import threading
from typing import Any

from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import Source
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.siglip.hf_folder import check_siglip
from videorft_jax.rewards.user import TrainerState, Training, UserReward
from videorft_jax.training.run import open_records

log = logging.getLogger(__name__)

_MOST_READ = 200  # records that are looked through for one of each type
_MOST_TRIED = 8  # records for which a reward is called, or as many as there are types


def rehearse(options: GrpoOptions) -> None:
    """Tries the rewards of a run.

    Raises ValueError, one line, for a folder that holds no SigLIP, and for a user reward that has
    no answer in time or gives no made-up completion a number: it raises, returns another count or
    type of values than it was asked for, or None alone. A reward that fails for some of the records
    costs their groups; it is named in a warning.
    """
    if options.semantic is not None:
        check_siglip(options.semantic.siglip)
    names = [name for name, _ in options.rewards.rewards if ":" in name]
    if not names:
        return
    users = [UserReward(name, in_training=True) for name in names]
    records = choose_records(open_records(options.train))
    for user in users:
        _rehearse_one(user, records, options)


def choose_records(source: Source) -> list[Any]:
    """Picks one record of each problem type among those looked through, and others up to a few."""
    first: dict[str, Any] = {}
    others: list[Any] = []
    for index in range(0, len(source), max(1, len(source) // _MOST_READ)):
        try:
            record = source[index]
        except RecordError:  # The loader counts those that are bad.
            continue
        if first.setdefault(record.problem_type, record) is not record:
            others.append(record)
    return [*first.values(), *others[: max(0, _MOST_TRIED - len(first))]]


def make_up(record: Any, num_completions: int) -> list[str]:
    """Completions in the format that is asked for, the first of them right."""
    answers = [record.solution, *(f"made-up answer {k}" for k in range(1, num_completions))]
    return [f"<think>A made-up thought.</think>\n<answer>{text}</answer>" for text in answers]


def _rehearse_one(user: UserReward, records: list[Any], options: GrpoOptions) -> None:
    num, wrong, has_number = options.rollout.num_rollouts, "", False
    failing = []
    for record in records:
        user.check_record(record)
        values, reasons, line = _call(user, record, options)
        has_number |= any(map(math.isfinite, values))
        if fault := describe(reasons, line, num):
            failing.append(record.problem_id)
            wrong = wrong or fault
    if records and not has_number:
        wrong = wrong or "returned None for all; return a number for those that it judges"
        raise ValueError(
            f"reward {user.spec}: called on {num} made-up completions of each of {len(records)} "
            f"records it {wrong}"
        )
    if failing:
        log.warning(
            "reward %s: on made-up completions of records %s it %s; such groups teach nothing",
            user.spec, failing, wrong,
        )  # fmt: skip


def _call(user, record, options):
    """Tells what `UserReward.call` gives for made-up completions; raises ValueError after the
    deadline of the rewards of a batch, since a thread cannot be ended."""
    num, limit = options.rollout.num_rollouts, options.rewards.timeout_s
    state = TrainerState(1, max(1, options.train.max_steps), 0)
    more = user.in_training(Training([[list(range(k + 1)) for k in range(num)]], state), 0)
    answer: queue.Queue[Any] = queue.Queue()

    def work():
        answer.put(user.call(record.problem, make_up(record, num), record, more))

    threading.Thread(target=work, name=f"rehearsal of {user.spec}", daemon=True).start()
    try:
        return answer.get(timeout=limit)
    except queue.Empty:
        raise ValueError(
            f"reward {user.spec}: no answer for {num} made-up completions in {limit:g} s; raise "
            "reward.timeout_s, or load what it needs when its module is imported"
        ) from None


def describe(reasons: dict[str, int], line: str, num: int) -> str:
    """Says what is wrong with the values of a user reward, and the remedy; "" where nothing is."""
    if "raised" in reasons:
        return f"raised {line}; mend it, or return None where it says nothing"
    if "wrong_length" in reasons:
        return f"returned another number of values; return {num}, one a completion"
    if "wrong_type" in reasons:
        return f"returned no list of numbers; return {num} floats or None, one a completion"
    if "not_finite" in reasons:
        return "returned numbers that are not finite; return finite ones, or None"
    return ""
