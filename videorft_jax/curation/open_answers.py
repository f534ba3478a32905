"""The check of open answers: each is held against the null of its group once all are known."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from videorft_jax.curation.agreement import Null, fit_nulls, measure_similarity, name_group
from videorft_jax.curation.pipeline import Outcome, Pipeline
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.running import Missing, replay


def read_nulls(pipeline: Pipeline, pool: Iterable[Entry | ValueError]) -> dict[str, Null]:
    """Null of each group of open questions, from the right answers in the store; empty where the
    options say not to hold answers against one."""

    def pairs() -> Iterator[tuple[str, str, str]]:
        for entry in pool:
            if isinstance(entry, Entry) and entry.is_used and _is_open(entry):
                with contextlib.suppress(Missing):
                    out = replay(pipeline.curate(entry), pipeline.store.find)
                    if out.revise:
                        yield _group(entry), _answer(out), entry.record.solution

    return fit_nulls(pairs()) if pipeline.options.similarity else {}


def hold_against_null(out: Outcome, entry: Entry, nulls: Mapping[str, Null]) -> None:
    """Adds the check of similarity to an open answer, and refuses one that was accepted but is no
    nearer to its reference than 99 of 100 answers are to others'."""
    null = nulls.get(_group(entry))
    if not (out.revise and _is_open(entry) and null):
        return
    value = round(measure_similarity(_answer(out), entry.record.solution), 4)
    is_ok = value > null.threshold or not null.is_informative
    limit = null.threshold if null.is_informative else None
    out.checks["similarity"] = {"ok": is_ok, "value": value, "limit": limit}
    if out.ended == "accepted" and not is_ok:
        out.ended = "similarity"


def _is_open(entry: Entry) -> bool:
    return entry.record.problem_type == "free-form"


def _group(entry: Entry) -> str:
    record = entry.record
    return name_group(record.data_source, record.problem_type, record.solution)


def _answer(out: Outcome) -> str:
    own = out.revise["attempt"] if out.revise else 0
    return next(row["answer"] for row in out.think if row["attempt"] == own)
