"""Groups of completions as the gallery shows them: flags, and numbers to sort by."""

import dataclasses
import statistics
from typing import Any

FLAGS = ("truncated", "unparseable", "gated", "untrained")


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer of the model.

    rewards: name -> value, None where it failed. total: their weighted and gated sum, None where
    the completion has no reward. advantage: None in an evaluation. flags: among FLAGS; `truncated`
    ended by the limit on tokens, `unparseable` has no answer that can be read, `gated` lost a
    reward because its answer is wrong, `untrained` took no part in the update, for the reason in
    `why_untrained`. Besides, `given` was not drawn: the record brought it along.
    """

    text: str
    length: int
    rewards: dict[str, float | None]
    total: float | None
    advantage: float | None
    flags: frozenset[str]
    why_untrained: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """All completions of one question. step is None in an evaluation; clips are labels of what the
    question is about, as far as they are known; reason says why a record has no completions."""

    step: int | None
    problem_id: str
    problem_type: str
    problem: str
    solution: str
    clips: tuple[str, ...]
    completions: tuple[Completion, ...]
    reason: str = ""

    @property
    def key(self) -> str:
        """What a link to this group names."""
        return self.problem_id if self.step is None else f"{self.step}/{self.problem_id}"


def summarise(group: Group) -> dict[str, Any]:
    """What the gallery filters and sorts by; None where no completion has such a value.

    mean, spread: of the totals. disagreement: the mean distance of the semantic reward from
    accuracy, both taken to lie in [0, 1]. format_failures, and each of FLAGS: how many completions.
    """
    totals = [each.total for each in group.completions if each.total is not None]
    gaps = [
        abs(_clip(each.rewards["semantic"]) - _clip(each.rewards["accuracy"]))
        for each in group.completions
        if each.rewards.get("semantic") is not None and each.rewards.get("accuracy") is not None
    ]
    return {
        "key": group.key,
        "step": group.step,
        "type": group.problem_type,
        "problem": group.problem,
        "mean": _round(statistics.fmean(totals)) if totals else None,
        "spread": _round(statistics.pstdev(totals)) if totals else None,
        "disagreement": _round(statistics.fmean(gaps)) if gaps else None,
        "format_failures": sum(each.rewards.get("format") == 0 for each in group.completions),
    } | {flag: sum(flag in each.flags for each in group.completions) for flag in FLAGS}


def pack(group: Group) -> dict[str, Any]:
    """Everything of a group that a page shows, as values that JSON holds."""
    fields = dict(vars(group))  # dataclasses.asdict would copy every text
    fields["completions"] = [
        vars(each) | {"flags": sorted(each.flags)} for each in group.completions
    ]
    return fields


def _clip(value):
    return min(1.0, max(0.0, value))


def _round(value):
    return round(value, 6)
