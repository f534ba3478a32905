"""Parameters to a Hugging Face folder, through the name table of their family."""

import contextlib
import fcntl
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from videorft_jax.models import tensor_files
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of
from videorft_jax.models.hf_folder import compare_paths, flatten, known_dtype

# What an export copies beside the weights. Never code, never pickles.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
_BLOCK = 2 * 2**20  # bytes copied at once


def check_new(folder) -> None:
    """Raises ValueError for a URL, which would become a folder of that name on this disk, for a
    folder that is there and not empty, and for one that another cannot take the place of."""
    if "://" in os.fspath(folder):
        raise ValueError(f"{folder}: is no local folder; write to one, and copy that there")
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder) or os.listdir(folder):
        raise ValueError(f"{folder}: is there already and not empty; choose another or delete it")
    place = os.path.realpath(folder)
    if os.path.ismount(place) or place == os.path.realpath(os.curdir):
        what = "is where a disk is mounted" if os.path.ismount(place) else "is the current folder"
        raise ValueError(f"{folder}: {what}; name a new folder inside it")


def check_place(folder, num_bytes: int) -> None:
    """Finds out, before an array is read, whether the folder can be written and has room for
    `num_bytes`. Raises ValueError."""
    try:
        check_new(folder)
        parent = _beside(folder).parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent) as probe:
            probe.write(bytes(4096))
            probe.flush()
        with contextlib.suppress(FileNotFoundError):
            os.close(_claim(_beside(folder)))  # A name may be too long.
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error}); choose another folder") from None
    if free < num_bytes:
        raise ValueError(
            f"{folder}: {free / 2**30:.2f} GiB free, {num_bytes / 2**30:.2f} GiB needed; free space"
            " or choose another folder"
        )


@contextlib.contextmanager
def explained(folder):
    """Turns what a full or broken disk raises into one line."""
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed; the folder is whole
        raise
    except OSError as error:
        raise RuntimeError(
            f"{folder}: could not be written ({error.strerror or error}) and is not kept; free "
            "space or choose another folder"
        ) from error


def _beside(folder):
    """The folder that is filled before it becomes `folder`, beside what a link leads to."""
    folder = pathlib.Path(os.path.realpath(folder))
    return folder.with_name(folder.name + ".partial")


def _claim(partial):
    """Opens a folder that stays locked as long as it is open. Raises ValueError where another
    export fills it: the two would mix."""
    opened = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise ValueError(
            f"{partial}: another export is writing there; wait for it, or choose another folder"
        ) from None
    except OSError:  # Some network storages know no locks of folders.
        pass
    return opened


@contextlib.contextmanager
def whole_folder(folder):
    """Gives a new folder beside that becomes `folder` at the end; where something fails before,
    nothing is left. Raises ValueError where another process writes the same."""
    partial = _beside(folder)
    with contextlib.suppress(FileNotFoundError):  # what a killed export left
        left = _claim(partial)
        shutil.rmtree(partial, ignore_errors=True)
        os.close(left)
    partial.mkdir(parents=True)
    claimed = _claim(partial)
    try:
        yield partial
        place = partial.with_name(partial.name.removesuffix(".partial"))
        if place.exists():
            place.rmdir()
        os.replace(partial, place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(claimed)


def write_checkpoint(
    folder,
    params: dict[str, Any],
    config: ModelConfig,
    dtype=None,
    source_folder=None,
    max_shard_bytes: int = 5_000_000_000,
    side_files: dict[str, Any] | None = None,
) -> None:
    """Writes a Hugging Face folder with the names of the hub, one tensor in memory at a time.

    `params` leaves are numpy or jax arrays, sharded or not; `dtype` None keeps theirs, which must
    then agree. Tokenizer, processor and generation files are copied from `source_folder`, and
    `side_files`, name -> text or JSON values, are written beside them; what they replace of the
    source is kept as `source_NAME`. The folder appears whole: it is
    written beside as `<folder>.partial` and renamed. Every process of a multi-process run calls
    this; the first one writes.

    Raises ValueError when `folder` is a URL, or is there and not empty, when params do not fit the
    config (all listed at once), and for leaves of several dtypes without `dtype`.
    """
    check_new(folder)
    folder = pathlib.Path(folder)
    leaves, flat = family_of(config).leaves_of(config), flatten(params)
    compare_paths(flat, leaves, "params", shapes=True)
    dtypes = {np.dtype(array.dtype) for array in flat.values()}
    if dtype is None and len(dtypes) > 1:
        raise ValueError(f"params: dtypes {sorted(map(str, dtypes))} are mixed; give one dtype")
    target = known_dtype(dtype or dtypes.pop())
    shards = _cut_into_files(leaves, target, max_shard_bytes)
    writes = jax.process_index() == 0
    with whole_folder(folder) if writes else contextlib.nullcontext(folder) as partial:
        _write_tensors(partial, shards, flat, target, writes)
        if writes:
            _write_side_files(partial, config, target, source_folder, side_files or {})
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"wrote {folder.name}")
    count = sum(map(len, shards))
    logging.info("wrote %d tensors in %d files to %s", count, len(shards), folder)


