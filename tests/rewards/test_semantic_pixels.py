"""The semantic reward of a SigLIP that was taught: it depends on what the clips show."""

import jax
import numpy as np
import pytest

from videorft_jax.demo.dataset import make_sample
from videorft_jax.demo.scenes import WorldConfig, draw_frames
from videorft_jax.demo.siglip import make_tokenizer, tiny_config, train_siglip
from videorft_jax.rewards.semantic import SemanticReward
from videorft_jax.rewards.sentences import describe

NUM_CLIPS = 96


def think(sample):
    return f"<think>{sample.record.process}</think>"


@pytest.fixture(scope="module")
def trained():
    """A SigLIP taught on 1000 clips, with the eval clips it has not seen."""
    world = WorldConfig(
        size=(56, 56),
        shape_size=0.3,
        travel=(0.3, 0.5),
        max_shapes=2,
        questions=("colour", "describe", "count"),
        still_every=0,
    )
    samples = [make_sample(world, 0, "sft", i) for i in range(1000)]
    last = np.stack([draw_frames(sample.scene)[-1] for sample in samples])
    captions = [sample.caption for sample in samples]
    captions += [describe(think(sample), "paper")[0] for sample in samples]
    tokenizer = make_tokenizer(captions)
    config = tiny_config(len(tokenizer), image_size=56, patch_size=14, text_length=32)
    calls, compiled = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name.endswith("/backend_compile_duration"))
    )
    siglip, losses = train_siglip(
        np.concatenate([last, last]),
        captions,
        config,
        tokenizer,
        num_steps=240,
        progress=lambda *call: calls.append((*call, sum(compiled))),
    )
    assert calls[-1][:3] == (240, 240, pytest.approx(losses[-1]))
    assert 0 < calls[-1][3] == calls[0][3]  # nothing on the way
    assert losses[-20:].mean() < 0.8 * losses[:20].mean()
    samples = [make_sample(world, 0, "eval", i) for i in range(NUM_CLIPS)]
    return siglip, samples, [draw_frames(sample.scene) for sample in samples]


def test_reward_depends_on_the_pixels(trained):
    siglip, samples, frames = trained
    reward = SemanticReward(siglip, batch_size=32, num_rollouts=1, num_frames=8, scale=1.0)
    completions = [[think(sample)] for sample in samples]

    def another(i):
        """The next clip that shows something else."""
        return next(
            j % NUM_CLIPS
            for j in range(i + 1, i + NUM_CLIPS)
            if samples[j % NUM_CLIPS].caption != samples[i].caption
        )

    def measure(clips):
        out = reward(clips, completions)
        assert out.stats["semantic/truncated"] == 0
        return out.scores[:, 0]

    right = measure(frames)
    for name, clips in (
        ("negative", [255 - clip for clip in frames]),
        ("another", [frames[another(i)] for i in range(NUM_CLIPS)]),
    ):
        gain = right - measure(clips)
        bound = gain.mean() - 3 * gain.std(ddof=1) / NUM_CLIPS**0.5
        assert bound > 0.1, (name, gain.mean(), bound)


def test_training_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 frames and 3 captions for batches of 64"):
        train_siglip(np.zeros((2, 8, 8, 3), np.uint8), ["a"] * 3, None, None, num_steps=1)
