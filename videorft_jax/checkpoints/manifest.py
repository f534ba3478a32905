"""The seal of a folder: `manifest.json` with the size and SHA-256 of every other file.

It carries a digest of itself, so it needs no atomic write: half a manifest is none.
"""

import concurrent.futures
import hashlib
import json

import numpy as np
from etils import epath

MANIFEST = "manifest.json"
VERSION = 1  # of what a checkpoint holds and how; this release reads none above it.
_CHUNK = 8 << 20  # Bytes hashed at once.
_THREADS = 4  # Files hashed at once; hashlib lets go of the interpreter lock.


def _walk(folder, prefix=""):
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from _walk(child, f"{prefix}{child.name}/")
        elif prefix or child.name != MANIFEST:
            yield f"{prefix}{child.name}"


def is_step(name: str) -> bool:
    """Whether a folder of this name is a checkpoint of ours. One of any other name, such as a copy
    named 120, is the user's, and is neither read nor removed."""
    return name.isdecimal() and name == f"{int(name):08d}"


def hash_files(folder: epath.Path, names: list[str]) -> dict[str, list]:
    """Maps each file's name to [bytes, SHA-256], the form of `body["files"]`."""

    def digest(name):
        size, state = 0, hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                state.update(chunk)
        return [size, state.hexdigest()]

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _seal(body):
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write(folder: epath.Path, body: dict) -> None:
    """Seals `folder`: `body` and the digests of all files in it go into the manifest."""
    body = body | {"files": hash_files(folder, list(_walk(folder)))}
    text = json.dumps({"sha256": _seal(body), "body": body})
    (folder / MANIFEST).write_text(text)


def read(folder: epath.Path) -> dict:
    """Reads the `body` that was written, with its `files`. Raises ValueError for a broken seal."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        body, digest = manifest["body"], manifest["sha256"]
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: no {MANIFEST}, the save was cut off; use another step"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{folder}: {MANIFEST} is damaged ({error}); use another step") from None
    if _seal(body) != digest:
        raise ValueError(f"{folder}: {MANIFEST} is damaged (digest); use another step")
    return body


def find_damage(folder: epath.Path) -> str:
    """Says what names and sizes show to be wrong; "" when all files are there. Raises ValueError
    for what a later release wrote: it is not damaged, and must not be passed over or removed."""
    if not folder.exists():
        return "no such folder"
    try:
        body = read(folder)
        files = body["files"]
    except ValueError as error:
        return str(error).removeprefix(f"{folder}: ").split(";")[0]
    if body.get("version", VERSION) > VERSION:
        raise ValueError(
            f"{folder}: is of version {body['version']}, which a later release of videorft_jax "
            "wrote; install that one, or give another folder"
        )
    for name, (size, _) in files.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} bytes, {size} were saved"
    return ""


def was_whole(folder: epath.Path) -> bool:
    """Whether a folder was sealed once, whatever became of its files since."""
    try:
        return bool(read(folder))
    except ValueError:
        return False


def describe(leaf) -> list:
    """Gives dtype and shape of an array, the form of `body["arrays"]`."""
    return [str(np.dtype(leaf.dtype)), list(leaf.shape)]


def compare_meta(found: dict, expected: dict, folder: epath.Path) -> None:
    """Raises ValueError, one line, naming the first field of `expected` that differs."""
    differences = list(_differences(found, expected, ""))
    if differences:
        field, there, here = differences[0]
        more = f" (and {len(differences) - 1} more fields)" if len(differences) > 1 else ""
        raise ValueError(
            f"{folder}: {field} is {there} in the checkpoint and {here} in this run{more}; "
            "use the same value or another workdir"
        )


def _differences(found, expected, field):
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in expected if not field else sorted(expected.keys() | found.keys()):
            name = f"{field}.{key}" if field else key
            yield from _differences(found.get(key, "absent"), expected.get(key, "absent"), name)
    elif found != expected:
        yield field, found, expected


def compare_arrays(found: dict, wanted: dict, folder: epath.Path, part: bool) -> None:
    """Compares `body["arrays"]` with path -> array. Raises ValueError, one line."""
    missing = [path for path in wanted if path not in found]
    extra = [] if part else [path for path in found if path not in wanted]
    if missing or extra:
        side = "not in the checkpoint" if missing else "in the checkpoint and not in this run"
        paths = missing or extra
        raise ValueError(
            f"{folder}: {len(paths)} arrays are {side}, the first is {paths[0]}; use the optimizer "
            "and options the checkpoint was made with"
        )
    for path, leaf in wanted.items():
        if found[path] != describe(leaf):
            there, here = (f"{dtype} {shape}" for dtype, shape in (found[path], describe(leaf)))
            raise ValueError(
                f"{folder}: {path} is {there} in the checkpoint and {here} in this run; use the "
                "model and dtypes the checkpoint was made with"
            )