def _cut_into_files(leaves, dtype, max_shard_bytes):
    """[[(layer, leaf, name)]] of every file, layer by layer as the hub orders tensors."""
    tensors = [(i, leaf, name) for leaf in leaves for i, (name, _) in enumerate(leaf.names())]
    tensors.sort(key=lambda item: (item[1].path.split("/")[0], item[1].num_layers or 0, item[0]))
    shards, left = [[]], max_shard_bytes
    for item in tensors:
        nbytes = math.prod(item[1].hf_shape) * dtype.itemsize
        if shards[-1] and nbytes > left:
            shards.append([])
            left = max_shard_bytes
        shards[-1].append(item)
        left -= nbytes
    return shards


def _write_tensors(folder, shards, flat, dtype, writes):
    """The safetensors files and their index; a process that does not write fetches all the same,
    because fetching is collective."""
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file_name = tensor_files.SINGLE_NAME
        if len(shards) > 1:
            file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        specs = [(name, dtype, leaf.hf_shape) for _, leaf, name in shard]
        weight_map |= {name: file_name for name, _, _ in specs}
        arrays = (_to_hf(leaf, _fetch(flat, leaf, i), dtype, name) for i, leaf, name in shard)
        if writes:
            tensor_files.write_file(folder / file_name, specs, arrays)
        else:
            for _ in arrays:
                pass
    if writes and len(shards) > 1:
        sizes = (math.prod(leaf.hf_shape) for shard in shards for _, leaf, _ in shard)
        index = {"metadata": {"total_size": sum(sizes) * dtype.itemsize}, "weight_map": weight_map}
        _write_text(folder / tensor_files.INDEX_NAME, _to_json(index))


@jax.jit
def _take_layer(array, layer):
    return jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)


@jax.jit
def _same(array):
    return array


def _fetch(flat, leaf, layer):
    """One tensor of a leaf on the host, without the copy that `np.asarray` would leave on it."""
    array = flat[leaf.path]
    if isinstance(array, np.ndarray):
        return array if leaf.num_layers is None else array[layer]
    block = _same(array) if leaf.num_layers is None else _take_layer(array, layer)
    if block.is_fully_addressable:
        return np.asarray(block)
    return multihost_utils.process_allgather(block, tiled=True)


def _to_hf(leaf, block, dtype, name):
    source = block.transpose(np.argsort(leaf.perm))
    out = np.empty(source.shape, dtype)
    rows = max(1, _BLOCK * len(out) // out.nbytes)
    for start in range(0, len(out), rows):  # a transposed copy is 3x faster in blocks
        tensor_files.check_range(source[start : start + rows], dtype, name)
        out[start : start + rows] = source[start : start + rows]
    return out.reshape(leaf.hf_shape)


def _write_side_files(folder, config, dtype, source_folder, side_files):
    values = json.loads(config.source)
    values.pop("auto_map", None)  # an export never asks for remote code
    for part in (values, values.get("text_config"), values.get("vision_config")):
        for key in ("dtype", "torch_dtype"):
            if part and key in part:
                part[key] = dtype.name
    if "dtype" not in values:
        values["torch_dtype"] = dtype.name
    _write_text(folder / "config.json", _to_json(values))
    for name, content in side_files.items():
        _write_text(folder / name, content if isinstance(content, str) else _to_json(content))
    if source_folder is None:
        return
    source = pathlib.Path(source_folder)
    copied = [name for name in _COPIED if (source / name).is_file()]
    replaced = set(side_files)
    if "preprocessor_config.json" in replaced:
        replaced.add("processor_config.json")  # transformers would read processors from it instead
    if "chat_template.jinja" in replaced:
        replaced.add("chat_template.json")  # its processors would read the format from it instead
    for name in copied:
        kept = f"source_{name}" if name in replaced else name
        shutil.copyfile(source / name, folder / kept)
    logging.info("copied %d of %d side files from %s", len(copied), len(_COPIED), source)


def _to_json(values):
    return json.dumps(values, indent=2) + "\n"


def _write_text(path, text):
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
