"""Safetensors files by offset: headers checked whole, tensors read and written piece by piece.

The format is read here and not through the `safetensors` package, because that maps the file into
memory and every page it touches counts as resident. Here a caller reads byte ranges into its own
buffers, and a damaged file is refused from its header alone, before anything is allocated.
Format: 8 bytes little-endian header length, JSON header, data
(https://github.com/huggingface/safetensors#format).
"""

import json
import logging
import math
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np

log = logging.getLogger(__name__)

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ADAPTER_NAME = "adapter_config.json"

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class Entry(NamedTuple):
    """Where one tensor lies: `offset` bytes into `path`, row-major, little-endian."""

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path) -> dict[str, Entry]:
    """Reads and checks the header of one file: name -> Entry.

    Raises ValueError, one line, for a file that is truncated, corrupt (length, JSON, offsets that
    overlap, leave holes or disagree with the shape) or holds a dtype we do not load.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size

    def bad(what, remedy="download the file again"):
        return ValueError(f"{path}: {what}; {remedy}")

    with path.open("rb") as file:
        if size < 8:
            raise bad(f"truncated, {size} bytes are no safetensors file")
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER:
            raise bad(f"corrupt header, its length reads {length} bytes")
        if 8 + length > size:
            raise bad(f"truncated, the header needs {8 + length} bytes and the file has {size}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise bad(f"corrupt header ({error})") from None
    if not isinstance(header, dict):
        raise bad("corrupt header, not a JSON object")
    header.pop("__metadata__", None)

    entries, spans = {}, []
    for name, value in header.items():
        try:
            dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise bad(f"corrupt header at tensor {name!r}") from None
        if not isinstance(shape, list) or not all(_is_count(n) for n in (*shape, begin, end)):
            raise bad(f"corrupt header at tensor {name!r}")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise bad(
                f"tensor {name!r} has dtype {dtype!r}, known are {', '.join(DTYPES)}",
                "give weights that are not quantised, or convert these to bfloat16",
            )
        entry = Entry(path, DTYPES[dtype], tuple(shape), 8 + length + begin)
        if end - begin != entry.nbytes:
            raise bad(
                f"corrupt header, tensor {name!r} of {entry.nbytes} bytes has offsets {begin}:{end}"
            )
        entries[name] = entry
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a hole before"
            raise bad(f"corrupt header, tensor {name!r} {what} (offset {begin}, not {position})")
        position = end
    if 8 + length + position != size:
        what = "truncated" if 8 + length + position > size else "corrupt, bytes are left over"
        raise bad(f"{what}, the header promises {8 + length + position} bytes, it has {size}")
    return entries


def read_folder(folder) -> dict[str, Entry]:
    """Reads the headers of a folder's `model.safetensors`, or of all shards its index names.

    Returns name -> Entry, also of tensors that lie in a shard and are not in the index. Raises
    ValueError when there are no safetensors (pickle files are never read), when a shard is missing,
    and when index and shards disagree.
    """
    folder = pathlib.Path(folder)
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file() and single.is_file():
        raise ValueError(f"{folder}: has both {SINGLE_NAME} and {INDEX_NAME}; delete the stale one")
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise ValueError(_explain_absence(folder))
    try:
        values = json.loads(index.read_text())
        weight_map, total = values["weight_map"], (values.get("metadata") or {}).get("total_size")
        shards = sorted(set(weight_map.values()))
        if any(pathlib.PurePath(shard).name != shard for shard in shards):
            raise ValueError("a shard is not a plain file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: corrupt index ({error}); download the file again") from None
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(
            f"{index}: names {len(missing)} of {len(shards)} shards that are not there "
            f"({', '.join(missing[:3])}); download them"
        )
    entries, strays = {}, []
    for shard in shards:
        for name, entry in read_header(folder / shard).items():
            if name in entries or weight_map.get(name, shard) != shard:
                strays.append(f"{name} in {shard}")
            else:
                entries[name] = entry
    strays += [f"{name} not in {weight_map[name]}" for name in weight_map if name not in entries]
    if strays:
        raise ValueError(
            f"{index}: disagrees with the shards about {len(strays)} tensors "
            f"({', '.join(strays[:3])}); download the folder again"
        )
    if extra := entries.keys() - weight_map.keys():
        log.info("%s: %d tensors of the shards are not in it; they are read", index, len(extra))
    size = sum(entry.nbytes for name, entry in entries.items() if name in weight_map)
    if total and total != size:
        raise ValueError(
            f"{index}: promises {total} bytes of tensors and the shards hold {size}; download the "
            "folder again, or delete total_size from the file where the shards are right"
        )
    return entries


def _explain_absence(folder: pathlib.Path) -> str:
    """What a folder is that holds no weights, and what to do about it."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: only pickle files ({pickles[0]}), which are never read; convert the "
            "checkpoint to safetensors"
        )
    if (folder / ADAPTER_NAME).is_file():
        return (
            f"{folder}: holds an adapter of PEFT and no weights; give its base as the model, and "
            "the folder as the adapter (model.adapter, --adapter)"
        )
    if shards := sorted(path.name for path in folder.glob("*-of-*.safetensors")):
        return (
            f"{folder}: holds {len(shards)} shards, such as {shards[0]}, and no {INDEX_NAME}, "
            "which names all of them; download it"
        )
    return f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME}; give a model folder"


def read_rows(
    descriptor: int, entry: Entry, start: int, stop: int, scratch: np.ndarray | None = None
) -> np.ndarray:
    """Reads rows `start:stop` of dim 0 from an open file: `[stop - start, *entry.shape[1:]]`.

    scratch: uint8 memory of exactly their size to read into, by default a new block."""
    shape = (stop - start, *entry.shape[1:])
    if scratch is None:
        block = np.empty(shape, entry.dtype)
    else:
        block = scratch.view(entry.dtype).reshape(shape)
    row = entry.nbytes // max(entry.shape[0], 1)
    view = memoryview(block.view(np.uint8).reshape(-1))
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], entry.offset + start * row + done)
        if count == 0:
            raise ValueError(f"{entry.path}: ended while it was read; it must not be written to")
        done += count
    return block


def check_range(block: np.ndarray, dtype: np.dtype, name: str) -> None:
    """Raises ValueError where float16 is wanted and cannot hold a value of the tensor `name`, which
    would become infinite."""
    if dtype != np.float16 or block.dtype == dtype:
        return
    with np.errstate(over="ignore"):
        is_beyond = np.isinf(block.astype(dtype)).any()
    if is_beyond:
        raise ValueError(
            f"{name}: holds a value beyond {np.finfo(dtype).max:g}, the largest of float16; take "
            "bfloat16 or float32"
        )


def write_file(path, specs: list[tuple[str, np.dtype, tuple[int, ...]]], tensors: Iterable) -> None:
    """Writes one safetensors file, taking `tensors` (arrays in the order of `specs`) one by one."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in specs:
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": codes[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned, as the library writes them
    with pathlib.Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, dtype, shape), tensor in zip(specs, tensors, strict=True):
            assert (tensor.dtype, tensor.shape) == (dtype, shape), name
            file.write(np.ascontiguousarray(tensor).view(np.uint8).reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())


def _unique(pairs):
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
