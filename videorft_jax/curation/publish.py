"""Stage 5: the files of every stage, the two sets, and what the data card counts.

Everything here is computed from the records, the options and the store; a second call writes the
same bytes.
"""

import array
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from videorft_jax.curation import difficulty
from videorft_jax.curation.agreement import Null
from videorft_jax.curation.audit import Audit
from videorft_jax.curation.contamination import DROPS
from videorft_jax.curation.counts import Counts
from videorft_jax.curation.difficulty import PREFIX, QUESTIONS, Probe
from videorft_jax.curation.licences import UNNAMED
from videorft_jax.curation.near import NearTexts
from videorft_jax.curation.open_answers import hold_against_null
from videorft_jax.curation.pipeline import Outcome, Pipeline
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.running import Missing, replay
from videorft_jax.curation.stage_files import RL, SETS, SFT, StageFiles
from videorft_jax.curation.tables import unify

ALIKE = 0.7  # share of its shingles that a chain of the same template shares


@dataclasses.dataclass(frozen=True)
class Notes:
    """What people and other commands found out about records.

    nulls: of `read_nulls`. labels: of `read_audit`. probes: of `read_probes`. count_tokens: the
    length of a chain, in `unit`.
    """

    nulls: Mapping[str, Null]
    labels: Mapping[str, str]
    probes: Mapping[str, Probe]
    count_tokens: Callable[[str], int]
    unit: str


