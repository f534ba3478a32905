"""The two models that the demo starts from: a SigLIP trained on its clips, and a random policy."""

import functools
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from videorft_jax.data.records.prompts import PromptTemplate, build_messages, build_target
from videorft_jax.data.records.render import render_text
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo import siglip as siglip_training
from videorft_jax.demo.dataset import make_sample
from videorft_jax.demo.options import DemoOptions
from videorft_jax.demo.scenes import draw_frames
from videorft_jax.demo.tiny_tokenizer import find_control_ids, train_tiny_tokenizer
from videorft_jax.models.family import find_family, init_params, parse_config
from videorft_jax.models.geometry import WINDOWED_14, Geometry
from videorft_jax.models.hf_writer import write_checkpoint
from videorft_jax.models.siglip import hf_folder as siglip
from videorft_jax.rewards.sentences import describe

log = logging.getLogger(__name__)


def write_siglip(options: DemoOptions, folder: pathlib.Path) -> None:
    """Trains the judge on the last frame of every clip that is trained on, with its caption.

    Frames of annotated clips also come with the description in their chain of thought, which is the
    kind of text that the judge will see.
    """
    frames, texts = [], []
    for split in ("sft", "rl"):
        for index in range(options.num_clips[split]):
            sample = make_sample(options.world, options.seed, split, index)
            image = draw_frames(sample.scene)[-1]
            captions = [sample.caption]
            if split == "sft":
                captions += describe(build_target(sample.record), "paper")
            frames += [image] * len(captions)
            texts += captions
    tokenizer = siglip_training.make_tokenizer(texts)
    config = siglip_training.tiny_config(
        len(tokenizer),
        image_size=options.siglip_image_size,
        text_length=options.siglip_text_length,
    )
    model, _ = siglip_training.train_siglip(
        np.stack(frames), texts, config, tokenizer,
        num_steps=options.siglip_steps, seed=options.seed, progress=_log_loss,
    )  # fmt: skip
    siglip.save_siglip(str(folder), model.params, config, tokenizer)


def _log_loss(step, total, loss):
    if step % max(1, total // 10) == 0:
        log.info("siglip: step %d/%d  loss %.3f", step, total, loss)


def write_model(
    options: DemoOptions, records: str, template: PromptTemplate, folder: pathlib.Path
) -> None:
    """Writes a small random video language model, and a tokenizer of the words that prompts and
    chains of thought of `records` are made of. What is left of a demo killed here is replaced."""
    values = dict(options.model)
    family = find_family(values.pop("model_type"))
    source, texts = RecordSource(records), []
    for record in (source[i] for i in range(len(source))):
        prompt = render_text(build_messages(record, template), family.geometry)
        texts += [prompt, build_target(record)]
    if family.geometry.timestamps:  # words of the times that stand in its prompts
        texts += [f"<{tenth / 10:.1f} seconds>" for tenth in range(40)] * 4
    make_values = functools.partial(family.demo_values, **values)
    shutil.rmtree(folder, ignore_errors=True)
    write_random_model(
        folder,
        texts,
        values["vocab_size"],
        make_values,
        gain=options.init_gain,
        seed=options.seed,
        geometry=family.geometry,
    )


def write_random_model(
    folder: pathlib.Path,
    texts: Sequence[str],
    vocab_size: int,
    make_values: Callable[..., dict[str, Any]],
    *,
    gain: float = 1.0,
    seed: int = 0,
    geometry: Geometry = WINDOWED_14,
) -> None:
    """Writes a Hugging Face folder with random weights and a tokenizer trained on `texts`.

    make_values: the ids of control tokens, by keyword -> the JSON of the model's config. gain:
    factor on all matrices, which are drawn from N(0, 0.02^2), the scale of models a hundred times
    as wide. geometry: the family's, for the tokenizer's chat template.
    """
    tokenizer = train_tiny_tokenizer(texts, vocab_size, geometry)
    config = parse_config(make_values(**find_control_ids(tokenizer)), "the tiny model")
    quick = {"xla_backend_optimization_level": 0}  # it runs once
    init = jax.jit(functools.partial(init_params, config), compiler_options=quick)
    params = init(jax.random.key(seed))
    params = jax.tree.map(lambda leaf: leaf * gain if leaf.ndim > 1 else leaf, params)
    write_checkpoint(folder, params, config)
    tokenizer.save_pretrained(folder)
