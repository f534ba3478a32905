"""Patch slots against Hugging Face's processor, positions against its `get_rope_index`."""

import pathlib
import types

import hf_twin as hf
import numpy as np
import pytest
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from videorft_jax.data.batch import layout, patches
from videorft_jax.models.geometry import WINDOWED_14
from videorft_jax.models.pixels import normalise
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values

DATA = pathlib.Path(__file__).parents[1] / "golden"


def in_reference_order(media):
    """Rows of the slots as the processor orders them: pair, then merged tokens, raster order."""
    rows = {}
    patches = media.patches
    for pair in range(len(patches)):
        for window, slot in np.argwhere(media.valid):
            row, column = media.hw[window, slot]
            key = (pair, row // 2, column // 2, row % 2, column % 2)
            rows[tuple(int(part) for part in key)] = patches[pair, window, slot]
    return np.stack([rows[key] for key in sorted(rows)])


@pytest.mark.parametrize("name", ["video_processor_1", "image_processor_1"])
def test_pixels_equal_the_processor(name):
    """From resized frames on, to the last bit: five frames (the last repeated), and an image."""
    golden = np.load(DATA / f"{name}.npz")
    frames = golden["frames"] if "frames" in golden else golden["image"][None]
    media = patches.make_media(frames, fps=2.0 if "frames" in golden else None)
    pairs, height, width = golden["grid_thw"][0]
    assert media.grid == (pairs, height // 2, width // 2)
    ours = np.asarray(normalise(in_reference_order(media), WINDOWED_14))
    np.testing.assert_array_equal(ours, golden["pixel_values"])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (5, 4), (3, 9), (8, 8)])
def test_every_patch_has_one_slot(height, width):
    rng = np.random.default_rng(height * 10 + width)
    clip = hf.random_clip(rng, 3, height, width, 2.0)
    media = patches.make_media(clip.frames, clip.fps)
    assert media.patches.shape[1] == patches.num_windows(28 * height, 28 * width)
    assert media.valid.sum() == 4 * height * width
    expected, _ = hf.hf_patches(clip)
    np.testing.assert_array_equal(
        np.asarray(normalise(in_reference_order(media), WINDOWED_14)), expected.astype(np.float32)
    )
    # A window holds the patches of an 8 x 8 square and no others.
    for window, slot in np.argwhere(media.valid):
        row, column = media.hw[window, slot] // 8
        assert window == row * -(-width // 4) + column


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 8), (5, 4), (3, 9), (6, 7)])
def test_cutting_fills_any_memory_whatever_the_order_of_the_frames(height, width):
    """Oracle: the patches of plain frames, which equal the processor's above."""
    rng = np.random.default_rng(height * 10 + width)
    clip = hf.random_clip(rng, 6, height, width, 2.0)
    plain = patches.make_media(clip.frames, clip.fps)
    apart = np.ascontiguousarray(np.moveaxis(clip.frames, -1, 1)).transpose(0, 2, 3, 1)
    expected = np.zeros((3, plain.num_windows + 2, 64, 1176), np.uint8)
    for window, slot in np.argwhere(plain.valid):
        expected[:, window, slot] = plain.patches[:, window, slot]
    for frames in (clip.frames, apart, clip.frames[::-1][::-1]):
        out = np.full_like(expected, 7)
        patches.make_media(frames, clip.fps).cut(out)
        np.testing.assert_array_equal(out, expected)


def test_packing_into_used_memory_gives_the_same_batch():
    """Also when some samples stand cut in it already, at their own place or further on."""
    rng = np.random.default_rng(2)
    config = parse_config(tiny_values())
    parts = [hf.random_clip(rng, 3, 5, 3, 2.0), hf.random_clip(rng, 5, 2, 6, 1.0)]
    samples = [hf.make_sample(rng, config, [2, part, 3]) for part in parts]
    rows, shape = [[samples[1]], [samples[0], samples[1]], []], (140, 7, 3)
    fresh = layout.pack(rows, *shape)
    assert not fresh.patches[0, 3:].any()
    assert not fresh.patches[2].any()
    for starts in ((0, 2), (1, 4)):  # Row 1 holds two samples.
        memory = rng.integers(0, 256, fresh.patches.shape, np.uint8)
        placed = []
        for sample, start in zip(rows[1], starts, strict=True):
            item = sample.media[0]
            place = memory[1, start : start + item.grid[0]]
            item.cut(place)
            media = (item._replace(planes=None, slots=place),)
            placed.append(sample._replace(media=media))
        batch = layout.pack([rows[0], placed, []], *shape, memory)
        assert batch.patches is memory
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(batch, name), getattr(fresh, name), name)