class Publisher:
    """Writes the files of one folder; `write` is called once."""

    def __init__(self, folder: pathlib.Path, pipeline: Pipeline, notes: Notes):
        self._folder, self._pipeline, self._notes = folder, pipeline, notes
        self.counts = Counts()
        self._audit = Audit(notes.labels)
        self._lengths = array.array("I")
        self._described: set[int] = set()
        self._seen: set[bytes] = set()

    def write(self, pool: Iterable[Entry | ValueError]) -> Counts:
        """Writes every file and returns the counts. Records whose replies are not all there are
        counted as pending and appear in no file but the pool's."""
        counts, notes, store = self.counts, self._notes, self._pipeline.store
        counts.nulls = {name: dataclasses.asdict(null) for name, null in notes.nulls.items()}
        with StageFiles(self._folder) as files, NearTexts(ALIKE) as near:
            for entry in pool:
                counts.pool += 1
                if not isinstance(entry, Entry):
                    counts.quarantined += 1
                    files.add("quarantine.jsonl", {"reason": entry.reason, "detail": str(entry)})
                    continue
                self._write_entry(files, entry)
                if not entry.is_used:
                    continue
                try:
                    out = replay(self._pipeline.curate(entry), store.find)
                except Missing:
                    counts.pending += 1
                    continue
                if out.ended == "media":
                    counts.quarantined += 1
                    row = {"reason": out.reason, "detail": entry.record.path}
                    files.add("quarantine.jsonl", row)
                    continue
                hold_against_null(out, entry, notes.nulls)
                self._hold_against_alike(out, entry, near)
                self._write_outcome(files, entry, out)
            for row in store.dead_rows():
                files.add("dead.jsonl", row)
            files.flush()
            self._finish_sets(files)
        self._finish_counts()
        return counts

    def _write_entry(self, files: StageFiles, entry: Entry) -> None:
        counts = self.counts
        files.add("pool.jsonl", entry.to_row())
        counts.duplicates += bool(entry.dup_of)
        counts.contaminated += bool(entry.contaminated)
        counts.noted += bool(entry.hits) and not entry.contaminated
        mark = bytes.fromhex(entry.media[:32])
        counts.clusters += entry.media == entry.cluster and mark not in self._seen
        self._seen.add(mark)
        for hit in entry.hits:
            own = {"record": entry.name, "index": entry.index, "is_dropped": hit.how in DROPS}
            files.add("contamination.jsonl", own | hit._asdict())
        counts.held_out += entry.split == "val"

    def _hold_against_alike(self, out: Outcome, entry: Entry, near: NearTexts) -> None:
        """Refuses a chain that is nearly one of many that were accepted before: a template."""
        if out.ended != "accepted":
            return
        limit = self._pipeline.options.most_alike
        number = len(near.find(out.revise["cot"]))
        out.checks["alike"] = {"ok": number < limit, "value": number, "limit": limit}
        if number < limit:
            near.add(entry.index, out.revise["cot"])
        else:
            out.ended = "alike"

    def _write_outcome(self, files: StageFiles, entry: Entry, out: Outcome) -> None:
        counts, record = self.counts, entry.record
        counts.asked += 1
        counts.ended[out.ended] += 1
        self._audit.meet(entry.name, entry.cluster, out.ended == "accepted")
        self._write_stages(files, entry, out)
        source = record.data_source or UNNAMED
        # A pool may be an earlier set, whose columns tell of other requests than these.
        own = {key: value for key, value in record.to_row().items() if not key.startswith(PREFIX)}
        row = own | {
            f"{PREFIX}record": entry.name, f"{PREFIX}media": entry.media,
            f"{PREFIX}cluster": entry.cluster,
            f"{PREFIX}teacher_pass_rate": self._rate_teacher(entry, out.think),
        }  # fmt: skip
        counts.rl += 1
        counts.rl_sources[source] += 1
        for name in (QUESTIONS, RL):
            files.add(name, row | {"process": ""})
        if out.ended == "accepted":
            counts.accepted += 1
            counts.sources[source] += 1
            counts.types[record.problem_type] += 1
            self._lengths.append(self._notes.count_tokens(out.revise["cot"]))
            row |= {
                "process": f"<think>{out.revise['cot']}</think>",
                f"{PREFIX}attempt": out.revise["attempt"],
                f"{PREFIX}kept_share": out.revise["kept_share"],
            }
            files.add(SFT, row)

    def _write_stages(self, files: StageFiles, entry: Entry, out: Outcome) -> None:
        counts = self.counts
        if out.describe:
            unit = int(out.describe["requests"][0][:16], 16)  # short, since there may be millions
            if unit not in self._described:
                self._described.add(unit)
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

    def _rate_teacher(self, entry: Entry, rows: list[dict]) -> float | None:
        """Share of the attempts that the strict rules let through; None before any."""
        gate = self._pipeline.options.gates.get(entry.record.problem_type, 0.0)
        right = sum(row["score"] is not None and row["score"] > gate for row in rows)
        return round(right / len(rows), 4) if rows else None

    def _finish_sets(self, files: StageFiles) -> None:
        """Joins the difficulty, and gives all rows of a set the same columns."""
        counts, probes = self.counts, self._notes.probes
        rates = self._folder / f"{RL}.pass_rates"
        fits = bool(probes) and difficulty.fits(probes, files.path(QUESTIONS))
        if probes and not fits:
            counts.difficulty = {"stale": True}
        if fits:
            gates = self._pipeline.options.gates
            rows = difficulty.measure(files.path(QUESTIONS), probes, gates)
            for row in difficulty.count(rows, counts.difficulty):
                files.add(difficulty.FILE, row)
            files.flush()
            counts.suspects = counts.difficulty["suspects"]
            counts.rl -= counts.suspects
        for name in SETS.values():
            read = functools.partial(files.rows, name)
            if fits:
                read = functools.partial(
                    difficulty.attach, read, files.path(difficulty.FILE),
                    drops_suspects=name == RL,
                )  # fmt: skip
            counts.columns[name] = unify(files.path(name), read)
        rates.unlink(missing_ok=True)
        if fits:
            difficulty.carry_pass_rates(
                rates, files.path(RL), files.path(QUESTIONS), probes["rollouts"]
            )

    def _finish_counts(self) -> None:
        counts, ends = self.counts, self._pipeline.options.endpoints
        counts.audit, counts.unmet_labels = self._audit.count(), self._audit.num_unmet
        if self._lengths:
            own = np.asarray(self._lengths)
            parts = np.percentile(own, [5, 50, 95], method="nearest").tolist()
            counts.lengths = {"unit": self._notes.unit, "mean": round(float(own.mean()), 1)}
            counts.lengths |= dict(zip(("p5", "p50", "p95"), parts, strict=True))
            counts.lengths["max"] = int(own.max())
        for stage, reply in self._pipeline.store.replies():
            own = counts.usage.setdefault(
                stage, dict.fromkeys(("replies", "input", "cached", "output", "nano"), 0)
            )
            tokens = (reply.input_tokens, reply.output_tokens, reply.cached_tokens)
            price = ends[stage].price
            added = (1, tokens[0], tokens[2], tokens[1], price.cost(*tokens) if price else 0)
            for name, number in zip(own, added, strict=True):
                own[name] += number
