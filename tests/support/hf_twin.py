"""A Hugging Face model with random weights, ours with the same, and inputs for both."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from videorft_jax.data.batch import layout, patches
from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of, find_family, parse_config
from videorft_jax.models.geometry import WINDOWED_14, Geometry
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.kv_cache import KVCache
from videorft_jax.models.vision_language import next_position

torch.set_num_threads(2)


@dataclasses.dataclass
class Twin:
    hf: Any
    config: ModelConfig
    params: dict


def write_random(folder):
    """A Qwen2.5-VL of transformers without tied embeddings, every weight normal with a deviation of
    .1, which is also written into `folder`."""
    values = find_family("qwen2_5_vl").tiny_values(tie_word_embeddings=False)
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**values))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    return model


def make_twin(folder, seed: int = 0, model_type: str = "qwen2_5_vl", **overrides) -> Twin:
    """Every weight random, biases and norms too, large enough that nothing hides."""
    values = find_family(model_type).tiny_values(**overrides)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    hf_config = transformers.AutoConfig.from_pretrained(folder)
    hf_config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(hf_config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn_like(value)
            if "norm" in name or "ln_q" in name:
                value.copy_(1 + 0.2 * noise)
            elif value.ndim == 1:
                value.copy_(0.1 * noise)
            else:
                value.copy_(noise * (1.0 / np.prod(value.shape[1:])) ** 0.5)
    save_weights(folder, model)
    config = parse_config(values)
    return Twin(model, config, read_checkpoint(folder, config))


def save_weights(folder, model, of=lambda parameter: parameter):
    tensors = {name: of(p).detach().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors")


def gradients(folder, twin: Twin):
    """The Hugging Face model's gradients as a tree like our parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, twin.hf, of=lambda parameter: parameter.grad)
    return read_checkpoint(folder, twin.config)


@dataclasses.dataclass
class Clip:
    frames: np.ndarray  # uint8 [n, h, w, 3]
    fps: float | None  # None: an image


def random_clip(rng, frames, height, width, fps, unit: int = 28) -> Clip:
    pixels = rng.integers(0, 256, (frames, unit * height, unit * width, 3), dtype=np.uint8)
    return Clip(pixels, fps)


def make_sample(rng, config, parts, rule="hf5") -> layout.Sample:
    """`parts` mixes Clips with counts of random text tokens; the last count is the answer."""
    ids, tokens, starts, media = config.token_ids, [], [], []
    geometry = family_of(config).geometry
    for part in parts:
        if isinstance(part, Clip):
            item = patches.make_media(part.frames, part.fps, geometry)
            pad = ids.image if part.fps is None else ids.video
            for run in item.runs:
                if len(item.runs) > 1:  # a timestamp
                    tokens += list(rng.integers(0, 300, 3))
                tokens.append(ids.vision_start)
                starts.append(len(tokens))
                tokens += [pad] * int(np.prod(run)) + [ids.vision_end]
            media.append(item)
        else:
            tokens += list(rng.integers(0, 300, part))
    loss_mask = np.arange(len(tokens)) >= len(tokens) - parts[-1]
    return layout.make_sample(tokens, loss_mask, starts, media, rule)


def hf_patches(clip: Clip, cut: Geometry = WINDOWED_14):
    """Rows of Hugging Face's processors by their published formula; grid in patches."""
    frames = clip.frames.transpose(0, 3, 1, 2)
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    count, _, height, width = frames.shape
    side = cut.patch
    t, h, w = count // 2, height // side, width // side
    mean, std = (np.float32(255) * np.array(x, np.float32) for x in (cut.pixel_mean, cut.pixel_std))
    wide = (frames.astype(np.float32) - mean[:, None, None]) / std[:, None, None]
    rows = wide.reshape(t, 2, 3, h // 2, 2, side, w // 2, 2, side)
    rows = rows.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, cut.patch_dim)
    return rows, (t, h, w)


def hf_inputs(config, samples, clips, *, length, left=False):
    """Inputs of the Hugging Face model for padded rows; `clips[i]` belong to `samples[i]`."""
    ids = config.token_ids
    shape = (len(samples), length)
    tokens, attended = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, -100, np.int64)
    pixels = {"image": [], "video": []}
    grids = {"image": [], "video": []}
    seconds = []
    for b, (sample, row_clips) in enumerate(zip(samples, clips, strict=True)):
        count = len(sample.tokens)
        span = slice(length - count, length) if left else slice(count)
        tokens[b, span] = sample.tokens
        attended[b, span] = 1
        labels[b, span] = np.where(sample.loss_mask, sample.tokens, -100)
        for clip in row_clips:
            kind = "image" if clip.fps is None else "video"
            rows, grid = hf_patches(clip, family_of(config).geometry)
            pixels[kind].append(rows)
            grids[kind].append(grid)
            if clip.fps is not None:
                seconds.append(2 / clip.fps)
    inputs = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(attended),
        "mm_token_type_ids": torch.tensor(
            ((tokens == ids.image) * 1 + (tokens == ids.video) * 2).astype(np.int32)
        ),
    }
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels[kind]:
            inputs[key] = torch.tensor(np.concatenate(pixels[kind]))
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    if seconds and config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor(seconds, dtype=torch.float32)
    return inputs, torch.tensor(labels)


def decode_greedily(twin, batch, steps):
    """The likeliest tokens after every prompt of a batch, [B, steps], by the decoder's cache."""
    rows, text = batch.tokens.shape[0], twin.config.text

    @jax.jit
    def prefill(params, batch):
        model = family.bind(twin.config, params)
        hidden, keys, values = model.prefill(batch)
        last = (batch.segment_ids > 0).sum(1) - 1
        logits = model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))
        suffix = jnp.zeros((text.num_layers, rows, 1, text.num_kv_heads, steps, text.head_dim))
        return logits.argmax(-1), KVCache(keys, values, batch.segment_ids > 0, suffix, suffix)

    @jax.jit
    def step(params, tokens, positions, cache, index):
        model = family.bind(twin.config, params)
        x = model.embed(tokens, None, None)
        hidden, cache = model.text.decode(x, positions, cache, index)
        return model.logits(hidden).argmax(-1), cache

    tokens, cache = prefill(twin.params, batch)
    following = np.asarray(next_position(batch))[:, None]
    drawn = [tokens]
    for index in range(steps - 1):
        tokens, cache = step(twin.params, tokens, following + index, cache, index)
        drawn.append(tokens)
    return np.concatenate(drawn, axis=1)
