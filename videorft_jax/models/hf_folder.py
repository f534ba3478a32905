"""Hugging Face folder -> params -> Hugging Face folder, through the name table in `names`.

Reading goes file -> small block -> the buffers of this process's shards, which jax adopts without a
copy on CPU, so host memory stays at the size of the parameters. Writing fetches one tensor at a
time. Everything about names, shapes and dtypes is checked from the headers before that.
"""

import json
import logging
import math
import os
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from videorft_jax.models import tensor_files
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of

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
_BLOCK = 2 * 2**20  # bytes read at once: about the rows for which a transposed copy is fastest
_MOST_LISTED = 24  # problems spelled out in one error


def read_checkpoint(folder, config: ModelConfig, dtype=None, shardings=None) -> dict[str, Any]:
    """Reads a safetensors folder, tensor by tensor, into the buffers of this process's shards.

    Old and new key names are accepted. `dtype` None keeps that of the file. `shardings` is a tree
    of `jax.sharding.Sharding` like the parameters; None puts all on the first local device. Rows
    (HF dim 0) no local shard needs are not read.

    Returns the nested dict of `jax.Array`. Raises one ValueError, before anything is allocated,
    for damaged files (see `tensor_files`) or listing every tensor that is unknown, missing or
    mis-shaped, and a tied checkpoint's head that differs from its embedding.
    """
    leaves = family_of(config).leaves_of(config)
    entries = _match(pathlib.Path(folder), config, leaves)
    target = None if dtype is None else _known_dtype(dtype)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = dict.fromkeys(entries, device) if shardings is None else flatten(shardings)
    _compare_paths(places, leaves, "shardings")
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


def write_checkpoint(
    folder,
    params: dict[str, Any],
    config: ModelConfig,
    dtype=None,
    source_folder=None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a Hugging Face folder with the names of the hub, one tensor in memory at a time.

    `params` leaves are numpy or jax arrays, sharded or not; `dtype` None keeps theirs, which must
    then agree. Tokenizer, processor and generation files are copied from `source_folder`. The
    folder appears whole: it is written beside as `<folder>.partial` and renamed. Every process of a
    multi-process run calls this; the first one writes.

    Raises ValueError when `folder` is there and not empty, when params do not fit the config (all
    listed at once), and for leaves of several dtypes without `dtype`.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: is there already and not empty; choose another or delete it")
    leaves, flat = family_of(config).leaves_of(config), flatten(params)
    _compare_paths(flat, leaves, "params", shapes=True)
    dtypes = {np.dtype(array.dtype) for array in flat.values()}
    if dtype is None and len(dtypes) > 1:
        raise ValueError(f"params: dtypes {sorted(map(str, dtypes))} are mixed; give one dtype")
    target = _known_dtype(dtype or dtypes.pop())

    # Layer by layer, as the hub orders them.
    tensors = [(i, leaf, name) for leaf in leaves for i, (name, _) in enumerate(leaf.names())]
    tensors.sort(key=lambda item: (item[1].path.split("/")[0], item[1].num_layers or 0, item[0]))
    shards, room = [[]], max_shard_bytes
    for item in tensors:
        nbytes = math.prod(item[1].hf_shape) * target.itemsize
        if shards[-1] and nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(item)
        room -= nbytes

    partial = folder.with_name(folder.name + ".partial")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
        partial.mkdir(parents=True)
    try:
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            file_name = tensor_files.SINGLE_NAME
            if len(shards) > 1:
                file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            specs = [(name, target, leaf.hf_shape) for _, leaf, name in shard]
            weight_map |= {name: file_name for name, _, _ in specs}
            arrays = (_to_hf(leaf, _fetch(flat, leaf, i), target) for i, leaf, _ in shard)
            if writes:
                tensor_files.write_file(partial / file_name, specs, arrays)
            else:
                for _ in arrays:  # the fetches are collective
                    pass
        if writes:
            _write_side_files(partial, config, target, source_folder)
            if len(shards) > 1:
                total = sum(math.prod(leaf.hf_shape) for _, leaf, _ in tensors) * target.itemsize
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                _write_json(partial / tensor_files.INDEX_NAME, index)
            if folder.exists():
                folder.rmdir()
            os.replace(partial, folder)
    except BaseException:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"wrote {folder.name}")
    logging.info("wrote %d tensors in %d files to %s", len(tensors), len(shards), folder)


