"""A work directory in a bucket: checkpoints are written there, files that grow are copied there.

Object stores cannot append. So metrics, completions, quarantined paths and measured sizes grow in a
local folder, and go to the bucket with every checkpoint. A run begins with what the bucket holds:
lines after its last checkpoint are of steps that are done again.
"""

import os
import pathlib
import re
import shutil

import jax
from etils import epath

# A file belongs to the process whose number it bears; all others belong to process 0.
_OWN = re.compile(r"-(\d+)\.(?:jsonl|npz)$")
_APART = ("checkpoints", "compiled", ".lock")  # These are written to the bucket directly.


def resolve(workdir: str) -> str:
    """Gives a path as other libraries take it: absolute, without `~` or a last slash, `gs://...` as
    it is, no `file://`."""
    path = workdir.removeprefix("file://")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


class Mirror:
    """The local folder `folder` of a work directory, and what keeps the two the same.

    A local work directory is its own folder. Every process calls every method. Raises ValueError
    when nothing here can read such a place.
    """

    def __init__(self, workdir: str):
        self._remote, self._sent = None, {}
        self.folder = pathlib.Path(resolve(workdir))
        if "://" in workdir:
            try:
                self._remote = epath.Path(resolve(workdir))
                self._remote.exists()
            except Exception as error:  # Storages let errors of their network layer through.
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ValueError(
                    f"--workdir={workdir}: cannot be read ({reason}); check it and its rights"
                ) from None
            cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            self.folder = pathlib.Path(cache, "videorft", "runs", workdir.replace("://", "/", 1))

    def pull(self) -> None:
        """Replaces local files by those of the bucket: this process's, and all measured sizes."""
        if self._remote is None or not self._remote.exists():
            return
        for name in _walk(self._remote):
            if _is_own(name) or name.startswith("sizes/"):
                _copy(self._remote / name, self.folder / name)

    def push(self) -> None:
        """Copies this process's files that changed since to the bucket."""
        if self._remote is None or not self.folder.exists():
            return
        for name in _walk(self.folder):
            stat = (self.folder / name).stat()
            if _is_own(name) and self._sent.get(name) != (stat.st_size, stat.st_mtime_ns):
                _copy(self.folder / name, self._remote / name)
                self._sent[name] = stat.st_size, stat.st_mtime_ns


def _is_own(name):
    number = _OWN.search(name)
    return jax.process_index() == (int(number[1]) if number else 0)


def _walk(folder, prefix=""):
    for child in sorted(folder.iterdir()):
        name = f"{prefix}{child.name}"
        if name in _APART:
            continue
        if child.is_dir():
            yield from _walk(child, f"{name}/")
        else:
            yield name


def _copy(source, target):
    """Copies a file through another name, so that no reader on this disk finds half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    with source.open("rb") as reader, partial.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 8 << 20)
    partial.replace(target)
