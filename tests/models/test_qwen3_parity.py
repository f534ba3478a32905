"""Qwen3-VL against Hugging Face's own model: logits, gradients, greedy tokens and positions."""

import copy
import functools

import hf_twin as hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from videorft_jax.data.batch import layout
from videorft_jax.models import family, layers
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.geometry import PLAIN_16
from videorft_jax.models.qwen3_vl.text import TextAttention

# A row mixes counts of text tokens with clips (frames, tokens down, tokens across, fps); fps None
# is an image. Grids of 2 and of 96 patches a side read the table of 8 x 8 positions at its corners
# alone, and more finely than it is.
CASES = {
    "two_clips_and_an_image": (
        {},
        [
            [3, (4, 3, 5, 2.0), 4, (3, 2, 2, 1.0), 5, (1, 4, 3, None), 6],
            [2, (5, 1, 4, 2.0), 3, 4],
        ],
    ),
    "tied_fine_grid": (
        {"tie_word_embeddings": True, "vision_num_heads": 1, "num_key_value_heads": 4},
        [[2, (2, 1, 48, 1.0), 3], [7, 2]],
    ),
    "deepstack_everywhere_packed": (
        {"vision_deepstack_visual_indexes": [1, 2, 3], "num_key_value_heads": 1},
        [[1, (2, 2, 3, 4.0), 2, 3], [(1, 1, 1, None), 8, 2]],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """One model, its inputs and one compiled step, shared by the tests of a case."""
    overrides, rows = CASES[request.param]
    seed = list(CASES).index(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    twin = hf.make_twin(folder, seed=seed, model_type="qwen3_vl", **overrides)
    samples, clips = make_rows(twin.config, rows, seed)
    step = jax.jit(jax.value_and_grad(functools.partial(our_loss, twin.config), has_aux=True))
    return twin, samples, clips, step, folder


def make_rows(config, rows, seed):
    rng = np.random.default_rng(seed)
    samples, clips = [], []
    for parts in rows:
        made = [hf.random_clip(rng, *p, unit=32) if isinstance(p, tuple) else p for p in parts]
        samples.append(hf.make_sample(rng, config, made))
        clips.append([part for part in made if isinstance(part, hf.Clip)])
    return samples, clips


def place(samples, extra=0, packed=False):
    """A row for each sample, or with `packed` all of them one behind the other in one row."""
    rows = [samples] if packed else [[sample] for sample in samples]
    length = max(sum(len(sample.tokens) for sample in row) for row in rows) + extra
    pairs = max(sum(sample.num_pairs for sample in row) for row in rows)
    windows = max(sample.num_windows for sample in samples)
    return layout.pack(rows, length, pairs + 1, windows + 1, geometry=PLAIN_16)


def our_loss(config, params, batch):
    model = family.bind(config, params)
    logits = model.logits(model.hidden_states(batch))
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(logprobs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    mask = batch.loss_mask[:, 1:]
    return -(picked * mask).sum() / mask.sum(), logits


def test_logits_loss_and_gradients(case):
    twin, samples, clips, step, folder = case
    batch = place(samples, extra=3, packed="packed" in folder.name)
    length = max(len(sample.tokens) for sample in samples)
    inputs, labels = hf.hf_inputs(twin.config, samples, clips, length=length)
    expected = twin.hf(**inputs, labels=labels)

    (loss, logits), grads = step(twin.params, batch)
    theirs = expected.logits.detach().numpy()[inputs["attention_mask"].numpy() > 0]
    ours = np.asarray(logits)[batch.segment_ids > 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
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


def test_greedy_decoding_is_token_identical(tmp_path):
    """48 tokens from a video prompt and, in the same batch, a longer one with an image."""
    twin = hf.make_twin(tmp_path, seed=11, model_type="qwen3_vl", num_hidden_layers=4)
    rows = [[4, (4, 3, 5, 1.3), 6], [3, (3, 2, 2, 2.0), 4, (1, 4, 4, None), 11]]
    samples, clips = make_rows(twin.config, rows, 11)
    batch = place(samples)
    length = batch.tokens.shape[1]
    inputs, _ = hf.hf_inputs(twin.config, samples, clips, length=length, left=True)
    wanted = twin.hf.generate(
        **inputs, max_new_tokens=48, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, length:].numpy()
    np.testing.assert_array_equal(hf.decode_greedily(twin, batch, 48), wanted)


def test_positions_equal_rope_index_on_random_rows(tmp_path):
    twin = hf.make_twin(tmp_path, model_type="qwen3_vl")
    rng = np.random.default_rng(5)
    for _ in range(200):
        parts = []
        for _ in range(rng.integers(1, 4)):
            frames, fps = (1, None) if rng.random() < 0.3 else (int(rng.integers(1, 8)), 2.0)
            size = rng.integers(1, 6, 2)
            parts += [
                int(rng.integers(1, 9)),
                hf.Clip(np.zeros((frames, *(32 * size), 3), np.uint8), fps),
            ]
        sample = hf.make_sample(rng, twin.config, [*parts, 3])
        length = len(sample.tokens)
        clips = [[part for part in parts if isinstance(part, hf.Clip)]]
        inputs, _ = hf.hf_inputs(twin.config, [sample], clips, length=length)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        wanted, delta = twin.hf.model.get_rope_index(**{n: inputs.get(n) for n in names})
        np.testing.assert_array_equal(sample.positions, wanted[:, 0].numpy())
        assert sample.positions.max() + 1 - length == delta.item()  # where decoding goes on


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model, its inputs, and a way to get how far our logits are from transformers'."""
    twin = hf.make_twin(tmp_path_factory.mktemp("plain"), model_type="qwen3_vl")
    samples, clips = make_rows(twin.config, CASES["two_clips_and_an_image"][1], 0)
    batch = place(samples)
    inputs, _ = hf.hf_inputs(twin.config, samples, clips, length=batch.tokens.shape[1])
    real = batch.segment_ids > 0
    theirs = twin.hf(**inputs).logits.detach().numpy()[real]

    def logits(params, axes=None, normed=True):
        model = family.bind(twin.config, params)
        model.text.axes = axes or model.text.axes
        with pytest.MonkeyPatch.context() as patch:
            if not normed:
                patch.setattr(TextAttention, "project", project_without_norms)
            return model.logits(model.hidden_states(batch))

    run = jax.jit(logits, static_argnames=("axes", "normed"))

    def error(params, **changes):
        """The largest difference, as a share of the largest of transformers' logits."""
        ours = np.asarray(run(params, **changes))[real]
        return np.abs(ours - theirs).max() / np.abs(theirs).max()

    return twin, inputs, real, error


def project_without_norms(self, x, cos, sin):
    q, k, v = (layers.linear(x, weight[...]) for weight in (self.q, self.k, self.v))
    return layers.rotate(q, cos, sin), layers.rotate(k, cos, sin), v


CHANGES = {
    "no first merger": ("vision/deepstack", lambda leaf: leaf.at[0].set(0)),
    "no second merger": ("vision/deepstack", lambda leaf: leaf.at[1].set(0)),
    "mergers swapped": ("vision/deepstack", lambda leaf: leaf[::-1]),
    "no scale of queries": ("text/layers/attn/q_norm", jnp.ones_like),
    "no scale of keys": ("text/layers/attn/k_norm", jnp.ones_like),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_deepstack_merger_and_norm_of_a_head_matters(plain, name):
    """The comparison with transformers tells when one of them is left out."""
    twin, _, _, error = plain
    (path, change), params = CHANGES[name], copy.deepcopy(twin.params)
    *way, last = path.split("/")
    place = functools.reduce(dict.__getitem__, way, params)
    place[last] = jax.tree.map(change, place[last])
    assert error(twin.params) < 1e-5
    assert error(params) > 1e-2


def test_heads_without_their_norms_are_told_from_transformers(plain):
    """Queries and keys as the first family has them, which are rotated as they are."""
    twin, _, _, error = plain
    assert error(twin.params, normed=False) > 1e-2


def test_positions_in_blocks_are_told_from_transformers(plain):
    """M-RoPE as the first family has it: a run of frequencies for each axis."""
    twin, _, _, error = plain
    axes = np.repeat(range(3), twin.config.text.mrope_section)
    assert error(twin.params, axes=tuple(axes.tolist())) > 1e-2


def test_bfloat16_costs_no_more_than_it_costs_transformers(plain):
    """Both sides compute in bfloat16 what transformers computes in float32."""
    twin, inputs, real, error = plain
    ours = error(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), twin.params))
    half = copy.deepcopy(twin.hf).bfloat16()
    exact = twin.hf(**inputs).logits.detach().numpy()[real]
    theirs = half(**inputs).logits.detach().float().numpy()[real]
    theirs = np.abs(theirs - exact).max() / np.abs(exact).max()
    assert 1e-4 < ours < 1.5 * theirs


def test_visual_tokens_of_a_head_dim_of_72(tmp_path):
    """The head dim of 8B, through the tower and the paths that hold any head dim."""
    sizes = {"vision_hidden_size": 144, "vision_num_heads": 2, "vision_depth": 2}
    twin = hf.make_twin(
        tmp_path, model_type="qwen3_vl", vision_deepstack_visual_indexes=[0], **sizes
    )
    samples, ((clip,),) = make_rows(twin.config, [[2, (4, 3, 6, 1.0), 2]], 3)
    batch = place(samples)
    index = batch.visual_index[0]
    rows, grid = hf.hf_patches(clip, PLAIN_16)
    out = twin.hf.model.visual(torch.tensor(rows), grid_thw=torch.tensor([grid]))
    wanted = [out.pooler_output, *out.deepstack_features]
    wanted = np.concatenate([part.detach().numpy() for part in wanted], axis=-1)
    for path in ("reference", "chunked"):
        encode = jax.jit(
            lambda p, b, path=path: family.bind(twin.config, p).encode_vision(
                b, plan=choose_plan(path)
            )
        )
        got = np.asarray(encode(twin.params, batch))[0, index[index >= 0]]
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