def test_positions_equal_get_rope_index_on_random_grids():
    config = parse_config(tiny_values())
    rng = np.random.default_rng(5)
    reference = types.SimpleNamespace(
        config=types.SimpleNamespace(
            vision_config=types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
        ),
    )
    reference.get_vision_position_ids = types.MethodType(
        Qwen2_5_VLModel.get_vision_position_ids, reference
    )
    for _ in range(50):
        clips = []
        parts = [int(rng.integers(1, 6))]
        for _ in range(rng.integers(1, 4)):
            frames, height, width = rng.integers(1, 7, 3)
            fps = None if rng.random() < 0.3 else float(rng.uniform(0.2, 8))
            clip = hf.random_clip(rng, 1 if fps is None else frames, height, width, fps)
            clips.append(clip)
            parts += [clip, int(rng.integers(1, 6))]
        sample = hf.make_sample(rng, config, parts, rule="hf5")
        inputs, _ = hf.hf_inputs(config, [sample], [clips], length=len(sample.tokens))
        expected, _ = Qwen2_5_VLModel.get_rope_index(
            reference,
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            inputs.get("image_grid_thw"),
            inputs.get("video_grid_thw"),
            inputs.get("second_per_grid_ts"),
            inputs["attention_mask"],
        )
        np.testing.assert_array_equal(sample.positions, expected[:, 0].numpy())


@pytest.mark.parametrize(
    ("frames", "grid", "fps", "qwen", "hf5"),
    [
        (16, (8, 16), 2.0, 31, 31),
        (16, (8, 16), 1.0, 44, 31),
        (32, (8, 16), 2.0, 46, 31),
        (64, (10, 13), 2.0, 78, 28),
    ],
)
def test_first_text_position_after_a_video(frames, grid, fps, qwen, hf5):
    """Worked examples of the two rules after 15 text tokens: where 4.49 and 5.23 disagree."""
    item = patches.Media(None, (frames // 2, *grid), 2 / fps, WINDOWED_14)
    for rule, first in (("qwen", qwen), ("hf5", hf5)):
        positions = layout.mrope_positions(15 + item.num_tokens + 2, [15], [item], rule)
        assert positions[:, -2].tolist() == [first] * 3
        assert positions[:, -1].tolist() == [first + 1] * 3


@pytest.mark.parametrize(
    ("fps", "times", "after"),
    [
        (2.0, range(15, 31, 2), 30),
        (1.3, range(15, 31, 2), 30),
        (0.7, range(15, 47, 4), 44),
        (2.4, [15] * 8, 18),
    ],
)
def test_rule_hf4_cuts_the_seconds_of_a_pair(fps, times, after):
    """What `get_rope_index` of transformers 4.57.1 gave for eight pairs of 2 x 3 tokens."""
    item = patches.Media(None, (8, 2, 3), 2 / fps, WINDOWED_14)
    positions = layout.mrope_positions(15 + 48 + 2, [15], [item], "hf4")
    assert positions[0, 15:63:6].tolist() == list(times)
    assert positions[:, -2:].tolist() == [[after, after + 1]] * 3


def test_visual_index_finds_the_token_of_each_slot():
    """Every visual token names the slot that holds its own four patches."""
    rng = np.random.default_rng(1)
    config = parse_config(tiny_values())
    clips = [hf.random_clip(rng, 3, 5, 3, 2.0), hf.random_clip(rng, 1, 2, 6, None)]
    sample = hf.make_sample(rng, config, [2, clips[0], 1, clips[1], 3])
    batch = layout.pack([[], [sample, sample]], 140, 6, 3)
    assert batch.segment_ids[0].max() == 0
    values = batch.patches.reshape(2, -1, 4 * 1176)  # four slots to a token
    for segment in (1, 2):
        span = np.flatnonzero(batch.segment_ids[1] == segment)
        index = batch.visual_index[1, span]
        got = values[1, index[index >= 0]]
        expected = [in_reference_order(item).reshape(-1, 4 * 1176) for item in sample.media]
        np.testing.assert_array_equal(got, np.concatenate(expected))


def test_bad_input():
    with pytest.raises(ValueError, match="sides must be multiples of 28"):
        patches.make_media(np.zeros((2, 30, 56, 3), np.uint8), 2.0)
    with pytest.raises(ValueError, match=r"expected uint8 \[n, h, w, 3\]"):
        patches.make_media(np.zeros((2, 28, 28, 3), np.float32), 2.0)
    with pytest.raises(ValueError, match="sampled fps is 0"):
        patches.make_media(np.zeros((2, 28, 28, 3), np.uint8), 0.0)
    item = patches.make_media(np.zeros((2, 56, 56, 3), np.uint8), 2.0)
    with pytest.raises(ValueError, match="do not fit a prompt of 5"):
        layout.mrope_positions(5, [2], [item])
    with pytest.raises(ValueError, match="mrope_rule is 'old'"):
        layout.mrope_positions(9, [2], [item], "old")
    sample = layout.make_sample(np.arange(9), np.zeros(9), [2], [item])
    with pytest.raises(ValueError, match="row 0: 9 tokens, 1 frame pairs, 1 windows do not fit"):
        layout.pack([[sample]], 8, 1, 1)
