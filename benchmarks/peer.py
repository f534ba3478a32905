"""The small model that benchmarks share, for us and for PyTorch, and the same inputs for both.

6.5 M parameters: text 256 wide, 4 layers, 8 query and 2 kv heads, MLP 768, vocabulary 4096; vision
128 wide, 4 layers, 4 heads, MLP 384. Torch is imported only where the peer runs.
"""

import json
import multiprocessing
import os
import pathlib

import host
import numpy as np

from videorft_jax.data.batch import layout, patches
from videorft_jax.models.family import find_family
from videorft_jax.models.qwen2_5_vl.config import hf_values

_SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "vocab_size": 4096,
    "bos_token_id": 4080,
    "eos_token_id": 4081,
    "vision_start_token_id": 4082,
    "vision_end_token_id": 4083,
    "image_token_id": 4085,
    "video_token_id": 4086,
    "vision_depth": 4,
    "vision_hidden_size": 128,
    "vision_num_heads": 4,
    "vision_intermediate_size": 384,
    "vision_out_hidden_size": 256,
}
VALUES = hf_values(
    "7b",
    **_SIZES,
    rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
    vision_token_id=4084,
    vision_fullatt_block_indexes=[1, 3],
)
QWEN3_VALUES = find_family("qwen3_vl").hf_values(
    "qwen3vl_8b",
    **_SIZES,
    head_dim=32,
    rope_scaling={"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
    vision_deepstack_visual_indexes=[1, 2, 3],
)
FAMILIES = {"qwen2_5_vl": VALUES, "qwen3_vl": QWEN3_VALUES}
TEXT_IDS = 4000  # below every control token


def write_model(folder, values=VALUES) -> None:
    """A random checkpoint, by the Hugging Face class."""
    import torch
    import transformers

    folder = pathlib.Path(folder)
    (folder / "config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))


def load_peer(folder):
    """The Hugging Face model in float32, with the attention it chooses by itself."""
    import torch
    import transformers

    return transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )


def make_clips(count: int, frames: int, side: int, wide: int = 0, seed: int = 0):
    """Noise, uint8 [frames, side, wide or side, 3] each."""
    rng, shape = np.random.default_rng(seed), (frames, side, wide or side, 3)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def make_samples(clips, text: int, answer: int, seed: int = 0, values=VALUES):
    """One `layout.Sample` per clip: `text` tokens around the clip and `answer` target tokens, with
    the control tokens of `values`. Where frame pairs stand by themselves, three more text tokens
    stand for the time before each."""
    rng = np.random.default_rng(seed)
    geometry = find_family(values["model_type"]).geometry
    samples = []
    for frames in clips:
        item = patches.make_media(frames, 2.0, geometry)
        stamp, runs = 3 * geometry.timestamps, [int(np.prod(run)) for run in item.runs]
        around = (2 + stamp) * len(runs) - 2
        tokens = rng.integers(0, TEXT_IDS, text + answer + sum(runs) + around)
        end, starts = 8, []
        for count in runs:
            start = end + stamp
            tokens[start] = values["vision_start_token_id"]
            tokens[start + 1 : start + 1 + count] = values["video_token_id"]
            tokens[start + 1 + count] = values["vision_end_token_id"]
            starts.append(start + 1)
            end = start + count + 2
        target = np.arange(len(tokens)) >= len(tokens) - answer
        samples.append(layout.make_sample(tokens, target, starts, [item], "hf5"))
    return samples


def peer_inputs(clips, samples, values=VALUES):
    """What the Hugging Face model is given for the same conversations, all equally long."""
    import torch

    cuts = find_family(values["model_type"]).geometry
    mean, std = (
        np.float32(255) * np.array(x, np.float32) for x in (cuts.pixel_mean, cuts.pixel_std)
    )
    side = cuts.patch
    rows, grids = [], []
    for frames in clips:
        wide = (frames.transpose(0, 3, 1, 2) - mean[:, None, None]) / std[:, None, None]
        t, h, w = len(frames) // 2, frames.shape[1] // side, frames.shape[2] // side
        cut = wide.reshape(t, 2, 3, h // 2, 2, side, w // 2, 2, side)
        rows.append(cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1))
        grids.append((t, h, w))
    tokens = torch.tensor(np.stack([sample.tokens for sample in samples])).long()
    targets = torch.tensor(np.stack([sample.loss_mask for sample in samples]))
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == values["video_token_id"]).int() * 2,
        "pixel_values_videos": torch.tensor(np.concatenate(rows), dtype=torch.float32),
        "video_grid_thw": torch.tensor(grids),
    }
    if values["model_type"] == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.ones(len(clips))
    return inputs, torch.where(targets, tokens, -100)


def place_params(folder, config):
    """A mesh of all devices, which is set from here on, and the checkpoint's weights on it."""
    import jax

    from videorft_jax.models.hf_folder import read_checkpoint
    from videorft_jax.parallel import sharding
    from videorft_jax.training.compiler_memory import give_back_memory

    give_back_memory()  # Every command does it.
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    jax.set_mesh(mesh)
    params = read_checkpoint(folder, config)
    return mesh, jax.device_put(params, sharding.state_shardings(params, mesh))


def fresh_state(params, optimizer, mesh):
    """A state that owns copies of `params`, and its shardings."""
    import functools

    import jax

    from videorft_jax.parallel import sharding
    from videorft_jax.training.step import init_state

    start = functools.partial(init_state, frozen={}, optimizer=optimizer)
    shardings = sharding.state_shardings(jax.eval_shape(start, params), mesh)
    return jax.jit(start, out_shardings=shardings)(params), shardings


class Sides:
    """The two sides of a benchmark, each a process of its own: what `run(*arguments, pipe)` serves.

    Each lives through the whole benchmark, so that what it compiled and allocated is its own. JAX
    has so many devices of the CPU. Both allocate memory in huge pages, as the demo does.
    """

    def __init__(self, *arguments, devices=1, **runs):
        os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        spawn = multiprocessing.get_context("spawn")
        self._sides = {}
        for name, run in runs.items():
            here, there = spawn.Pipe()
            process = spawn.Process(target=run, args=(*arguments, there), daemon=True)
            process.start()
            self._sides[name] = here, process

    def ask(self, name: str, *request):
        pipe, _ = self._sides[name]
        pipe.send(request)
        return pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pipe, process in self._sides.values():
            pipe.send(None)
            process.join()


def serve(once, pipe) -> None:
    """Calls `once(*request)` for every request until there are no more, and sends back its answer.
    For a process of `Sides`."""
    while (request := pipe.recv()) is not None:
        pipe.send(once(*request))


def machine() -> dict:
    """What every benchmark says of where it ran."""
    import jax

    return {"device": jax.devices()[0].device_kind, **host.describe(), "jax": jax.__version__}
