"""What a run has come to, in numbers."""

import collections
import dataclasses


@dataclasses.dataclass
class Counts:
    """Numbers of the run by stage, for the card and the last line of the command.

    nulls: of open answers by group. audit: fields of `Audited` by how records ended. difficulty:
    those of `difficulty.count`, or that it is stale, empty where none was measured. lengths: of the
    accepted chains. usage: tokens and nano-dollars of the replies by stage. suspects: questions
    whose label is, left out of the RL set. unmet_labels: labels of an audit of other records.
    """

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
    suspects: int = 0
    unmet_labels: int = 0
    ended: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sources: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rl_sources: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    types: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    leaks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    models: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    columns: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    nulls: dict[str, dict] = dataclasses.field(default_factory=dict)
    audit: dict[str, dict] = dataclasses.field(default_factory=dict)
    difficulty: dict = dataclasses.field(default_factory=dict)
    lengths: dict[str, object] = dataclasses.field(default_factory=dict)
    usage: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
