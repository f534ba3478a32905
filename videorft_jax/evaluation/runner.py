"""Completions of every record of a loader, scored.

The engine and its parameters are arguments, so that a program which evaluates several weights
compiles once.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.loader.steps import Step
from videorft_jax.data.records.records import RecordError
from videorft_jax.evaluation.shared_clips import SharedClips
from videorft_jax.grpo.experience import fill_rows
from videorft_jax.models.family import family_of
from videorft_jax.models.geometry import Geometry
from videorft_jax.parallel.processes import gather
from videorft_jax.rewards import answers
from videorft_jax.rewards.accuracy import Outcome, check_mode, score_accuracy
from videorft_jax.rollout.engine import Rollout, RolloutEngine
from videorft_jax.rollout.tools import Tools
from videorft_jax.rollout.turns import TurnEngine

SCORED, QUARANTINED = "scored", "quarantined"
RECORD_FIELDS = ("problem_id", "problem_type", "problem", "path", "solution")


def evaluate_records(
    engine: RolloutEngine,
    params: Any,
    tokenizer: Any,
    loader: Loader,
    *,
    mode: str = "strict",
    seed: int = 0,
    blank: bool = False,
    done: Iterable[int] = (),
    on_batch: Callable[[list[dict], dict[str, float]], None] | None = None,
    tools: Tools | None = None,
) -> list[dict[str, Any]]:
    """Draws and scores the completions of this process's records, every record exactly once.

    A row of the result is one completion, or one record that could not be shown to the model:

      index, rollout           place of the record in its file, number of the completion
      problem_id, problem_type, problem, path, solution     of the record
      completion, answer       texts; answer None: none could be taken out of it
      score, outcome           float or None; scored, unparseable (score 0), failed, quarantined
      reason                   why it is quarantined, else ""
      shortened                the most frames of each clip where the prompt was too long, else None
      completion_tokens, stopped, finite       length, ended by a stop id, all logits finite

    params: of `engine.prepare`. loader: in the mode "evaluate". mode: rules of the score, see
    `rewards.accuracy`. blank: clips without content (`blank_pixels`). done: records (of any
    process) that are not run again. on_batch: called with the rows of each batch and the counters
    of its rollout. tools: what completions may call; a row then has their `calls` too. Completion
    r of record i depends on seed, i and r alone, not on the batch.

    All processes of the mesh call it with the same arguments but their own loaders.
    """
    check_mode(mode)
    done = set().union(*gather(sorted(map(int, done))))
    found = list(_make_bad_rows(loader, done))
    if found and on_batch:
        on_batch(found, {"prefill_s": 0.0, "decode_s": 0.0})
    done |= loader.failures.keys()
    needed = find_batches(loader, done)
    if not needed.any():
        return found
    turns = None if tools is None else TurnEngine(engine, tools)
    is_shared = len(np.unique(loader.clips)) < len(loader.clips)
    shared = SharedClips(engine, params) if is_shared else None
    with loader.steps(int(np.argmax(needed))) as items:
        for item in items:
            if not needed[item.index]:
                continue
            batch = fill_rows(item.batch, item.valid, engine.config)
            if blank:
                batch = blank_pixels(batch, family_of(engine.config).geometry)
            visual = shared(batch, _find_clips(loader, item)) if shared else None
            rollout = _draw(engine, turns, params, batch, item, seed, visual)
            made = _make_rows(item, rollout, tokenizer, mode, loader)
            rows = [row for row in made if row["index"] not in done]
            found += rows
            if on_batch:
                on_batch(rows, rollout.counters)
    return found


def _draw(engine, turns: TurnEngine | None, params, batch: Batch, item: Step, seed, visual):
    """The rollout of one batch of the loader, with tools where there are `turns`."""
    uids, sampling = np.array([row[0] if row else 0 for row in item.indices]), engine.sampling
    limits = np.full((len(uids), sampling.num_rollouts), sampling.max_new_tokens)
    limits[~item.valid] = 1
    how = {"seed": seed, "limits": limits, "visual": visual}
    if turns is None:
        return engine.rollout(params, batch, uids, **how)
    return turns.rollout(params, batch, uids, item, **how)


def _find_clips(loader, item):
    """The number of the media that each row of a batch shows, None for an empty row."""
    return [int(loader.clips[row[0]]) if row else None for row in item.indices]


def find_batches(loader: Loader, done: Collection[int]) -> np.ndarray:
    """The batches in which some process has a record that is not in `done`, bool [K]. All processes
    of a mesh run a batch together, so each must run it if one does."""
    schedule = loader.schedule
    own = [
        any(int(index) not in done for index in schedule.record[start:stop])
        for start, stop in zip(schedule.starts, schedule.starts[1:], strict=False)
    ]
    return np.any(np.array(gather(own), bool), axis=0)


def blank_pixels(batch: Batch, geometry: Geometry) -> Batch:
    """The batch with every pixel at the mean of the normalisation, so that the vision tower sees 0
    to within half a grey level. Frames keep their number, size and time: the model is left with the
    text and with how long and how large the clip is."""
    colour = np.round(np.array(geometry.pixel_mean) * 255).astype(np.uint8)
    patch = np.repeat(colour, batch.patches.shape[-1] // len(colour))  # channels come first
    return batch._replace(patches=np.where(batch.patch_valid[..., None], patch, np.uint8(0)))


def own_records(loader: Loader) -> set[int]:
    """The places of this process's records. Where all records are bad there are no batches, and
    every process has all."""
    return set(loader.schedule.record.tolist()) if len(loader) else set(loader.failures)


def _make_bad_rows(loader, done):
    """The rows of this process's records that measuring found to be bad; they need no model."""
    for index in sorted(own_records(loader) & loader.failures.keys() - done):
        yield _quarantined(loader.failures[index], loader.source)


