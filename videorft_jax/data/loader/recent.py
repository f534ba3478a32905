"""Clips that were decoded a moment ago, for records in a row that show the same one."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from typing import Any


class RecentClips:
    """Keeps what was read last, so that several records of one clip decode it once. Thread-safe: a
    thread that asks for a clip which another is reading waits for it. A copy that is pickled for a
    worker process starts empty.

    count: how many clips are kept.
    """

    def __init__(self, count: int):
        self.count = count
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def __reduce__(self):
        return RecentClips, (self.count,)

    def get(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """The value of `read`, called only where `key` is not known. What it raises is raised by
        every call that waits for it, and is not kept."""
        with self._lock:
            found = self._known.get(key)
            is_mine = found is None
            if is_mine:
                found = self._known[key] = concurrent.futures.Future()
                while len(self._known) > self.count:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(key)
        if is_mine:
            try:
                found.set_result(read())
            except BaseException as error:
                found.set_exception(error)
                with self._lock:
                    if self._known.get(key) is found:
                        del self._known[key]
        return found.result()
