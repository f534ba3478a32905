"""Results that later requests may need again, the most recently used up to a number of bytes."""

import collections
import threading
from typing import Any


class Kept:
    """Keeps results by name, up to `limit` bytes of them; any thread may ask it."""

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self._entries: collections.OrderedDict[Any, tuple[int, Any]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, name) -> Any | None:
        """The result of this name, or None."""
        with self._lock:
            if name not in self._entries:
                return None
            self._entries.move_to_end(name)
            return self._entries[name][1]

    def put(self, name, result, size: int) -> list[Any]:
        """Keeps a result of `size` bytes, and returns those that had to go for it, which are the
        least recently used. A result that is larger than the limit is not kept."""
        dropped = []
        if size > self.limit:
            return dropped
        with self._lock:
            if name in self._entries:
                self.held -= self._entries.pop(name)[0]
            self._entries[name] = (size, result)
            self.held += size
            while self.held > self.limit:
                size, result = self._entries.popitem(last=False)[1]
                self.held -= size
                dropped.append(result)
        return dropped
