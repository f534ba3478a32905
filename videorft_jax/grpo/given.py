"""Given completions: a group may hold answers that its record brings along beside drawn ones.

Where no drawn answer is right, nothing can be learnt from a group. An answer that a person or a
better model wrote shows the policy what it would not have said by itself, and its reward is
compared with those of the drawn answers like any other (LUFFY, Yan et al. 2025, "Learning to reason
under off-policy guidance"). A record gives its own chain of thought with its solution, or a list of
whole completions in its field `given`. They are the last completions of their group.
"""

import logging

import numpy as np

from videorft_jax.data.loader.steps import Step
from videorft_jax.data.records.prompts import build_target
from videorft_jax.data.records.records import Record, RecordError
from videorft_jax.data.records.source import Source
from videorft_jax.rollout.results import Rollout
from videorft_jax.rollout.sampling import SamplingConfig

log = logging.getLogger(__name__)

FIELD = "given"  # A record holds its completions in this field, as a list.


def read_given(record: Record) -> list[str]:
    """Returns the completions that a record brings along: those in its field `given`, else its
    chain of thought with its solution; none where it has neither.

    Raises ValueError for a field `given` that is no list of strings.
    """
    given = record.extra.get(FIELD)
    if given is not None:
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise ValueError(
                f"record {record.problem_id}: {FIELD}: is no list of strings; write whole "
                'completions, ["<think>...</think>\\n<answer>...</answer>"]'
            )
        return given
    has_chain = record.process or record.turns
    return [build_target(record)] if has_chain else []


def check_given(source: Source, num_given: int, name: str) -> None:
    """Raises ValueError, before a weight is read, where records have fewer completions to give than
    `num_given`. Records that cannot be read are left to the loader. name: of the file."""
    lacking = []
    for index in range(len(source)) if num_given else ():
        try:
            record = source[index]
        except RecordError:
            continue
        if len(read_given(record)) < num_given:
            lacking.append(source.where(index))
    if lacking:
        raise ValueError(
            f"{name}: {len(lacking)} of {len(source)} records have fewer than grpo.num_given = "
            f"{num_given} completions to give, the first {lacking[0]}; add a chain of thought as "
            f"process, or whole completions as {FIELD}, or set grpo.num_given=0"
        )


def put_given(
    rollout: Rollout, step: Step, num_given: int, tokenizer, sampling: SamplingConfig
) -> Rollout:
    """Puts the given completions of a batch in the last places of its groups.

    Each ends with the stop token and counts as certain where it was written, so its log-probability
    is 0. One that is longer than `sampling.max_new_tokens` is not cut: it is marked as failed, so
    that it takes no part, and counted in `counters["given_too_long"]`.
    """
    tokens, lengths, stopped = map(np.array, (rollout.tokens, rollout.lengths, rollout.stopped))
    logprobs, truncation = map(np.array, (rollout.logprobs, rollout.truncation))
    failed = np.array(rollout.failed)
    first, too_long = tokens.shape[1] - num_given, 0
    for places in (logprobs, truncation, failed):
        places[:, first:] = 0
    for row in np.flatnonzero(step.valid):
        texts = read_given(step.records[row][0])[:num_given]
        for place, text in enumerate(texts, first):
            ids = tokenizer.encode(text, add_special_tokens=False) + [sampling.stop_ids[0]]
            fits = len(ids) <= sampling.max_new_tokens
            kept = ids if fits else ids[:1]
            tokens[row, place] = sampling.pad_id
            tokens[row, place, : len(kept)] = kept
            lengths[row, place], stopped[row, place] = len(kept), fits
            failed[row, place] = not fits
            too_long += not fits
    if too_long:
        log.warning(
            "%d given completions are longer than rollout.max_new_tokens = %d and take no part",
            too_long, sampling.max_new_tokens,
        )  # fmt: skip
    counters = rollout.counters | {"given_too_long": float(too_long)}
    return Rollout(tokens, lengths, logprobs, truncation, stopped, failed, counters)
