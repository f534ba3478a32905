"""Where a model's folder lies: on this disk, in the cache of the Hugging Face hub, in a bucket.

Everything that reads a model takes a folder, so a name of the hub and a URL such as gs://... are
turned into one here. A hub's name is looked up in the local cache; nothing is fetched from the hub
unless the caller allows a download.
"""

import json
import logging
import os
import pathlib
import re
import shutil

from etils import epath

from videorft_jax.models import tensor_files

# The files of a model that anything here reads; pickles and code are never among them.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "README.md", "LICENSE*")
_HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+")  # of the hub's cache
_COPIED = "copied.json"  # size and time of what a copy was made of
_CHUNK = 8 << 20  # bytes

log = logging.getLogger(__name__)


def is_hub_name(name: str) -> bool:
    """Whether a name may be one of the hub, ORG/NAME or ORG/NAME@REVISION; a folder that is there
    goes first."""
    return bool(_HUB_NAME.fullmatch(name)) and not os.path.isdir(name)


def split_public(name: str | os.PathLike) -> tuple[str, str | None]:
    """(ORG/NAME, revision or None) by which people on other machines know a model: it is named as
    on the hub, or by the path of its snapshot in the hub's cache. ("", None) for any other."""
    name = os.fspath(name)
    if is_hub_name(name):
        repository, revision = _HUB_NAME.fullmatch(name).groups()
        return repository, revision
    found = _SNAPSHOT.search(os.path.abspath(name))
    return ("/".join(found.groups()), None) if found else ("", None)


def find_cached(name: str) -> str | None:
    """The folder in the hub's local cache that holds all files of a hub name, None where there is
    no such folder or where it lacks something. Nothing is fetched."""
    folder = _cached_folder(name)
    return folder if folder and not find_missing(folder) else None


def find_folder(name: str | os.PathLike, *, download: bool = False) -> str:
    """The local folder of a model that is named by a path, by a name of the hub or by a URL.

    A hub's name is found in the local cache, and with `download` also fetched into it. A folder
    behind a URL such as gs://bucket/model is copied once to ~/.cache/videorft/models, or to that
    folder below XDG_CACHE_HOME. A path is returned as it is, whether or not it is there.

    Raises ValueError, one line, for a hub's name that is not cached whole, with the command that
    fetches it, and for a URL that cannot be read.
    """
    name = os.fspath(name)
    if "://" in name and not name.startswith("file://"):
        return _copy_folder(name)
    if not is_hub_name(name):
        return name.removeprefix("file://")
    if found := find_cached(name):
        log.info("%s: is read from %s", name, found)
        return found
    repository, revision = _HUB_NAME.fullmatch(name).groups()
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    if not download:
        partial = _cached_folder(name)
        state = "no such folder, and not in the cache of the Hugging Face hub"
        if partial:
            state = f"its copy in the cache of the Hugging Face hub lacks {find_missing(partial)}"
        raise ValueError(f"{name}: {state}; if it is a name there, fetch it by: {command}")
    return _download(name, repository, revision, command)


def find_missing(folder: str | os.PathLike) -> str:
    """Names the first files that a model's folder lacks to be read; "" where all are there."""
    place = pathlib.Path(folder)
    wanted = [name for name in ("config.json", "tokenizer.json") if not (place / name).is_file()]
    index = place / tensor_files.INDEX_NAME
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            shards = []  # The reader of weights says what is wrong with the index.
        wanted += [shard for shard in shards if not (place / shard).is_file()]
    elif not (place / tensor_files.SINGLE_NAME).is_file():
        wanted.append(tensor_files.SINGLE_NAME)
    if len(wanted) > 3:
        wanted = [*wanted[:3], f"{len(wanted) - 3} more files"]
    return ", ".join(wanted)


