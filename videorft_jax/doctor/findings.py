"""What a check found: a line for people, and the command that mends it."""

from __future__ import annotations  # Pythons that are too old read this far.

import dataclasses
from collections.abc import Iterable

OK, WARNING, FAILURE = "ok", "warn", "FAIL"


@dataclasses.dataclass(frozen=True)
class Finding:
    """level: OK, WARNING for what could work better, FAILURE for what will not work at all. text:
    what was looked at and found. remedy: what to do; "" where nothing is to be done."""

    level: str
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """A finding that needs nothing."""
    return Finding(OK, text)


def format_findings(findings: Iterable[Finding]) -> str:
    """A line for each finding, the remedy in a line of its own below it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.text}")
        if finding.remedy:
            lines.append(f"      -> {finding.remedy}")
    return "\n".join(lines)
