"""Visual tokens, logits, loss and every gradient against Hugging Face on the same weights."""

import functools

import hf_twin as hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values

# Each case: config overrides, then rows of parts (Clip(frames, h, w, fps) or text counts).
CASES = {
    # Grids that are no multiple of the window, an odd frame count, fractional seconds per grid.
    "odd_grids": ({}, [[(3, 3, 5, 1.3), 6, 4], [5, (4, 2, 6, 2.0), 3, 5]]),
    # Two clips and an image in one sample, of different grids and rates; a text-only row.
    "two_clips_and_image": (
        {"num_key_value_heads": 1},
        [[3, (4, 4, 5, 0.7), 2, (1, 5, 3, None), 4, (5, 2, 2, 3.9), 6, 7], [9, 5]],
    ),
    "tied": (
        {"tie_word_embeddings": True, "num_key_value_heads": 4,
         "vision_fullatt_block_indexes": [0]},
        [[2, (2, 5, 5, 2.0), 4, 3]],
    ),
    "deeper_text": (
        {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 2,
         "hidden_size": 64, "vision_out_hidden_size": 64},
        [[4, (1, 6, 5, None), 5, 5], [(6, 4, 4, 2.0), 3, 4]],
    ),
    "all_layers_full": (
        {"vision_depth": 3, "vision_fullatt_block_indexes": [0, 1, 2], "vision_num_heads": 4},
        [[1, (3, 3, 6, 1.0), 2, 3]],
    ),
    "no_layer_full": (
        {"vision_depth": 2, "vision_fullatt_block_indexes": [], "num_hidden_layers": 1},
        [[1, (2, 6, 3, 4.0), 2, 3], [(1, 1, 1, None), 8, 2]],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """One model, its inputs and one compiled step, shared by the tests of a case."""
    overrides, rows = CASES[request.param]
    seed = list(CASES).index(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    twin = hf.make_twin(folder, seed=seed, **overrides)
    rng = np.random.default_rng(seed)
    samples, clips = [], []
    for parts in rows:
        made = [hf.random_clip(rng, *p) if isinstance(p, tuple) else p for p in parts]
        samples.append(hf.make_sample(rng, twin.config, made))
        clips.append([part for part in made if isinstance(part, hf.Clip)])
    step = jax.jit(jax.value_and_grad(functools.partial(our_loss, twin.config), has_aux=True))
    return twin, samples, clips, step, folder


def place(samples, *, length, left):
    pairs = max(sample.num_pairs for sample in samples)
    windows = max(sample.num_windows for sample in samples)
    batch = layout.pack([[sample] for sample in samples], length, pairs + 1, windows + 1)
    if not left:
        return batch
    rolled = {}
    for field in ("tokens", "segment_ids", "loss_mask", "visual_index", "positions"):
        value = getattr(batch, field)
        rows = [
            np.roll(row, length - len(sample.tokens), axis=-1)
            for row, sample in zip(value, samples, strict=True)
        ]
        rolled[field] = np.stack(rows)
    return batch._replace(**rolled)


def our_loss(config, params, batch):
    model = family.bind(config, params)
    logits = model.logits(model.hidden_states(batch))
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(logprobs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    mask = batch.loss_mask[:, 1:]
    return -(picked * mask).sum() / mask.sum(), logits


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_logits_loss_and_gradients(case, left):
    twin, samples, clips, step, folder = case
    length = max(len(sample.tokens) for sample in samples) + 3
    batch = place(samples, length=length, left=left)
    inputs, labels = hf.hf_inputs(twin.config, samples, clips, length=length, left=left)
    expected = twin.hf(**inputs, labels=labels)

    (loss, logits), grads = step(twin.params, batch)
    real = batch.segment_ids > 0
    theirs = expected.logits.detach().numpy()[real]
    np.testing.assert_allclose(np.asarray(logits)[real], theirs, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=1e-5)

    twin.hf.zero_grad()
    expected.loss.backward()
    their_grads = hf.gradients(folder / "gradients", twin)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    assert len(paths) == len(jax.tree.leaves(their_grads))
    for (path, ours), wanted in zip(paths, jax.tree.leaves(their_grads), strict=True):
        wanted = np.asarray(wanted)
        error = np.abs(np.asarray(ours) - wanted).max()
        assert error <= 1e-4 * np.abs(wanted).max() + 1e-8, jax.tree_util.keystr(path)


def test_visual_tokens(case):
    twin, samples, clips, _, _ = case
    encode = jax.jit(lambda p, b: family.bind(twin.config, p).encode_vision(b))
    pairs = max(sample.num_pairs for sample in samples)
    windows = max(sample.num_windows for sample in samples)
    for sample, row_clips in zip(samples, clips, strict=True):
        if not row_clips:
            continue
        batch = layout.pack([[sample]], len(sample.tokens), pairs, windows)
        index = batch.visual_index[0]
        got = np.asarray(encode(twin.params, batch))[0, index[index >= 0]]
        wanted = []
        for clip in row_clips:
            rows, grid = hf.hf_patches(clip)
            out = twin.hf.model.visual(torch.tensor(rows), grid_thw=torch.tensor([grid]))
            wanted.append(out.pooler_output.detach().numpy())
        wanted = np.concatenate(wanted)
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_greedy_decoding_is_token_identical(tmp_path):
    """48 tokens from a video prompt and, in the same batch, a longer one with an image."""
    twin = hf.make_twin(tmp_path, seed=11, num_hidden_layers=3)
    rng = np.random.default_rng(11)
    rows = [[4, (4, 3, 5, 1.3), 6], [3, (3, 2, 2, 2.0), 4, (1, 4, 4, None), 11]]
    samples, clips = [], []
    for parts in rows:
        made = [hf.random_clip(rng, *p) if isinstance(p, tuple) else p for p in parts]
        samples.append(hf.make_sample(rng, twin.config, made))
        clips.append([part for part in made if isinstance(part, hf.Clip)])
    length = max(len(sample.tokens) for sample in samples)
    inputs, _ = hf.hf_inputs(twin.config, samples, clips, length=length, left=True)
    wanted = twin.hf.generate(
        **inputs, max_new_tokens=48, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, length:].numpy()

    batch = place(samples, length=length, left=False)
    np.testing.assert_array_equal(hf.decode_greedily(twin, batch, 48), wanted)


def test_one_compile_for_different_clips_of_a_bucket():
    config = parse_config(tiny_values())
    params = family.init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    step = jax.jit(lambda params, batch: family.bind(config, params).hidden_states(batch))
    for _ in range(10):
        clip = hf.random_clip(rng, *rng.integers(1, 6, 3), fps=float(rng.uniform(0.5, 4)))
        parts = [int(rng.integers(1, 9)), clip, int(rng.integers(1, 9))]
        sample = hf.make_sample(rng, config, parts)
        step(params, layout.pack([[sample]], 128, 3, 4))
    assert step._cache_size() == 1
