"""The line by which a command that reads a file of records says how far it is."""

import shutil
import sys
import time
from typing import Any

_WIDEST = 30  # characters of the bar, where the terminal has room for it


class Bar:
    """A line that is redrawn on a terminal; elsewhere one line every ten seconds, and the last."""

    def __init__(self, total: int, stream: Any = None, unit: str = "records"):
        self.total, self.stream, self.unit = total, stream or sys.stderr, unit
        self.start = self.last = time.monotonic()
        self.live = self.stream.isatty()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done != self.total and now - self.last < (0.1 if self.live else 10.0):
            return
        self.last = now
        line = self._line(done, (now - self.start) / max(done, 1) * (self.total - done))
        if self.live:  # back to the first column, erase, and never wrap
            line = f"\r\x1b[K{line}"
        self.stream.write(line + ("\n" if done == self.total or not self.live else ""))
        self.stream.flush()

    def _line(self, done, left):
        text = f"{done}/{self.total} {self.unit}, {left:.0f} s left"
        room = shutil.get_terminal_size().columns - 1 if self.live else 2 * len(text) + _WIDEST
        width = min(_WIDEST, room - len(text) - 3)
        if width < 1:
            return text[:room]
        return f"[{'#' * (width * done // max(self.total, 1)):<{width}}] {text}"
