"""The audit: what people say of a sample of chains on the page of samples, read back for the card.

The page saves its labels as audit.jsonl; laid into the work directory they are counted beside the
set. A record is audited if a person could tell; an accepted one is wrong with any other label than
right, and a refused one was refused in error where its chain is right.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from videorft_jax.evaluation.intervals import mean_interval

FILE = "audit.jsonl"
RIGHT, UNCLEAR = "right", "cannot tell"
LABELS = (RIGHT, "wrong answer", "wrong step", "leak", UNCLEAR)


@dataclasses.dataclass(frozen=True)
class Audited:
    """num: records that a person could tell about. wrong: how many of them are wrong, as a number
    and as a share between low and high in 95 of 100 such samples."""

    num: int
    wrong: int
    low: float
    high: float


def read_audit(folder: pathlib.Path) -> dict[str, str]:
    """Label by record of the folder's file, empty without one. Raises ValueError, one line, for a
    row that is no label, and where two rows disagree about a record."""
    path, found = folder / FILE, {}
    if not path.exists():
        return found
    remedy = "save the labels of sample.html anew, or take the file away"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            record, label = row["record"], row["label"]
            if not isinstance(record, str) or label not in LABELS:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path}:{number}: is no label of the page; {remedy}") from None
        if found.setdefault(record, label) != label:
            raise ValueError(
                f"{path}:{number}: calls a record {label!r} that an earlier row calls "
                f"{found[record]!r}; agree on one label"
            )
    return found


class Audit:
    """Holds labels against the records of a set as they are met."""

    def __init__(self, labels: Mapping[str, str]):
        self._labels = labels
        self._met: dict[bool, list[tuple[str, bool]]] = {True: [], False: []}
        self.num_met = 0

    def meet(self, record: str, clip: str, is_accepted: bool) -> None:
        """Takes in how a record ended; `clip` is what several records may show."""
        label = self._labels.get(record)
        if label is None:
            return
        self.num_met += 1
        if label != UNCLEAR:
            self._met[is_accepted].append((clip, (label == RIGHT) != is_accepted))

    def count(self) -> dict[str, dict[str, float]]:
        """Fields of `Audited` of the accepted and of the refused records, where there are any."""
        found = {}
        for name, is_accepted in (("accepted", True), ("refused", False)):
            if rows := self._met[is_accepted]:
                clips, wrong = zip(*rows, strict=True)
                _, low, high = mean_interval(wrong, clips)
                own = Audited(len(rows), sum(wrong), round(low, 4), round(high, 4))
                found[name] = dataclasses.asdict(own)
        return found

    @property
    def num_unmet(self) -> int:
        """Labels of records that are not in this set."""
        return len(self._labels) - self.num_met
