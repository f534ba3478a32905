"""Stage 5: the files of every stage, the two sets, and what the data card counts.

Everything here is computed from the records, the options and the store; a second call writes the
same bytes.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from videorft_jax.curation.agreement import Null
from videorft_jax.curation.contamination import DROPS
from videorft_jax.curation.licences import UNNAMED
from videorft_jax.curation.open_answers import hold_against_null
from videorft_jax.curation.pipeline import Outcome, Pipeline
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.running import Missing, replay
from videorft_jax.curation.tables import unify

SFT, RL = "VideoRFT-CoT.jsonl", "VideoRFT-RL.jsonl"
SETS = {"cot": SFT, "rl": RL}  # The card and Croissant call them so.
FILES = (
    "pool.jsonl", "describe.jsonl", "think.jsonl", "revise.jsonl", "verdicts.jsonl", "dead.jsonl",
    "quarantine.jsonl", "contamination.jsonl", SFT, RL,
)  # fmt: skip


@dataclasses.dataclass
class Counts:
    """Numbers of the run by stage, for the card and the last line of the command."""

    pool: int = 0
    quarantined: int = 0
    duplicates: int = 0
    contaminated: int = 0
    noted: int = 0
    clusters: int = 0
    held_out: int = 0
    described_clips: int = 0
    asked: int = 0
    pending: int = 0
    unparseable: int = 0
    cut: int = 0
    right: int = 0
    revised: int = 0
    unchanged: int = 0
    accepted: int = 0
    rl: int = 0
    ended: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sources: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rl_sources: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    types: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    leaks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    models: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    columns: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    nulls: dict[str, dict] = dataclasses.field(default_factory=dict)


def write_files(
    folder: pathlib.Path, pipeline: Pipeline, pool: Iterable[Entry | ValueError],
    nulls: Mapping[str, Null],
) -> Counts:  # fmt: skip
    """Writes every file of `FILES` into `folder` and returns the counts. nulls: of `read_nulls`.
    Records whose replies are not all there are counted as pending and appear in no file but the
    pool's."""
    counts, described, seen = Counts(), set(), set()
    counts.nulls = {name: dataclasses.asdict(null) for name, null in nulls.items()}
    with _Files(folder) as files:
        for entry in pool:
            counts.pool += 1
            if not isinstance(entry, Entry):
                counts.quarantined += 1
                files.add("quarantine.jsonl", {"reason": entry.reason, "detail": str(entry)})
                continue
            files.add("pool.jsonl", entry.to_row())
            counts.duplicates += bool(entry.dup_of)
            counts.contaminated += bool(entry.contaminated)
            counts.noted += bool(entry.hits) and not entry.contaminated
            mark = bytes.fromhex(entry.media[:32])
            counts.clusters += entry.media == entry.cluster and mark not in seen
            seen.add(mark)
            for hit in entry.hits:
                own = {"record": entry.name, "index": entry.index, "is_dropped": hit.how in DROPS}
                files.add("contamination.jsonl", own | hit._asdict())
            counts.held_out += entry.split == "val"
            if not entry.is_used:
                continue
            try:
                out = replay(pipeline.curate(entry), pipeline.store.find)
            except Missing:
                counts.pending += 1
                continue
            if out.ended == "media":
                counts.quarantined += 1
                files.add("quarantine.jsonl", {"reason": out.reason, "detail": entry.record.path})
                continue
            hold_against_null(out, entry, nulls)
            _write_outcome(files, counts, described, entry, out)
        for row in pipeline.store.dead_rows():
            files.add("dead.jsonl", row)
    counts.columns = files.columns
    return counts


def _write_outcome(files, counts: Counts, described: set, entry: Entry, out: Outcome) -> None:
    counts.asked += 1
    counts.ended[out.ended] += 1
    if out.describe:
        unit = int(out.describe["requests"][0][:16], 16)  # short, since there may be millions
        if unit not in described:
            described.add(unit)
            counts.described_clips += 1
            files.add("describe.jsonl", out.describe)
    for row in out.think:
        counts.unparseable += row["outcome"] == "unparseable"
        counts.cut += row["num_cut"]
        counts.models[f"think: {row['model_returned']}"] += 1
        files.add("think.jsonl", row)
    if out.revise:
        counts.right += 1
        counts.revised += 1
        counts.cut += out.revise["num_cut"]
        counts.unchanged += out.revise["kept_share"] > 0.995
        counts.models[f"revise: {out.revise['model_returned']}"] += 1
        counts.leaks.update(out.checks["leaks"]["value"].keys())
        files.add("revise.jsonl", out.revise)
    elif out.ended == "revise":
        counts.right += 1
    verdict = {"record": entry.name, "ended": out.ended, "reason": out.reason}
    files.add("verdicts.jsonl", verdict | {"checks": out.checks})
    row = entry.record.to_row()
    row |= {
        "extra_curation_record": entry.name, "extra_curation_media": entry.media,
        "extra_curation_cluster": entry.cluster,
    }  # fmt: skip
    counts.rl += 1
    counts.rl_sources[entry.record.data_source or UNNAMED] += 1
    files.add(RL, row | {"process": ""})
    if out.ended == "accepted":
        counts.accepted += 1
        counts.sources[entry.record.data_source or UNNAMED] += 1
        counts.types[entry.record.problem_type] += 1
        row |= {
            "extra_curation_attempt": out.revise["attempt"],
            "extra_curation_pass_rate": _pass_rate(out.think),
            "extra_curation_kept_share": out.revise["kept_share"],
        }
        files.add(SFT, row | {"process": f"<think>{out.revise['cot']}</think>"})


def _pass_rate(rows: list[dict]) -> float:
    """Share of the attempts that the strict rules score as right in full."""
    return round(sum(row["score"] == 1.0 for row in rows) / len(rows), 4)


class _Files:
    """JSONL files that take the place of the old ones only when all of them are whole."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        # The types of both sets' columns are known once the sets are whole.
        self.columns: dict[str, dict[str, str]] = {}
        self._stack = contextlib.ExitStack()
        self._open = {
            name: self._stack.enter_context(
                (folder / f"{name}.partial").open("w", encoding="utf-8", newline="\n")
            )
            for name in FILES
        }

    def add(self, name: str, row: dict) -> None:
        self._open[name].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, kind, *_) -> None:
        self._stack.close()
        for name in FILES:
            partial = self._folder / f"{name}.partial"
            if kind is None:
                if name in SETS.values():
                    self.columns[name] = unify(partial)
                os.replace(partial, self._folder / name)
            else:
                partial.unlink()
