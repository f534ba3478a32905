"""Bad records: written down, counted, and a reason to stop when there are too many.

A run remembers bad records by the file that it writes. A record is written once, with its reason,
however many epochs meet it, and a resumed run reads the file back and goes on counting. Beside each
stands how many records had been loaded by then, since the run may go on from long before. Records
that measuring found to be bad are left out of that, because every start measures anew and the files
may have been repaired.
"""

import collections
import json
import logging
import os
import re
from typing import NamedTuple

from videorft_jax.data.media.contract import REASONS
from videorft_jax.data.naming import naming

log = logging.getLogger(__name__)
LEAST_SEEN = 100  # A share of fewer samples than this says nothing about the data.
REMEDIES = {
    "too_many_tokens": "raise data.row_tokens, or ask for fewer or smaller frames",
    "changed": "run `videorft validate`, which decodes; the file is not what its packets said",
}
MOST_LOGGED = 10  # The log names so many bad records; the file has all.


class Failure(NamedTuple):
    """A record that cannot be used. reason: a key of `media.REASONS`, or one of `schema` (the row
    is wrong), `prompt` (it cannot be rendered), `too_many_tokens` (longer than a row), `changed`
    (not the shape that was measured)."""

    index: int  # It counts the records of the source.
    path: str  # It names the media, or the row.
    reason: str
    detail: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        known = REASONS.get(self.reason) or REMEDIES.get(self.reason)
        return known or self.detail.rpartition("; ")[2]


def one_line(text: str) -> str:
    """The text with control characters, such as a newline in a file's name, written out."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


class TooManyBad(RuntimeError):
    """The share of bad records is above the limit. str() is one line; `counts` has the records of
    each reason, `total` all records of the data set."""

    def __init__(self, text: str, counts: dict[str, int], total: int):
        super().__init__(text)
        self.counts, self.total = counts, total


def reason_table(counts: dict[str, int], total: int) -> str:
    """One line per reason, the most frequent first."""
    lines = [f"{'reason':<16}{'records':>9}{'share':>9}"]
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"{reason:<16}{count:>9}{count / max(total, 1):>9.2%}")
    return "\n".join(lines)


class Quarantine:
    """Counts failures and writes each record's first one to `path` (JSONL), None to count only.

    A failure belongs to one of two stages: `measure` looks at all records before the run, `load`
    meets those whose damage shows only in decoding.

    max_fraction: the share of the records looked at that may be bad, both stages together.
    total: number of records of the data set. Raises ValueError for a fraction outside [0, 1] or a
    file that is no quarantine file.
    """

    STAGES = ("measure", "load")

    def __init__(self, path: str | os.PathLike | None, max_fraction: float, total: int):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"quarantine: max_bad_fraction {max_fraction}; give 0 to 1")
        self.path, self.max_fraction, self.total = path, max_fraction, total
        self.counts: collections.Counter[str] = collections.Counter()
        self._stage = dict.fromkeys(self.STAGES, 0)
        self._known: set[int] = set()
        self._loaded_before = 0  # This far had the run come before it was resumed.
        self._file = None
        if path is None:
            return
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._file.seek(0)
        lines = self._file.read().split("\n")
        kept = []
        for number, line in enumerate(lines[:-1]):  # what follows the last newline was cut off
            try:
                row = json.loads(line)
                if row["stage"] != "measure":
                    self._count(int(row["index"]), row["reason"], row["stage"])
                    before = int(row.get("loaded", 0))
                    self._loaded_before = max(self._loaded_before, before)
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                self._file.close()
                raise ValueError(
                    f"{path}: line {number + 1} is no quarantined record; move the file away"
                ) from None
        self._file.truncate(0)
        with naming(path):
            self._file.write("".join(kept))
            self._file.flush()

    def _count(self, index: int, reason: str, stage: str) -> bool:
        new = index not in self._known
        if new:
            self._stage[stage] += 1
            self._known.add(index)
            self.counts[reason] += 1
        return new

    def __len__(self) -> int:
        return len(self._known)

    def add(self, failure: Failure, stage: str, loaded: int = 0) -> None:
        """Counts one failure of `stage`, and writes it down, unless the record is known. loaded:
        how many records are decoded with the batch that it belongs to."""
        if not self._count(failure.index, failure.reason, stage):
            return
        if len(self) <= MOST_LOGGED:
            what = f"{failure.path}: {failure.reason}: {failure.detail}"
            what += "" if failure.detail.endswith(failure.remedy) else f"; {failure.remedy}"
            log.warning("%s", one_line(what))
        elif len(self) == MOST_LOGGED + 1:
            log.warning("further bad records are named in %s alone", self.path or "no file")
        if self._file is not None:
            line = failure._asdict() | {"remedy": failure.remedy, "stage": stage}
            if stage == "load":
                line["loaded"] = loaded
            with naming(self.path):
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()

    def check(self, loaded: int) -> None:
        """Raises TooManyBad when the share of bad records is too large: of all that were measured,
        plus of `loaded` records (at least 100, or all there are) that were decoded. Of a resumed
        run, which counts what it found before, they are those that it had decoded before."""
        seen = min(max(loaded, self._loaded_before), self.total)
        base = max(seen, min(LEAST_SEEN, self.total), 1)
        share = self._stage["measure"] / max(self.total, 1) + self._stage["load"] / base
        if share > self.max_fraction:
            bad, in_load = len(self), self._stage["load"]
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
            raise TooManyBad(
                f"{bad} of {self.total} records are bad, {in_load} of them found while loading the"
                f" first {base}: more than max_bad_fraction {self.max_fraction:g} ({reasons});"
                f" repair them (see {self.path or 'the log'}) or raise it",
                dict(self.counts),
                self.total,
            )

    def close(self) -> None:
        if self._file is not None:
            with naming(self.path):
                self._file.close()
            self._file = None
