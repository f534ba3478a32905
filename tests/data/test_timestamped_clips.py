"""Clips of a model that reads timestamps on their way to a batch: a cache keeps their pixels and
times, and what `videorft validate` tells before decoding is what decoding gives."""

import dataclasses
import json

import numpy as np
import pytest
from test_pipeline import make_loader

from videorft_jax.commands import validate as validate_command
from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.loader.cache import FrameCache
from videorft_jax.data.loader.cache_writer import write_cache
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.sampling import pair_times
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import WorldConfig, write_dataset
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.geometry import PLAIN_16

# Of a clip of twelve frames the processor of transformers takes five, of 64 x 64 pixels each.
CHANGES = {
    "sampling": "hf", "min_frames": 3, "max_frames": 5, "min_pixels": 1024, "max_pixels": 4096,
}  # fmt: skip
CONTRACT = dataclasses.replace(MediaContract.train(PLAIN_16), **CHANGES)
STAMPS = "<0.1 seconds> 1.2 seconds 34.5 seconds 67.8 seconds 9.0 seconds"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Eight records of clips and pictures, a tokenizer and a cache of what they show."""
    folder = tmp_path_factory.mktemp("data")
    world = WorldConfig(size=(96, 96), num_frames=12, still_every=1)
    files = write_dataset(folder, 8, 0, 0, seed=0, world=world)
    source = RecordSource(files["sft"])
    texts = [source[i].process for i in range(8)] + [STAMPS] * 8
    tokenizer = train_tiny_tokenizer(texts, 400, PLAIN_16)
    tokenizer.save_pretrained(folder / "tokenizer")
    added, failures = write_cache(source, CONTRACT, folder / "cache", threads=2)
    assert (added, list(failures)) == (8, [])
    return folder, source, tokenizer


def decode(source, index):
    record = source[index]
    return load_media(record.path, source.data_root, CONTRACT, kind=record.data_type)


def test_a_cache_holds_the_frames_and_their_times(place):
    folder, source, _ = place
    cache, seen = FrameCache(folder / "cache", CONTRACT), set()
    for i in range(8):
        record, clip = source[i], decode(source, i)
        kept = cache.get(record.path, record.media[0], source.data_root)
        for name in ("frames", "timestamps", "indices", "stamps"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(clip, name), name)
        if record.data_type == "video":
            assert kept.frames.shape == (5, 64, 64, 3)  # An odd count, whose last frame repeats.
            assert kept.stamps == pair_times(kept.indices / 4.0, 2)
        seen.add(record.data_type)
    assert seen == {"video", "image"}


def test_a_loader_gives_the_same_batches_from_a_cache(place):
    folder, source, tokenizer = place
    cache = FrameCache(folder / "cache", CONTRACT)
    loaders = [
        make_loader(source, tokenizer, {"epochs": 1}, CONTRACT, cache=kept)
        for kept in (None, cache)
    ]
    assert loaders[0].digest == loaders[1].digest
    with loaders[0].steps() as decoded, loaders[1].steps() as cached:
        for ours, theirs in zip(decoded, cached, strict=True):
            for name in Batch._fields:
                np.testing.assert_array_equal(
                    getattr(ours.batch, name), getattr(theirs.batch, name), name
                )


@pytest.mark.parametrize("quick", [(), ("--quick",)], ids=["decoded", "quick"])
def test_validate_tells_what_decoding_gives(place, tmp_path, quick):
    """Visual tokens, frames and the shapes of the batches, `--quick` from the packets alone."""
    folder, source, tokenizer = place
    path = tmp_path / "report.json"
    given = [f"--data={folder / 'sft.jsonl'}", f"--json={path}", "--config=sft_qwen3vl_4b", *quick]
    given += [f"--config.media.{name}={value}" for name, value in CHANGES.items()]
    given += [f"--tokenizer={folder / 'tokenizer'}", "--rows=6", "--row_tokens=1024"]
    assert validate_command.main([*given, "--mode=sft"]) == 0
    report = json.loads(path.read_text())
    assert report["media_contract"]["digest"] == CONTRACT.digest
    clips = [decode(source, i) for i in range(8)]
    pairs = [-(-len(clip.frames) // 2) for clip in clips]
    tokens = [
        n * np.prod(clip.frames.shape[1:3]) // 32**2 for n, clip in zip(pairs, clips, strict=True)
    ]
    assert report["visual_tokens"]["max"] == max(tokens) == 12
    assert report["visual_tokens"]["mean"] == np.mean(tokens)
    assert report["frames"]["mean"] == np.mean([len(clip.frames) for clip in clips])
    sizes = {"epochs": 1, "seed": 0, "max_buckets": 4, "multiple": 128}
    loader = make_loader(source, tokenizer, sizes, CONTRACT)
    shapes = [tuple(s[k] for k in ("length", "pairs", "windows")) for s in report["plan"]["shapes"]]
    assert shapes == [tuple(bucket)[:3] for bucket in loader.buckets]
