"""Sections of the data card that not every run can fill: audit, difficulty, lengths and cost."""

from collections.abc import Mapping

from videorft_jax.curation.counts import Counts
from videorft_jax.curation.endpoints import NANO
from videorft_jax.curation.options import STAGES, CurationOptions


def say_audit(counts: Counts) -> list[str]:
    """What people said of a sample, or that nobody was asked."""
    lines = []
    for name, what in (("accepted", "wrong"), ("refused", "refused in error")):
        if own := counts.audit.get(name):
            share = own["wrong"] / own["num"]
            lines.append(
                f"Of {own['num']:,} {name} records that people read {own['wrong']:,} are {what}: "
                f"{share:.1%}, 95 % interval {own['low']:.1%} to {own['high']:.1%}."
            )
    if not counts.audit.get("accepted"):
        lines.append("Chains were not read by people: not audited.")
    if counts.unmet_labels:
        lines.append(f"{counts.unmet_labels:,} labels of the audit are of other records.")
    return lines


def say_difficulty(counts: Counts) -> list[str]:
    """How often the checkpoint that RL starts from was right, and what needs no clip."""
    own = counts.difficulty
    if not own:
        return ["Not measured."]
    if own.get("stale"):
        return ["Measured on other questions, and therefore left out."]
    rows = [
        ("rollouts a question", own["k"]), ("never right", own["never"]),
        ("sometimes right", own["sometimes"]), ("always right", own["always"]),
        ("without a score", own["no_score"]), ("stopped early", own["stopped_early"]),
        ("suspect label, left out of the RL set", own["suspects"]),
    ]  # fmt: skip
    for probe, by, what in (
        ("blind", "by_blind", "without the clip"),
        ("few_frames", "by_few_frames", "with few frames"),
    ):
        if own[probe]:
            rows.append((f"mostly right {what}, of {own[probe]:,} asked so", own[by]))
    lines = [f"Checkpoint: `{own['checkpoint']}`", "", "| difficulty | number |", "|---|---|"]
    return lines + [f"| {name} | {value:,} |" for name, value in rows]


def say_lengths(counts: Counts) -> list[str]:
    """Lengths of the accepted chains."""
    own = dict(counts.lengths)
    if not own:
        return ["No chain was accepted."]
    unit = own.pop("unit")
    return [
        f"| {unit} of a chain | {' | '.join(own)} |",
        f"|---|{'---|' * len(own)}",
        f"| accepted | {' | '.join(f'{value:,}' for value in own.values())} |",
    ]


def say_cost(usage: Mapping[str, Mapping[str, int]], options: CurationOptions) -> list[str]:
    """Tokens of all replies that were paid for, and what they cost at the configured prices."""
    lines = ["| stage | replies | tokens in | of these cached | tokens out | cost |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for stage in STAGES:
        if own := usage.get(stage):
            numbers = " | ".join(
                f"{own[key]:,}" for key in ("replies", "input", "cached", "output")
            )
            is_priced = options.endpoints[stage].price is not None
            cost = f"${own['nano'] / NANO:.4f}" if is_priced else "no price"
            lines.append(f"| {stage} | {numbers} | {cost} |")
    return [*lines, "", "Attempts that brought no reply are not among them."]