def check_vocabulary(config: ModelConfig, tokenizer_folder) -> None:
    """Raises ValueError when the tokenizer has ids the embedding has no row for.

    Reads `tokenizer.json`, or `vocab.json` with `tokenizer_config.json` and `added_tokens.json`.
    More rows than ids is normal: the published matrices end in rows that were never trained.
    """
    folder = pathlib.Path(tokenizer_folder)

    def read(name):
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    whole = read("tokenizer.json")
    vocabulary = whole.get("model", {}).get("vocab", {}) if whole else read("vocab.json")
    # Unigram models give a list of (piece, score), all others a dict.
    ids = list(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
    if not ids:
        raise ValueError(f"{folder}: no tokenizer.json or vocab.json; give a tokenizer folder")
    ids += [token["id"] for token in whole.get("added_tokens", [])]
    ids += [int(i) for i in read("tokenizer_config.json").get("added_tokens_decoder", {})]
    ids += read("added_tokens.json").values()
    rows = config.text.vocab_size
    if max(ids) >= rows:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {max(ids)} and the model only {rows} rows "
            "(vocab_size); use the tokenizer that belongs to the checkpoint"
        )


def _match(folder, config, leaves):
    """The entries of every leaf, one per layer; everything is checked from the headers."""
    found, problems, old_name = {}, [], family_of(config).old_name
    for name, entry in tensor_files.read_folder(folder).items():
        old = old_name(name)
        if old in found:
            problems.append(f"{old} is there under its old and its new name")
        found[old] = entry
    if config.text.tied and "lm_head.weight" in found:
        _check_tied(folder, found.pop("lm_head.weight"), found.get("model.embed_tokens.weight"))
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
            elif entry.dtype != group[0].dtype:
                problems.append(f"{name} ({ours}) is {entry.dtype}, layer 0 {group[0].dtype}")
        groups[leaf.path] = group
    problems += [f"unknown {name} (no parameter of ours)" for name in found]
    _raise_listed(f"{folder}: {{}} do not fit config.json", problems, "take both from one model")
    return groups


def _check_tied(folder, head, embed):
    """A tied checkpoint may carry its head as well, but only the same one."""
    if embed is None:
        return  # reported as missing
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
    num_rows = leaf.split[0]
    rows = max(1, _BLOCK * num_rows // entries[0].nbytes)

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
        block = tensor_files.read_rows(files[entry.path], entry, start, stop)
        block = block.astype(dtype, copy=False).transpose(leaf.perm)
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
    list(pool.map(fill, jobs))  # raises what a job raised
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: buffers[_ranges(index, leaf.shape)]
    )


def _ranges(index, shape):
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _aligned(shape, dtype):
    """An empty array on a 64-byte boundary, which is what jax needs to adopt it without a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)


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


def _to_hf(leaf, block, dtype):
    source = block.transpose(np.argsort(leaf.perm))
    out = np.empty(source.shape, dtype)
    rows = max(1, _BLOCK * len(out) // out.nbytes)
    for start in range(0, len(out), rows):  # a transposed copy is 3x faster in blocks
        out[start : start + rows] = source[start : start + rows]
    return out.reshape(leaf.hf_shape)


def _write_side_files(folder, config, dtype, source_folder):
    values = json.loads(config.source)
    values.pop("auto_map", None)  # an export never asks for remote code
    for part in (values, values.get("text_config"), values.get("vision_config")):
        for key in ("dtype", "torch_dtype"):
            if part and key in part:
                part[key] = dtype.name
    if "dtype" not in values:
        values["torch_dtype"] = dtype.name
    _write_json(folder / "config.json", values)
    if source_folder is None:
        return
    source = pathlib.Path(source_folder)
    copied = [name for name in _COPIED if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, folder / name)
    logging.info("copied %d of %d side files from %s", len(copied), len(_COPIED), source)


def _write_json(path, values):
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _known_dtype(dtype):
    dtype = jax.numpy.dtype(dtype)
    known = tensor_files.DTYPES.values()
    if dtype not in known:
        names = ", ".join(known.name for known in known)
        raise ValueError(f"dtype {dtype.name} cannot be held by a checkpoint; choose of {names}")
    return dtype


def _compare_paths(flat, leaves, what, shapes=False):
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


def flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat):
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
