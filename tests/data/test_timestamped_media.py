"""Sampling, sizes and prompts of models that read timestamps, against transformers' processor."""

import copy
import dataclasses
import functools
import pathlib
import types

import numpy as np
import pytest
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    Qwen3VLVideoProcessor,
    smart_resize,
)
from transformers.video_utils import VideoMetadata

from videorft_jax.data.media.contract import MediaContract, MediaError
from videorft_jax.data.media.sampling import num_sampled, pair_times, sample_frames, target_size
from videorft_jax.data.records.render import render, write_media
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.geometry import PLAIN_16, WINDOWED_14

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LEAST, MOST = 4_096, 25_165_824  # size.shortest_edge and longest_edge of the hub's files


def processor_contract(**changes):
    """The rules of transformers' video processor with the values of the hub."""
    contract = dataclasses.replace(
        MediaContract.evaluate(PLAIN_16),
        sampling="hf",
        budget="clip",
        min_frames=4,
        max_frames=768,
        min_pixels=LEAST,
        max_pixels=MOST,
        total_pixels=MOST,
    )
    return dataclasses.replace(contract, **changes)


def test_indices_and_times_equal_the_processor():
    """2,000 random clips; odd counts among them, whose last frame stands for a pair."""
    rng = np.random.default_rng(0)
    processor, odd = Qwen3VLVideoProcessor(), 0
    for _ in range(2000):
        total = int(rng.integers(4, 4000))
        rate = float(rng.choice([23.976, 24.0, 25.0, 29.97, 30.0, 59.94, rng.uniform(5, 60)]))
        fps = float(rng.choice([0.5, 1.0, 2.0, 4.0]))
        most = int(rng.choice([16, 33, 128, 768]))
        processor.min_frames, processor.max_frames = 4, most
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        wanted = processor.sample_frames(metadata, fps=fps)
        contract = processor_contract(fps=fps, max_frames=most)
        sampling = sample_frames(np.arange(total) / rate, rate, contract)
        np.testing.assert_array_equal(sampling.indices, wanted)
        times = Qwen3VLProcessor._calculate_timestamps(None, wanted, rate, 2)
        assert sampling.stamps == tuple(times)
        odd += len(wanted) % 2
    assert odd > 100


def test_sizes_equal_the_processor():
    rng = np.random.default_rng(1)
    contract = processor_contract()
    for _ in range(2000):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(4000), 2)))
        frames = int(rng.integers(2, 769))
        try:
            wanted = smart_resize(
                frames, height, width, factor=32, min_pixels=LEAST, max_pixels=MOST
            )
        except ValueError:
            with pytest.raises(MediaError, match="aspect_ratio"):
                target_size(height, width, frames, contract)
            continue
        assert target_size(height, width, frames, contract) == wanted


def test_frames_and_sizes_equal_qwen_vl_utils():
    """What `_read_video_torchvision` and `fetch_video(image_patch_size=16)` of qwen-vl-utils 0.0.14
    took of 2,000 random clips: how many frames, a sum of their numbers by place, and the size."""
    rows = np.load(GOLDEN / "qwen_utils_16.npz")["rows"].astype(np.int64).tolist()
    bounds = {"min_pixels": 128, "max_pixels": 768, "total_pixels": 115_200}  # in visual tokens
    bounds = {name: tokens * PLAIN_16.unit**2 for name, tokens in bounds.items()}
    defaults = dataclasses.replace(MediaContract.evaluate(PLAIN_16), min_frames=4, **bounds)
    assert len(rows) == 2000
    shrunk = 0
    for total, rate, fps, most, height, width, count, places, *wanted in rows:
        contract = dataclasses.replace(defaults, fps=fps / 10, max_frames=most)
        seconds = np.arange(total) / (rate / 1000)
        indices = sample_frames(seconds, rate / 1000, contract).indices
        assert len(indices) == count
        assert (indices * (np.arange(count) + 1)).sum() == places
        size = target_size(height, width, count, contract)
        assert size == tuple(wanted)
        shrunk += height * width > contract.total_pixels / count * 2 < contract.max_pixels
    assert shrunk > 5  # where the budget of a whole clip decides


@pytest.mark.parametrize(
    ("frames", "size"),
    [(16, (704, 1280)), (32, (640, 1152)), (64, (448, 832)), (256, (224, 416)), (768, (128, 224))],
)
def test_a_720p_clip_shrinks_with_its_frames(frames, size):
    assert target_size(720, 1280, frames, processor_contract()) == size
    by_frame = dataclasses.replace(MediaContract.train(PLAIN_16), max_pixels=768 * 32 * 32)
    assert target_size(720, 1280, 64, by_frame) == (640, 1152)  # qwen-vl-utils keeps frames large