def _cached_folder(name):
    import huggingface_hub  # It loads slowly, and most models are folders.
    from huggingface_hub import errors

    repository, revision = _HUB_NAME.fullmatch(name).groups()
    # A snapshot holds config.json as any model does; the library knows where it lies, but not what
    # else belongs to it.
    try:
        found = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    except (ValueError, errors.HFValidationError):
        return None
    return os.path.dirname(found) if isinstance(found, str) else None


def _download(name, repository, revision, command):
    """Fetches what is missing; the library shows progress and goes on where it was stopped."""
    import huggingface_hub

    log.info("%s: fetched from the Hugging Face hub", name)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(PATTERNS)
        )
    except Exception as error:  # The library raises those of its network layer as well.
        reason = _shorten(error)
        raise ValueError(f"{name}: cannot be fetched ({reason}); try by hand: {command}") from None
    if missing := find_missing(folder):
        raise ValueError(f"{name}: holds no {missing}; give a model with safetensors files")
    return folder


def unreadable(url: str, error: Exception) -> ValueError:
    """The error that says in one line why a place cannot be read, whatever its library raised:
    those of storages let the errors of their network layer through."""
    reason = _shorten(error)
    hub = url.removeprefix("hf://")
    remedy = "check it and its rights"
    if hub != url:
        remedy = f"name a model of the hub as {hub}, and allow its download"
    return ValueError(f"{url}: cannot be read ({reason}); {remedy}")


def _shorten(error):
    """What an error says in one line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _copy_folder(url):
    """The local copy of a folder behind a URL."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(cache, "videorft", "models", url.rstrip("/").replace("://", "/", 1))
    sizes = _list_files(url)
    try:
        _copy_files(url, sizes, folder)
    except ValueError:
        raise
    except Exception as error:  # Disk and network fail as they like.
        reason = _shorten(error)
        raise ValueError(
            f"{url}: cannot be copied to {folder} ({reason}); mend that, then the same goes on from"
            " the files that are there"
        ) from None
    return str(folder)


def _copy_files(url, sizes, folder):
    """Copies the files with these sizes and times. Those that are equal in both to what they were
    copied from stay, so that a copy that was stopped goes on."""
    kept = folder / _COPIED
    before = _read_stamps(kept) if kept.is_file() else {}
    left = {
        name: stamp
        for name, stamp in sizes.items()
        if before.get(name) != stamp or not (folder / name).is_file()
    }
    folder.mkdir(parents=True, exist_ok=True)
    need, free = sum(size for size, _ in left.values()), shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{url}: {need / 2**30:.2f} GiB to copy and {free / 2**30:.2f} GiB free in {folder}; "
            "set XDG_CACHE_HOME to a larger disk"
        )
    for stale in before.keys() - sizes.keys():
        (folder / stale).unlink(missing_ok=True)
    done = {name: stamp for name, stamp in sizes.items() if name not in left}
    for name, stamp in left.items():
        log.info("%s: %.2f GB copied to %s", f"{url}/{name}", stamp[0] / 1e9, folder)
        partial = folder / f"{name}.{os.getpid()}.part"
        with (epath.Path(url) / name).open("rb") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        if partial.stat().st_size != stamp[0]:
            partial.unlink()
            raise ValueError(f"{url}/{name}: ended while it was copied; run the same again")
        partial.replace(folder / name)
        done[name] = stamp
        kept.write_text(json.dumps(done))


def _read_stamps(path):
    """What was copied before; nothing, where the list was cut by a kill, so that all is copied."""
    try:
        stamps = json.loads(path.read_text())
    except ValueError:
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _list_files(url):
    """name -> [bytes, time] of the files of a model behind a URL. Raises ValueError."""
    found = {}
    try:
        place = epath.Path(url)
        for child in place.iterdir() if place.is_dir() else ():
            if any(pathlib.PurePath(child.name).match(pattern) for pattern in PATTERNS):
                stat = child.stat()
                found[child.name] = [stat.length, stat.mtime]
    except Exception as error:
        raise unreadable(url, error) from None
    if "config.json" not in found:
        raise ValueError(f"{url}: holds no config.json; give the folder of a model")
    return found
