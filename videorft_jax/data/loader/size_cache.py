"""Measured sizes on disk, so that a second start looks only at records that are new.

The folder holds JSONL files, one per process, keyed by a media file's path, size and modification
time. `videorft validate` writes the same folder as the loader.
"""

import json
import os
import threading

from videorft_jax.data.naming import naming


class SizeCache:
    """A dictionary str -> list that outlives the process: every file of `folder` is read, this
    process appends to its own. folder None: memory only. Thread-safe."""

    def __init__(
        self,
        folder: str | os.PathLike | None,
        process_index: int = 0,
        shared: str | os.PathLike | None = None,
    ):
        self._known: dict[str, list] = {}
        self._lock, self._file = threading.Lock(), None
        if shared is not None and os.path.isdir(shared):
            self._read(shared)
        if folder is None:
            return
        os.makedirs(folder, exist_ok=True)
        self._read(folder)
        name = os.path.join(folder, f"sizes-{process_index}.jsonl")
        # Line by line, so that a run that is killed has lost nothing.
        self._file = open(name, "a", buffering=1, encoding="utf-8")  # noqa: SIM115, see close()
        if self._file.tell():
            with naming(name):
                self._file.write("\n")  # The last line may have been cut off.

    def _read(self, folder: str | os.PathLike) -> None:
        for name in sorted(os.listdir(folder)):
            if name.startswith("sizes-") and name.endswith(".jsonl"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    for line in file:
                        try:
                            key, value = json.loads(line)
                        except ValueError:
                            continue  # cut off when the run was; it is looked up again
                        known = self._known.get(key, [None])
                        if not (known[0] is True and value[0] is False):  # decoding knows more
                            self._known[key] = value

    def get(self, key: str) -> list | None:
        return self._known.get(key)

    def put(self, key: str, value: list) -> None:
        with self._lock:
            self._known[key] = value
            if self._file is not None:
                with naming(self._file.name):
                    self._file.write(json.dumps([key, value]) + "\n")

    def close(self) -> None:
        if self._file is not None:
            with naming(self._file.name):
                self._file.close()
            self._file = None
