"""Reads a Hugging Face folder as parameters, through the name table of its family.

Reading goes from the file by small blocks into the buffers of this process's shards, which jax
adopts without a copy on CPU, so that host memory stays at the size of the parameters. Everything
about names, shapes and dtypes is checked from the headers before that. `hf_writer` writes folders.
"""

import logging
import math
import os
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np

from videorft_jax.models import tensor_files, tensor_names
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of

_BLOCK = 2**20  # bytes read at once, so that a block stays in the cache of its core
_PAD = 64  # bytes between the rows of a block that is transposed
_MOST_LISTED = 24  # problems spelled out in one error


def read_checkpoint(
    folder, config: ModelConfig, dtype=None, shardings=None, strip_prefix: str = ""
) -> dict[str, Any]:
    """Reads a safetensors folder, tensor by tensor, into the buffers of this process's shards.

    Old and new key names are accepted, and those of a base model that was saved without its head.
    `strip_prefix` is what another trainer put before all of them. `dtype` None keeps that of the
    file. `shardings` is a tree of `jax.sharding.Sharding` like the parameters; None puts all on the
    first local device. Rows (HF dim 0) that no local shard needs are not read.

    Returns the nested dict of `jax.Array`. Raises one ValueError, before anything is allocated,
    for damaged files (see `tensor_files`) or listing every tensor that is unknown, missing or
    mis-shaped, and a tied checkpoint's head that differs from its embedding.
    """
    leaves = family_of(config).leaves_of(config)
    target = None if dtype is None else known_dtype(dtype)
    found = tensor_names.read_names(pathlib.Path(folder), config, leaves, strip_prefix)
    entries = _match(folder, config, leaves, found, is_mixed_fine=target is not None)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = dict.fromkeys(entries, device) if shardings is None else flatten(shardings)
    compare_paths(places, leaves, "shardings")
    flat = {}
    with ExitStack() as stack:
        paths = {entry.path for group in entries.values() for entry in group}
        files = {path: os.open(path, os.O_RDONLY) for path in sorted(paths)}
        for descriptor in files.values():
            stack.callback(os.close, descriptor)
        pool = stack.enter_context(ThreadPoolExecutor(min(8, os.cpu_count() or 1)))
        for leaf in leaves:
            group = entries[leaf.path]
            kept = target or group[0].dtype
            flat[leaf.path] = _read_leaf(leaf, group, kept, places[leaf.path], files, pool)
    size = sum(entry.nbytes for group in entries.values() for entry in group)
    count = sum(len(group) for group in entries.values())
    logging.info("read %d tensors, %.2f GB, from %s", count, size / 1e9, folder)
    return nest(flat)


def check_checkpoint(folder, config: ModelConfig, strip_prefix: str = "") -> None:
    """Raises what `read_checkpoint` would raise for the names, shapes and dtypes of a folder whose
    tensors are cast to one dtype. The headers of its files are read, and the head of a tied model
    that has one."""
    leaves = family_of(config).leaves_of(config)
    found = tensor_names.read_names(pathlib.Path(folder), config, leaves, strip_prefix)
    _match(folder, config, leaves, found, is_mixed_fine=True)


def _match(folder, config, leaves, found, *, is_mixed_fine):
    """The entries of every leaf, one per layer; everything is checked from the headers. The layers
    of a stack may differ in dtype where all of them are cast."""
    problems = []
    if config.text.tied and "lm_head.weight" in found:
        embed = next(leaf.name for leaf in leaves if leaf.path == "text/embed")
        _check_tied(folder, found.pop("lm_head.weight"), found.get(embed))
    groups = {}
    for leaf in leaves:
        group = []
        for name, ours in leaf.names():
            entry = found.pop(name, None)
            if entry is None:
                problems.append(f"missing {name} ({ours})")
                continue
            group.append(entry)
            if entry.shape != leaf.hf_shape:
                problems.append(
                    f"mis-shaped {name} ({ours}): {list(entry.shape)} in the file, "
                    f"{list(leaf.hf_shape)} by the config"
                )
            elif entry.dtype != group[0].dtype and not is_mixed_fine:
                problems.append(f"{name} ({ours}) is {entry.dtype}, layer 0 {group[0].dtype}")
        groups[leaf.path] = group
    problems += [f"unknown {name} (no parameter of ours)" for name in found]
    _raise_listed(f"{folder}: {{}} do not fit config.json", problems, "take both from one model")
    return groups