def _make_rows(item: Step, rollout: Rollout, tokenizer, mode, loader: Loader):
    """The rows of one batch: one a completion, or one for a record that could not be read."""
    failures = dict(item.failures)
    for row in range(len(item.valid)):
        if row in failures:
            yield _quarantined(failures[row], loader.source)
        for number in range(rollout.lengths.shape[1]) if item.valid[row] else ():
            index, record = item.indices[row][0], item.records[row][0]
            length = int(rollout.lengths[row, number])
            ids = rollout.tokens[row, number, :length]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield {
                "index": index,
                "rollout": number,
                **{name: getattr(record, name) for name in RECORD_FIELDS},
                **_judge(text, record, mode),
                "reason": "",
                "shortened": loader.shortened.get(index),
                "completion_tokens": length,
                "stopped": bool(rollout.stopped[row, number]),
                "finite": not rollout.failed[row, number],
            } | ({} if rollout.calls is None else {"calls": rollout.calls[row][number]})


def _judge(text, record, mode):
    found = score_accuracy(text, record.solution, record.problem_type, record.options, mode)
    score, outcome = found, SCORED
    if isinstance(found, Outcome):
        score, outcome = (0.0 if found is Outcome.UNPARSEABLE else None), str(found)
    strict = mode == "strict"
    answer = answers.extract_answer(text) if strict else answers.first_block(text, "answer")
    return {"completion": text, "answer": answer, "score": score, "outcome": outcome}


def _quarantined(failure, source):
    """The row of a record that was not shown to the model; it keeps what can be read of the
    record, so that it is counted where it belongs."""
    try:
        record = source[failure.index]
    except RecordError:
        record = None
    fields = {name: getattr(record, name, None) for name in RECORD_FIELDS}
    unknown = ("completion", "answer", "score", "completion_tokens", "stopped", "finite")
    return {
        "index": failure.index,
        "rollout": 0,
        **fields,
        **dict.fromkeys(unknown),
        "path": fields["path"] or failure.path,
        "outcome": QUARANTINED,
        "reason": failure.reason,
    }
