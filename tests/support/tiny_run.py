"""What an end-to-end test needs: a tiny model, real clips, a config and a way to start runs."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
from compiler_flags import QUICK_CPU

from videorft_jax.checkpoints import manifest
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.data.records.prompts import build_messages, build_target
from videorft_jax.data.records.render import render_text
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo import siglip as siglip_training
from videorft_jax.demo.dataset import WorldConfig, write_dataset
from videorft_jax.demo.tiny_tokenizer import find_control_ids, train_tiny_tokenizer
from videorft_jax.models import family
from videorft_jax.models.hf_writer import write_checkpoint
from videorft_jax.models.siglip import hf_folder as siglip

ROOT = pathlib.Path(__file__).parents[2]
WORLD = WorldConfig(size=(56, 56), num_frames=12, still_every=4)


def make_data(folder, *, num_sft=40, num_rl=8, num_eval=4) -> dict[str, str]:
    """Record files by split."""
    return write_dataset(folder, num_sft, num_rl, num_eval, seed=0, world=WORLD)


def make_model(
    folder, records, *, vocab=512, scale=3.0, model_type="qwen2_5_vl", **overrides
) -> None:
    """A random checkpoint with a tokenizer trained on the records."""
    made = family.find_family(model_type)
    source = RecordSource(records)
    texts = []
    for record in (source[i] for i in range(len(source))):
        texts += [render_text(build_messages(record), made.geometry), build_target(record)]
    tokenizer = train_tiny_tokenizer(texts, vocab, made.geometry)
    ids = find_control_ids(tokenizer)
    values = made.tiny_values(vocab_size=vocab, **ids, **overrides)
    config = made.parse_config(values, "the tiny model")
    params = jax.jit(functools.partial(family.init_params, config))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * scale, params)  # so that a few steps show
    write_checkpoint(folder, params, config)
    tokenizer.save_pretrained(folder)


def make_siglip(folder, records) -> None:
    """A random SigLIP whose words are those of the records."""
    source = RecordSource(records)
    texts = [source[i].process for i in range(len(source))]
    tokenizer = siglip_training.make_tokenizer(texts)
    vocab = len(tokenizer) + len(tokenizer) % 2  # so that a tensor axis of 2 divides it, and heads
    config = siglip_training.tiny_config(vocab, image_size=28, width=64, num_layers=1)
    siglip.save_siglip(folder, siglip.init(config, jax.random.key(0)), config, tokenizer)


def load_recipe(name: str):
    """`get_config()` of a file in configs/."""
    folder = str(ROOT / "configs")
    sys.path.insert(0, folder)
    try:
        return __import__(name).get_config()
    finally:
        sys.path.remove(folder)


def sft_options(model, records, **changes) -> dict:
    """What the tiny model changes in configs/sft_7b.py, by dotted path; `changes` are written
    `data__rows=8`. Five steps an epoch with 40 records."""
    options = {
        "model.init_from": str(model),
        "model.dtype": "float32",
        "data.records": str(records),
        "data.rows": 8,
        "data.row_tokens": 256,
        "data.multiple": 64,
        "data.max_buckets": 1,
        "data.threads": 2,
        "media.min_frames": 4,
        "media.max_frames": 4,
        "media.min_pixels": 56 * 56,
        "media.max_pixels": 56 * 56,
        "optim.lr": 1e-3,
        "train.accumulate": 1,
        "train.max_steps": 5,
        "mesh.data": -1,
        "mesh.fsdp": 1,
    }
    return options | {path.replace("__", "."): value for path, value in changes.items()}


def make_config(recipe: str, options: dict, **changes):
    """A recipe of configs/ with options by dotted path; `changes` are written `data__rows=8`."""
    config = load_recipe(recipe)
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    for path, value in (options | changes).items():
        *sections, field = path.split(".")
        target = config
        for section in sections:
            target = target[section]
        target[field] = value
    return config


def sft_config(model, records, **changes):
    """configs/sft_7b.py with `sft_options`."""
    return make_config("sft_7b", sft_options(model, records, **changes))


def write_config(path, recipe: str, options: dict) -> None:
    """A config file as a user writes one: a recipe and what is changed in it."""
    lines = ["import sys", f"sys.path.append({str(ROOT / 'configs')!r})", f"import {recipe}"]
    lines += ["def get_config():", f"    config = {recipe}.get_config()"]
    lines += [f"    config.{name} = {value!r}" for name, value in options.items()]
    pathlib.Path(path).write_text("\n".join([*lines, "    return config", ""]))


def environment(cache, devices: int = 1, flags: str = QUICK_CPU) -> dict[str, str]:
    """Makes the variables of a run on simulated devices; programs are kept in `cache`. `flags` are
    XLA's."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": flags,
    }


def start(cache, *arguments, module: str = "videorft_jax.cli", **more):
    """Starts `python -m module arguments...` in the `environment` of `cache` and `more`."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment(cache, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class TinyCommands:
    """Runs commands on the recipes that were written into `folder`, sharing compiled programs."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, command, name, *flags, code=0, config="tiny.py"):
        """(work directory, everything that was said) of a command that ends with `code`."""
        arguments = [command, f"--config={self.folder / config}"]
        arguments.append(f"--workdir={self.folder / name}")
        found, text = finish(start(self.folder / "compiled", *arguments, *flags))
        assert found == code, text
        return self.folder / name, text


def finish(process, seconds: float = 600.0) -> tuple[int, str]:
    """(exit code, everything it said)."""
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running: {process.communicate()[0]}") from None
    return process.returncode, text


def wait_for(condition, process, seconds: float = 600.0) -> None:
    """Returns as soon as `condition()` holds while the process is running."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"it ended before: {process.communicate()[0]}")
        time.sleep(0.002)


def read_arrays(workdir, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpointer(workdir) as checkpointer:
        kept = manifest.read(checkpointer.folder / f"{step:08d}")["arrays"]
        wanted = {
            path: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            for path, (dtype, shape) in kept.items()
        }
        return jax.tree.map(np.asarray, checkpointer.restore(step, wanted, {})[0])


def metrics(workdir) -> list[dict]:
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