def _check_tied(folder, head, embed):
    """A tied checkpoint may carry its head as well, but only the same one."""
    if embed is None:
        return  # It is reported as missing later.
    same = head.shape == embed.shape and head.dtype == embed.dtype
    with open(head.path, "rb") as file, open(embed.path, "rb") as other:
        rows = max(1, _BLOCK * head.shape[0] // max(head.nbytes, 1))
        for start in range(0, head.shape[0] if same else 0, rows):
            stop = min(start + rows, head.shape[0])
            pair = [
                tensor_files.read_rows(f.fileno(), entry, start, stop).view(np.uint8)
                for f, entry in ((file, head), (other, embed))
            ]
            same = same and np.array_equal(*pair)
    if not same:
        raise ValueError(
            f"{folder}: config.json ties the embeddings, but lm_head.weight (text/head) differs "
            "from model.embed_tokens.weight (text/embed); set tie_word_embeddings to false"
        )


def _read_leaf(leaf, entries, dtype, sharding, files, pool):
    buffers = {}  # our index ranges -> the buffer of that shard; replicas share one
    for index in sharding.addressable_devices_indices_map(leaf.shape).values():
        ranges = _ranges(index, leaf.shape)
        if ranges not in buffers:
            buffers[ranges] = _aligned([stop - start for start, stop in ranges], dtype)
    stacked = leaf.num_layers is not None
    first = leaf.perm.index(0) + stacked  # our dim that holds HF's dim 0
    num_rows, names = leaf.split[0], [name for name, _ in leaf.names()]
    rows = max(1, _BLOCK * num_rows // entries[0].nbytes)
    scratches = threading.local()  # reused from block to block, since fresh memory costs more

    def fill(job):
        layer, start, stop = job
        hits = [
            (ranges, buffer)
            for ranges, buffer in buffers.items()
            if (not stacked or ranges[0][0] <= layer < ranges[0][1])
            and max(ranges[first][0], start) < min(ranges[first][1], stop)
        ]
        if not hits:
            return
        entry = entries[layer]._replace(shape=leaf.split)
        scratch = _scratch(scratches, "read", (stop - start) * (entry.nbytes // num_rows))
        block = tensor_files.read_rows(files[entry.path], entry, start, stop, scratch)
        tensor_files.check_range(block, dtype, f"{entry.path}: {names[layer]}")
        block = _pad_rows(block, leaf.perm[-1], dtype, scratches).transpose(leaf.perm)
        for ranges, buffer in hits:
            if stacked:
                buffer = buffer[layer - ranges[0][0]]
            low, high = max(ranges[first][0], start), min(ranges[first][1], stop)
            source = [slice(*r) for r in ranges[stacked:]]
            target = [slice(None)] * len(source)
            source[first - stacked] = slice(low - start, high - start)
            target[first - stacked] = slice(low - ranges[first][0], high - ranges[first][0])
            buffer[tuple(target)] = block[tuple(source)]

    jobs = [
        (layer, start, min(start + rows, num_rows))
        for layer in range(len(entries))
        for start in range(0, num_rows, rows)
    ]
    list(pool.map(fill, jobs))  # This raises what a job raised.
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: buffers[_ranges(index, leaf.shape)]
    )


def _scratch(scratches, name, nbytes):
    """This thread's block of memory of a name, uint8 [nbytes]."""
    block = getattr(scratches, name, None)
    if block is None or len(block) < nbytes:
        block = np.empty(nbytes, np.uint8)
        setattr(scratches, name, block)
    return block[:nbytes]


def _pad_rows(block, dim, dtype, scratches):
    """The block in `dtype`, in memory where the entries of `dim` lie a cache line further apart.

    A transposed copy reads along `dim`. Sizes of models are powers of two, at whose distance all
    entries fall into the same few places of a cache, which makes the copy five times slower.
    """
    if dim == block.ndim - 1:
        return block.astype(dtype, copy=False)  # It is copied as it lies.
    count, row = math.prod(block.shape[: dim + 1]), math.prod(block.shape[dim + 1 :])
    stride = row + _PAD // dtype.itemsize
    memory = _scratch(scratches, "padded", count * stride * dtype.itemsize).view(dtype)
    rows = memory.reshape(count, stride)[:, :row]
    rows[...] = block.reshape(count, row)
    return rows.reshape(block.shape)


def _ranges(index, shape):
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _aligned(shape, dtype):
    """Makes an empty array on a 64-byte boundary, so that jax can adopt it without a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def known_dtype(dtype) -> np.dtype:
    """A dtype that safetensors can hold. Raises ValueError for any other."""
    try:
        dtype = jax.numpy.dtype(dtype)
    except TypeError:
        raise ValueError(
            f"dtype {str(dtype)[:40]!r} is unknown; give bfloat16 or float32"
        ) from None
    known = tensor_files.DTYPES.values()
    if dtype not in known:
        names = ", ".join(known.name for known in known)
        raise ValueError(f"dtype {dtype.name} cannot be held by a checkpoint; choose of {names}")
    return dtype


def compare_paths(flat, leaves, what: str, shapes: bool = False) -> None:
    """Raises ValueError, listing all at once, unless the paths of `flat` are those of `leaves`, and
    their shapes where `shapes` says so."""
    names = {leaf.path: leaf.name.format("*") for leaf in leaves}
    problems = [f"missing {path} ({name})" for path, name in names.items() if path not in flat]
    problems += [f"unknown {path} (no tensor on the hub)" for path in flat if path not in names]
    for leaf in leaves if shapes else ():
        if leaf.path in flat and flat[leaf.path].shape != leaf.shape:
            problems.append(
                f"mis-shaped {leaf.path} ({names[leaf.path]}): {list(flat[leaf.path].shape)}, "
                f"{list(leaf.shape)} by the config"
            )
    _raise_listed(f"{what}: {{}} do not fit the config", problems, "use those of one model")


def _raise_listed(message, problems, remedy):
    if problems:
        listed = problems[:_MOST_LISTED]
        if len(problems) > len(listed):
            listed.append(f"and {len(problems) - len(listed)} more")
        count = f"{len(problems)} tensor" + "s" * (len(problems) > 1)
        raise ValueError(f"{message.format(count)}: {'; '.join(listed)}; {remedy}")


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Flattens a nested dict to {"text/layers/attn/q": leaf}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Makes a nested dict of a flat one; the inverse of `flatten`."""
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
