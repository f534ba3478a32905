"""Frames back out of patches, and in another order, against the frames they were cut from."""

import hf_twin as hf
import numpy as np

from videorft_jax.data.batch import layout, patches
from videorft_jax.data.batch.frames import rebuild_frames, shuffle_frames
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values

PAIRS = [[3], [2], [1], []]  # Frame pairs of each sample, by row of `make_batch`.


def make_batch():
    """Rows of different clips in one shape: odd frames, windows left over, an image, text alone."""
    rng = np.random.default_rng(0)
    config = parse_config(tiny_values())
    clips = [
        hf.random_clip(rng, 6, 3, 5, 2.0),
        hf.random_clip(rng, 3, 2, 2, 1.0),
        hf.random_clip(rng, 1, 5, 4, None),
    ]
    samples = [hf.make_sample(rng, config, [2, clip, 3]) for clip in clips]
    samples.append(hf.make_sample(rng, config, [2, 3]))
    return [clip.frames for clip in clips], layout.pack([[s] for s in samples], 64, 4, 6)


def test_frames_come_back():
    frames, batch = make_batch()
    np.testing.assert_array_equal(rebuild_frames(batch, 0, PAIRS[0]), frames[0])
    np.testing.assert_array_equal(rebuild_frames(batch, 1, PAIRS[1]), frames[1][[0, 1, 2, 2]])
    np.testing.assert_array_equal(rebuild_frames(batch, 2, PAIRS[2]), frames[2][[0, 0]])
    assert rebuild_frames(batch, 3, PAIRS[3]) is None


def test_shuffled_frames_are_the_frames_in_another_order():
    frames, batch = make_batch()
    keys = [(0, 7, row) for row in range(4)]
    shuffled = shuffle_frames(batch, keys, PAIRS)
    found = rebuild_frames(shuffled, 0, PAIRS[0])
    order = [int(np.flatnonzero((frame == frames[0]).all((1, 2, 3)))[0]) for frame in found]
    assert sorted(order) == list(range(6))
    assert order != list(range(6))
    for name in batch._fields:
        if name != "patches":
            np.testing.assert_array_equal(getattr(shuffled, name), getattr(batch, name))
    unused = ~batch.patch_valid
    np.testing.assert_array_equal(shuffled.patches[unused], batch.patches[unused])
    again = shuffle_frames(batch, keys, PAIRS)
    np.testing.assert_array_equal(again.patches, shuffled.patches)
    other = shuffle_frames(batch, [(0, 8, row) for row in range(4)], PAIRS)
    assert (rebuild_frames(other, 0, PAIRS[0]) != found).any()


def test_clips_of_different_sizes_in_one_row():
    """Each is found again, the second resized to the first one's size; each is shuffled alone."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 255, (4, 56, 84, 3), np.uint8)
    second = np.full((2, 112, 56, 3), 77, np.uint8)
    media = [patches.make_media(first, 2.0), patches.make_media(second, 2.0)]
    counts = [item.num_tokens for item in media]
    tokens = np.zeros(sum(counts) + 3, np.int32)
    starts = [1, 2 + counts[0]]
    sample = layout.make_sample(tokens, tokens > 0, starts, media)
    batch = layout.pack([[sample]], 128, 3, 4)
    frames = rebuild_frames(batch, 0, [2, 1])
    assert np.array_equal(frames[:4], first)
    assert frames.shape == (6, 56, 84, 3)
    assert (frames[4:] == 77).all()
    other = rebuild_frames(shuffle_frames(batch, [(7,)], [[2, 1]]), 0, [2, 1])
    assert (other[4:] == 77).all()
    assert sorted(f.tobytes() for f in other[:4]) == sorted(f.tobytes() for f in first)
    assert not np.array_equal(other[:4], first)


def test_frames_stay_within_their_clip():
    """Two clips and an image of one size: each clip keeps its own frames, and the image both of
    its equal ones, wherever the shuffling moves them."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 255, (6, 56, 56, 3), np.uint8) for _ in range(2)]
    image = rng.integers(0, 255, (1, 56, 56, 3), np.uint8)
    shown = [(clips[0], 2.0), (image, None), (clips[1], 1.0)]
    media = [patches.make_media(frames, fps) for frames, fps in shown]
    tokens, starts = np.zeros(40, np.int32), [1, 14, 19]
    batch = layout.pack([[layout.make_sample(tokens, tokens > 0, starts, media)]], 64, 8, 1)
    counts = [3, 1, 3]
    found = rebuild_frames(shuffle_frames(batch, [(7,)], [counts]), 0, counts)
    first, still, second = np.split(found, [6, 8])
    assert (still == image).all()
    for frames, clip in ((first, clips[0]), (second, clips[1])):
        assert sorted(f.tobytes() for f in frames) == sorted(f.tobytes() for f in clip)
        assert not np.array_equal(frames, clip)