def test_true_times_differ_where_the_rate_varies():
    seconds = np.array([0.0, 0.1, 0.2, 2.0, 4.0, 6.0])
    contract = processor_contract(num_frames=6)
    assert sample_frames(seconds, 1.0, contract).stamps == (0.5, 2.5, 4.5)
    contract = dataclasses.replace(contract, stamps="time")
    np.testing.assert_allclose(sample_frames(seconds, 1.0, contract).stamps, (0.05, 1.1, 5.0))
    assert pair_times(np.array([1.0, 2.0, 5.0]), 2) == (1.5, 5.0)
    with pytest.raises(MediaError, match="too_few_frames"):
        num_sampled(1, 1.0, contract)


def test_contracts_keep_their_digests_and_tell_the_new_fields():
    """The digest of the paper's contract as it was before these fields."""
    paper = MediaContract.train()
    assert paper.digest.startswith(PAPER_DIGEST)
    assert not set(MediaContract.LATER) & set(paper.to_dict())
    for change in ({"budget": "clip"}, {"stamps": "time"}, {"video_wrapper": "hf5"}):
        other = dataclasses.replace(paper, **change)
        assert other.digest != paper.digest
        assert MediaContract.from_dict(other.to_dict()) == other
        assert next(iter(change)) in paper.diff(other)
    assert MediaContract.train(PLAIN_16).digest != paper.digest
    assert MediaContract.train(PLAIN_16).max_pixels == 128 * 32 * 32
    with pytest.raises(ValueError, match="video_wrapper is 'old'; choose one of"):
        dataclasses.replace(paper, video_wrapper="old")
    with pytest.raises(ValueError, match="choose patches of 14 or 16 pixels"):
        dataclasses.replace(paper, patch_size=15)


PAPER_DIGEST = "3f94caaea4a012e8"


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["What moves? <0.3 seconds> 1.6 seconds 12.4 seconds user assistant\n" * 4]
    return train_tiny_tokenizer(texts, 300)


@pytest.mark.parametrize("wrapper", ["qwen", "hf5"])
def test_prompts_equal_the_processor(tokenizer, wrapper):
    """The installed transformers wraps a clip once more (`hf5`); the rule of 4.57, by which the
    weights were trained, replaces the template's markers by the pairs (`qwen`)."""
    contract = processor_contract(video_wrapper=wrapper)
    times, grid = (0.25, 1.55, 12.449), (3, 2, 5)
    media = write_media(grid, times, contract)
    parts = [{"type": "text", "text": "See: "}, {"type": "video"}, {"type": "text", "text": "Q?"}]
    messages = [{"role": "user", "content": parts}]
    prompt = render(tokenizer, messages, [media], geometry=PLAIN_16)
    pairs = "".join(
        f"<{t:.1f} seconds><|vision_start|>{'<|video_pad|>' * 10}<|vision_end|>" for t in times
    )
    if wrapper == "hf5":
        pairs = f"<|vision_start|>{pairs}<|vision_end|>"
    text = f"<|im_start|>user\nSee: {pairs}Q?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tokens.tolist() == tokenizer(text)["input_ids"]
    spans = prompt.visual_spans
    assert len(spans) == 3
    pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert all((prompt.tokens[slice(*span)] == pad).all() for span in spans)


def test_the_wrapper_is_that_of_the_installed_processor(tokenizer):
    """`hf5` is what `Qwen3VLProcessor` of this transformers puts in place of a clip's one pad."""
    indices, grid = [0, 10, 20, 29, 39], (3, 3, 2)
    processor = types.SimpleNamespace(
        video_processor=types.SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
        _calculate_timestamps=functools.partial(Qwen3VLProcessor._calculate_timestamps, None),
    )
    inputs = {
        "video_grid_thw": np.array([[grid[0], 2 * grid[1], 2 * grid[2]]]),
        "video_metadata": [VideoMetadata(40, fps=8.0, frames_indices=list(indices))],
    }
    theirs = Qwen3VLProcessor.replace_video_token(processor, inputs, 0)
    text = f"<|im_start|>user\n<|vision_start|>{theirs}<|vision_end|>Q?<|im_end|>\n"
    theirs = tokenizer(text)["input_ids"]
    stamps = pair_times(np.array(indices) / 8.0, 2)
    media = write_media(grid, stamps, processor_contract(video_wrapper="hf5"))
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Q?"}]}]
    ours = render(tokenizer, messages, [media], geometry=PLAIN_16).tokens.tolist()
    assert ours[: len(theirs)] == theirs


def test_a_thinking_template_is_refused(tokenizer):
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
        "{% if p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% elif p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="Thinking edition.*use the Instruct edition"):
        render(thinking, messages, [], geometry=PLAIN_16)
    assert WINDOWED_14.default_system
    first = tokenizer.decode(render(tokenizer, messages, [], geometry=PLAIN_16).tokens[:3])
    assert first.startswith("<|im_start|>user")  # no system turn of its own
