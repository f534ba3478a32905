"""A line about how far an evaluation is."""

import contextlib
import dataclasses
import math
import shutil
import sys
import time

import jax

from videorft_jax.metrics.compiling import CompileClock


@dataclasses.dataclass
class Progress:
    """Counts the rows of this process and says how far it is: live on a terminal, else every
    `interval` seconds. Only process 0 prints. What is left is foretold without the time of
    compiling, which `with` measures until its end.

    total: number of records that this process has to run.
    """

    total: int
    interval: float

    def __post_init__(self):
        self.start, self.printed = time.perf_counter(), -math.inf
        self.tokens, self.scores, self.records = 0, [], set()
        self.compiling, self.compiled_s = CompileClock(), 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.compiling.close()

    @property
    def counts(self) -> tuple[int, int]:
        """(tokens drawn, records done) by this process."""
        return self.tokens, len(self.records)

    @property
    def seconds(self) -> float:
        """Seconds since the start, reading and compiling included."""
        return time.perf_counter() - self.start

    def __call__(self, rows: list[dict]) -> None:
        """Takes in the rows of one batch and prints a line if it is time for one."""
        self.tokens += sum(row["completion_tokens"] or 0 for row in rows)
        self.scores += [row["score"] for row in rows if row["score"] is not None]
        self.records |= {row["index"] for row in rows}
        is_last, is_live = len(self.records) >= self.total, sys.stderr.isatty()
        is_due = self.seconds - self.printed >= self.interval
        if jax.process_index() or not (is_live or is_last or is_due):
            return
        self.printed = self.seconds
        text = self._line()
        if is_live:
            text = f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}"
        with contextlib.suppress(BrokenPipeError):  # An evaluation goes on where nobody reads.
            sys.stderr.write(text + ("\n" if is_last or not is_live else ""))
            sys.stderr.flush()

    def _line(self):
        seconds, done = self.seconds, len(self.records)
        self.compiled_s += self.compiling.take()
        parts = [f"{done}/{self.total} records"]
        if self.scores:
            parts.append(f"accuracy {sum(self.scores) / len(self.scores):.3f}")
        parts.append(f"{self.tokens / seconds:,.0f} tok/s")
        each = max(0.0, seconds - self.compiled_s) / max(done, 1)
        minutes, left = divmod(round(each * (self.total - done)), 60)
        return "  ".join([*parts, f"ETA {minutes // 60}:{minutes % 60:02d}:{left:02d}"])
