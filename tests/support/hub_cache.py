"""A local cache of the Hugging Face hub, and a bucket, neither of which needs a network."""

import pathlib
import shutil

import fsspec
import huggingface_hub
from fsspec.implementations.memory import MemoryFileSystem

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class MemoryBucket(MemoryFileSystem):
    """What gcsfs is to gs://, in the memory of this process; `opened` counts reads by name."""

    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs = [""]
    opened: list[str] = []

    def __init__(self, finalize_on_close=True, **options):
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://").removeprefix("gcs://"))

    def open(self, path, mode="rb", **options):
        if "r" in mode:
            self.opened.append(path.rsplit("/", 1)[-1])
        return super().open(path, mode=mode, **options)


def make_bucket(monkeypatch) -> MemoryBucket:
    """An empty bucket behind gs:// for as long as `monkeypatch` lasts."""
    monkeypatch.setattr(MemoryBucket, "store", {})
    monkeypatch.setattr(MemoryBucket, "pseudo_dirs", [""])
    monkeypatch.setattr(MemoryBucket, "opened", [])
    for name in MemoryBucket.protocol:
        fsspec.register_implementation(name, MemoryBucket, clobber=True)
    MemoryBucket.clear_instance_cache()
    return MemoryBucket()


def put(cache: pathlib.Path, name: str, folder, monkeypatch) -> pathlib.Path:
    """Makes the cache hold the files of `folder` as the snapshot that `main` of a repository is,
    and gives the snapshot's folder. The library forgets its own cache for as long."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return snapshot
