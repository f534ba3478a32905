"""The options of a loader."""

import dataclasses
import os

MODES = ("sft", "grpo", "evaluate")
MAX_THREADS = 16


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """mode: "sft" packs samples with their answers into rows, "grpo" lays one prompt in a row,
    "evaluate" does so once, unshuffled, and keeps bad records as invalid rows.

    rows: of a batch, all processes together. row_tokens: of a packed row, and the most a sample may
    have. max_buckets: number of compiled shapes. multiple: row lengths are multiples of this.
    max_bad_fraction: above it the run stops. threads: that decode, in each process; None: one per
    core, at most 16; 0: none. workers: processes that decode, 0 for threads alone. timeout_s:
    seconds without a batch after which the run fails. isolate: decode in killable processes.
    """

    mode: str
    rows: int
    row_tokens: int
    max_buckets: int
    multiple: int
    epochs: int
    seed: int
    max_bad_fraction: float
    threads: int | None
    workers: int
    timeout_s: float
    isolate: bool

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"loader: mode {self.mode!r}; choose one of {', '.join(MODES)}")
        if self.epochs < 1 or (self.mode == "evaluate" and self.epochs != 1):
            raise ValueError(f"loader: epochs {self.epochs}; give at least 1, 1 to evaluate")
        if self.workers < 0 or (self.threads or 0) < 0 or not self.timeout_s > 0:
            raise ValueError("loader: threads and workers are >= 0, timeout_s is > 0")

    @property
    def num_threads(self) -> int:
        if self.threads is not None:
            return self.threads
        return min(len(os.sched_getaffinity(0)), MAX_THREADS)
