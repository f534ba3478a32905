"""A tiny model folder, a tiny data set of real clips and a config: what an end-to-end test needs."""

import json
import pathlib
import sys

import jax

from videorft_jax.data.prompts import build_messages, build_target, render_text
from videorft_jax.data.records import RecordSource
from videorft_jax.data.synthetic import WorldConfig, write_dataset
from videorft_jax.data.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.model import vlm
from videorft_jax.model.config import parse_config, tiny_values
from videorft_jax.model.convert import write_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
WORLD = WorldConfig(size=(56, 56), num_frames=12, still_every=4)


def make_data(folder, *, num_sft=40, num_rl=8, num_eval=4) -> dict[str, str]:
    """Record files by split."""
    return write_dataset(folder, num_sft, num_rl, num_eval, seed=0, world=WORLD)


def make_model(folder, records, *, vocab=512, scale=3.0, **overrides) -> None:
    """A random checkpoint with a tokenizer trained on the records."""
    source = RecordSource(records)
    texts = []
    for record in (source[i] for i in range(len(source))):
        texts += [render_text(build_messages(record)), build_target(record)]
    tokenizer = train_tiny_tokenizer(texts, vocab)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("bos", "<|endoftext|>"),
            ("eos", "<|im_end|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
            ("vision", "<|vision_pad|>"),
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
        )
    }
    config = parse_config(tiny_values(vocab_size=vocab, **ids, **overrides))
    params = vlm.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * scale, params)  # so that a few steps show
    write_checkpoint(folder, params, config)
    tokenizer.save_pretrained(folder)


def load_recipe(name: str):
    """`get_config()` of a file in configs/."""
    folder = str(ROOT / "configs")
    sys.path.insert(0, folder)
    try:
        return __import__(name).get_config()
    finally:
        sys.path.remove(folder)


def sft_config(model, records, **changes):
    """configs/sft_7b.py on the tiny model; `changes` by dotted path, `data__rows=8`."""
    config = load_recipe("sft_7b")
    config.model.init_from = str(model)
    config.model.dtype = "float32"
    config.data.records = str(records)
    config.data.rows = 8
    config.data.row_tokens = 256
    config.data.multiple = 64
    config.data.max_buckets = 1
    config.data.threads = 2
    config.media.min_frames = config.media.max_frames = 4
    config.media.min_pixels = config.media.max_pixels = 56 * 56
    config.optim.lr = 1e-3
    config.train.accumulate = 1
    config.train.max_steps = 5
    config.mesh.data, config.mesh.fsdp = -1, 1
    for path, value in changes.items():
        *sections, field = path.split("__")
        target = config
        for section in sections:
            target = target[section]
        target[field] = value
    return config


def metrics(workdir) -> list[dict]:
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
