"""Rollouts against Hugging Face, against the training path, and against themselves."""

import functools
import re

import hf_twin as hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import collectives, squeezed

from videorft_jax.data.batch import layout
from videorft_jax.models import family
from videorft_jax.models.compute_plan import choose_plan
from videorft_jax.models.kv_cache import KVCache
from videorft_jax.models.vision_language import next_position
from videorft_jax.parallel import sharding
from videorft_jax.rollout import clips as rollout_clips
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.mesh import reshape
from videorft_jax.rollout.sampling import SamplingConfig, media_ids

ROLLOUTS, NEW, LENGTH = 4, 12, 56
UIDS = np.array([7, 3, 11])
# Prompts of 17 to 49 tokens: a clip, a clip and an image, text alone.
ROWS = [[4, (4, 3, 5, 1.3), 6], [3, (3, 2, 2, 2.0), 4, (1, 4, 4, None), 11], [17]]


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return hf.make_twin(tmp_path_factory.mktemp("twin"), seed=11, num_hidden_layers=3)


@pytest.fixture(scope="module")
def samples(twin):
    rng = np.random.default_rng(11)
    made = [[hf.random_clip(rng, *p) if isinstance(p, tuple) else p for p in r] for r in ROWS]
    clips = [[part for part in row if isinstance(part, hf.Clip)] for row in made]
    return [hf.make_sample(rng, twin.config, row) for row in made], clips


@pytest.fixture(scope="module")
def batch(samples):
    return pack(samples[0])


def pack(samples):
    return layout.pack([[sample] for sample in samples], LENGTH, 3, 3)


@pytest.fixture(scope="module")
def sampling(twin):
    """One id in twelve ends a completion; pixels' ids and the last rows are never drawn."""
    return SamplingConfig(
        num_rollouts=ROLLOUTS, max_new_tokens=NEW, temperature=0.9,
        stop_ids=tuple(range(0, 300, 12)), pad_id=301,
        forbidden_ids=media_ids(twin.config), num_real_tokens=318,
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(twin, sampling):
    """Three batch grids, calls of at most five tokens."""
    engine = RolloutEngine(twin.config, sampling, dtype="float32", num_buckets=3, chunk=5)
    return engine, engine.prepare(twin.params)


@pytest.fixture(scope="module")
def drawn(base, batch):
    return base[0].rollout(base[1], batch, UIDS, seed=5, step=2)


def score(config, params, samples, out, temperature, dtype=jnp.float32):
    """Log-probabilities [B, R, C, V] by the training path: rows of prompt and completion."""
    rows = []
    for sample, tokens in zip(samples, out.tokens, strict=True):
        count = len(sample.tokens)
        for completion in tokens:
            following = sample.positions[0, -1] + 1 + np.arange(NEW, dtype=np.int32)
            row = sample._replace(
                tokens=np.concatenate([sample.tokens, completion]),
                loss_mask=np.zeros(count + NEW, bool),
                positions=np.concatenate([sample.positions, np.tile(following, (3, 1))], 1),
                visual_slot=np.pad(sample.visual_slot, ((0, 0), (0, NEW)), constant_values=-1),
            )
            rows.append([row])
    batch = layout.pack(rows, LENGTH + NEW, 3, 3)
    starts = np.repeat([len(s.tokens) for s in samples], out.tokens.shape[1]) - 1
    logits = np.asarray(_logits(config, dtype)(params, batch), np.float64)
    own = np.stack([row[start : start + NEW] for row, start in zip(logits, starts, strict=True)])
    own = own.reshape(*out.tokens.shape, -1) / temperature
    return (
        own
        - np.log(np.exp(own - own.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - own.max(-1, keepdims=True)
    )


@functools.cache
def _logits(config, dtype):
    @jax.jit
    def run(params, batch):
        model = family.bind(config, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
        return model.logits(model.hidden_states(batch))

    return run


def given(out):
    """bool [B, R, C], which places hold a drawn token."""
    return np.arange(out.tokens.shape[2]) < out.lengths[..., None]


def picked(scores, out):
    return np.take_along_axis(scores, out.tokens[..., None], -1)[..., 0][given(out)]


def test_logprobs_are_those_of_the_training_path(twin, samples, drawn, sampling):
    scores = score(twin.config, twin.params, samples[0], drawn, sampling.temperature)
    np.testing.assert_allclose(drawn.logprobs[given(drawn)], picked(scores, drawn), atol=2e-5)
    never = [*media_ids(twin.config), *range(318, 320)]
    mass = np.exp(scores[..., never]).sum(-1)[given(drawn)]
    assert mass.max() > 1e-3  # the mask has something to do
    np.testing.assert_allclose(drawn.truncation[given(drawn)], np.log1p(-mass), atol=1e-5)
    assert not np.isin(drawn.tokens[given(drawn)], never).any()
    assert not drawn.failed.any()


def test_completions_end_where_they_should(drawn, sampling):
    stops = np.isin(drawn.tokens, sampling.stop_ids) & given(drawn)
    np.testing.assert_array_equal(stops.any(-1), drawn.stopped)
    assert 0 < drawn.stopped.sum() < drawn.stopped.size
    first = np.where(stops.any(-1), stops.argmax(-1) + 1, NEW)
    np.testing.assert_array_equal(drawn.lengths, first)
    assert (drawn.tokens[~given(drawn)] == sampling.pad_id).all()
    assert not drawn.logprobs[~given(drawn)].any()


def test_cached_decoding_equals_the_full_forward(twin, samples, batch):
    """Hidden states of 8 random tokens after each prompt, two completions to a prompt."""
    config, rng = twin.config, np.random.default_rng(0)
    tokens = rng.integers(0, 300, (len(batch.tokens), 2, NEW)).astype(np.int32)
    text = config.text

    @jax.jit
    def run(params, batch, tokens):
        model = family.bind(config, params)
        _, keys, values = model.prefill(batch)
        suffix = (text.num_layers, *tokens.shape[:2], text.num_kv_heads, NEW, text.head_dim)
        valid = batch.segment_ids > 0
        cache = KVCache(keys, values, valid, jnp.zeros(suffix), jnp.zeros(suffix))
        start = next_position(batch)[:, None]

        def step(cache, inputs):
            index, token = inputs
            x = model.embed(token, None, None)
            hidden, cache = model.text.decode(x, start + index, cache, index)
            return cache, model.logits(hidden)

        return jax.lax.scan(step, cache, (jnp.arange(NEW), jnp.moveaxis(tokens, 2, 0)))[1]

    got = np.moveaxis(np.asarray(run(twin.params, batch, tokens)), 0, 2)[:, :, :-1]
    out = type("Out", (), {"tokens": tokens})
    # Place c of `score` predicts token c: what decoding says after token c - 1.
    wanted = score(config, twin.params, samples[0], out, 1.0)[:, :, 1:]
    got = np.asarray(jax.nn.log_softmax(got.astype(np.float64)))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_greedy_equals_hugging_face(twin, samples, batch):
    """Video, image and text prompts of different lengths in one batch, 24 tokens."""
    inputs, _ = hf.hf_inputs(twin.config, *samples, length=LENGTH, left=True)
    wanted = twin.hf.generate(
        **inputs, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, LENGTH:].numpy()
    sampling = SamplingConfig(max_new_tokens=24, temperature=0)
    engine = RolloutEngine(twin.config, sampling, dtype="float32", num_buckets=1)
    out = engine.rollout(engine.prepare(twin.params), batch, UIDS, seed=0)
    np.testing.assert_array_equal(out.tokens[:, 0], wanted)
    np.testing.assert_array_equal(out.truncation, out.logprobs)  # drawn with certainty


OTHER_MESHES = (2, 2, 2), (8, 1, 1), (1, 4, 2), (2, 1, 4)


def same(ours, wanted, rows=slice(None)):
    np.testing.assert_array_equal(ours.tokens, wanted.tokens[rows])
    np.testing.assert_array_equal(ours.lengths, wanted.lengths[rows])
    np.testing.assert_allclose(ours.logprobs, wanted.logprobs[rows], atol=2e-5)


def test_same_tokens_in_another_grid_and_without_compaction(twin, sampling, samples, drawn, base):
    assert drawn.counters["compactions"] > 0
    engine = RolloutEngine(
        twin.config, sampling, dtype="float32", num_buckets=1, prompt_lengths=(64, 50)
    )
    order = [1, 0]
    out = engine.rollout(
        engine.prepare(twin.params), pack([samples[0][i] for i in order]), UIDS[order],
        seed=5, step=2,
    )  # fmt: skip
    assert [key[0] for kind, key in engine.programs._made if kind == "prefill"] == [50]
    assert out.counters["compactions"] == 0
    same(out, drawn, order)


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 8), *(pytest.param(x, marks=pytest.mark.slow) for x in OTHER_MESHES)],
)
def test_same_tokens_on_eight_devices(twin, sampling, batch, drawn, sizes):
    """From parameters in the training layout, on a mesh of the rollout's own, with compaction;
    three prompts do not divide over the eight parts that hand them in. The model has two heads of
    keys, four of queries, and a tower of two heads and 40 channels."""
    training = sharding.make_mesh(fsdp=8)
    params = jax.device_put(twin.params, sharding.state_shardings(twin.params, training))
    engine = RolloutEngine(
        twin.config, sampling, reshape(training, sizes), rows_mesh=training,
        dtype="float32", num_buckets=2,
    )  # fmt: skip
    out = engine.rollout(engine.prepare(params), batch, UIDS, seed=5, step=2)
    assert out.counters["compactions"] > 0
    same(out, drawn)
    programs = {
        key[1]: p.as_text() for (kind, key), p in engine.programs._made.items() if kind == "decode"
    }
    assert len(programs) > (sizes != (1, 1, 8))  # All on one part: the spare rows go at once.
    for grid, program in programs.items():
        gathered = {dims for kind, dims, _ in collectives(program) if kind == "all-gather"}
        # Neither the cache nor logits; two maxima of each part of these, and queries, where devices
        # share a head: one of each device.
        shared, draws = sizes[2] // 2, (grid.rows, grid.slots)
        queries = squeezed((*draws, shared, twin.config.text.head_dim))
        maxima = {squeezed((*draws, sizes[2], 2))} if sizes[2] > 1 else set()
        assert gathered == maxima | ({queries} if shared > 1 else set())


def test_seed_step_and_uid_matter(base, batch, drawn):
    engine, params = base
    others = [(UIDS, 6, 2), (UIDS, 5, 3), (UIDS + 1, 5, 2)]
    for uids, seed, step in others:
        out = engine.rollout(params, batch, uids, seed=seed, step=step)
        assert (out.tokens[..., :3] != drawn.tokens[..., :3]).mean() > 0.5


def test_programs_are_compiled_once_and_memory_is_given_back(base, batch, drawn):
    engine, params = base
    before = sum(array.nbytes for array in jax.live_arrays())
    for seed in range(6):
        engine.rollout(params, batch, UIDS, seed=seed)
        if seed == 3:
            count = engine.num_compiles
    compiles = engine.programs.compiles
    assert compiles["prefill"] == 1
    assert compiles["decode"] <= 3
    assert compiles["compact"] <= 3  # pairs of three grids
    assert engine.num_compiles == count
    assert sum(array.nbytes for array in jax.live_arrays()) <= before


def test_limits_stream_and_counters(base, batch, drawn):
    engine, params = base
    limits = np.random.default_rng(1).integers(1, NEW + 1, (3, ROLLOUTS))
    limits[0, 0] = 1
    seen, ended = [], []
    out = engine.rollout(
        params, batch, UIDS, seed=5, step=2, limits=limits,
        on_ended=lambda tokens, lengths, has_ended: ended.append((lengths, has_ended)),
        on_tokens=lambda tokens, lengths: seen.append((tokens.copy(), lengths.copy())),
    )  # fmt: skip
    np.testing.assert_array_equal(out.lengths, np.minimum(drawn.lengths, limits))
    np.testing.assert_array_equal(out.tokens[given(out)], drawn.tokens[given(out)])
    np.testing.assert_array_equal(out.stopped, drawn.stopped & (drawn.lengths <= limits))
    assert len(seen) >= 3
    np.testing.assert_array_equal(seen[-1][0], out.tokens)
    assert (np.diff([lengths.sum() for _, lengths in seen]) > 0).all()
    assert 0 < ended[0][1].sum() < out.lengths.size  # They are known before the last one ends.
    assert ended[-1][1].all()
    for lengths, has_ended in ended:
        np.testing.assert_array_equal(lengths[has_ended], out.lengths[has_ended])
    counters = out.counters
    assert counters["decode_tokens"] == out.lengths.sum() - 3 * ROLLOUTS
    assert counters["prefill_tokens"] == (batch.segment_ids > 0).sum()
    assert 0 < counters["padding"] < 1
    assert 0 <= counters["finished_slot_waste"] < 0.6
    assert 0 < counters["roofline_fraction"] < 1


def test_visual_tokens_may_be_given(twin, base, batch, drawn):
    engine, params = base
    encode = jax.jit(lambda p, b: family.bind(twin.config, p).encode_vision(b))
    out = engine.rollout(params, batch, UIDS, seed=5, step=2, visual=encode(twin.params, batch))
    same(out, drawn)


def test_frame_pairs_are_dealt_out_along_tensor(twin, batch):
    """Three frame pairs of three clips do not divide over eight devices, so that empty ones follow
    them; devices send tokens and no sums, which each would need of a part of the tower."""
    mesh = reshape(sharding.make_mesh(fsdp=8), (1, 1, 8))

    def encode(params, batch):
        model = family.bind(twin.config, params)
        return rollout_clips.encode(model, batch, mesh, choose_plan("chunked"))

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(twin.params, whole)
    with jax.set_mesh(mesh):
        program = jax.jit(encode).lower(params, batch).compile()
    wanted = jax.jit(lambda p, b: family.bind(twin.config, p).encode_vision(b))(twin.params, batch)
    np.testing.assert_allclose(program(params, batch), wanted, atol=1e-5)
    found = collectives(program.as_text())
    assert {kind for kind, *_ in found} == {"all-gather"}


def test_non_finite_logits_fail_the_sequence_alone(base, batch, drawn, sampling):
    """An id whose embedding is NaN: whoever draws it fails at the next token, others go on."""
    engine, params = base
    ends = given(drawn) & (np.arange(NEW) < drawn.lengths[..., None] - 1)  # tokens that are run
    ids, counts = np.unique(drawn.tokens[ends], return_counts=True)
    fit = [i for i in ids[np.argsort(-counts)] if i not in batch.tokens]
    bad = dict(
        params, text=dict(params["text"], embed=params["text"]["embed"].at[fit[0]].set(np.nan))
    )
    out = engine.rollout(bad, batch, UIDS, seed=5, step=2)
    hit = (drawn.tokens == fit[0]) & ends
    np.testing.assert_array_equal(out.failed, hit.any(-1))
    assert 0 < out.failed.sum() < out.failed.size
    assert out.counters["failed"] == out.failed.sum()
    wanted = np.where(hit.any(-1), hit.argmax(-1) + 1, drawn.lengths)
    np.testing.assert_array_equal(out.lengths, wanted)
    np.testing.assert_array_equal(out.tokens[given(out)], drawn.tokens[given(out)])
    assert (out.tokens[~given(out)] == sampling.pad_id).all()
    assert np.isfinite(out.logprobs).all()


def test_bfloat16_agrees_with_the_training_path(tmp_path, samples):
    """Mean gap at temperature 1, 128 wide. Two batch sizes of the training path itself differ by
    0.006 here; narrower models are noisier."""
    wide = {"hidden_size": 128, "vision_out_hidden_size": 128, "intermediate_size": 256}
    rope = {"type": "mrope", "mrope_section": [4, 6, 6]}
    twin = hf.make_twin(tmp_path, seed=11, num_hidden_layers=3, rope_scaling=rope, **wide)
    sampling = SamplingConfig(num_rollouts=ROLLOUTS, max_new_tokens=NEW)
    engine = RolloutEngine(twin.config, sampling, num_buckets=1)
    params = engine.prepare(twin.params)
    gaps = []
    for seed in range(4):
        out = engine.rollout(params, pack(samples[0]), UIDS, seed=seed)
        scores = score(twin.config, twin.params, samples[0], out, 1.0, jnp.bfloat16)
        gaps.append(np.abs(out.logprobs[given(out)] - picked(scores, out)))
    assert np.mean(gaps) < 1e-2


def test_int8_stays_close(twin, sampling, samples, batch):
    engine = RolloutEngine(
        twin.config, sampling, dtype="float32", num_buckets=1, int8_weights=True, int8_cache=True
    )
    params = engine.prepare(twin.params)
    assert params["text"]["layers"]["mlp"]["up"].values.dtype == jnp.int8
    out = engine.rollout(params, batch, UIDS, seed=5, step=2)
    scores = score(twin.config, twin.params, samples[0], out, sampling.temperature)
    gap = np.abs(out.logprobs[given(out)] - picked(scores, out)).mean()
    assert 1e-4 < gap < 5e-2


def bad_requests(batch):
    long = batch._replace(segment_ids=np.ones_like(batch.segment_ids))
    empty = batch._replace(segment_ids=batch.segment_ids * (np.arange(3) != 1)[:, None])
    packed = batch._replace(segment_ids=batch.segment_ids * 2)
    fewer = batch._replace(patch_valid=batch.patch_valid & (np.arange(3) != 0)[:, None])
    index = batch.visual_index.copy()
    index[0, np.flatnonzero(index[0] >= 0)[-1]] = -1
    swapped = np.where(batch.visual_index == 0, 47, batch.visual_index)
    return {
        "prompt 0 (uid 7) has 56 tokens, the largest bucket holds 50": (long, {}),
        "prompt 1 (uid 3) has no tokens": (empty, {}),
        "prompt 0 (uid 7) is not one right-padded sample": (packed, {}),
        "30 visual tokens, 29 places for them and 30 media tokens": (
            batch._replace(visual_index=index), {},
        ),
        "visual tokens, 30 places": (fewer, {}),
        "token ids from": (batch._replace(tokens=batch.tokens + 10**6), {}),
        "give whole numbers of shape (3, 3, 56)": (
            batch._replace(positions=batch.positions[:, :1]), {}),
        "visual_index names empty slots": (batch._replace(visual_index=swapped), {}),
        "uids have shape (2,)": (batch, {"uids": UIDS[:2]}),
        "uid -1 is outside": (batch, {"uids": UIDS * 0 - 1}),
        "seed -1 is outside": (batch, {"seed": -1}),
        "limits of shape (3, 4) from 0 to 0": (batch, {"limits": np.zeros((3, ROLLOUTS), int)}),
    }  # fmt: skip


def test_bad_requests_are_refused_by_name(twin, sampling, batch):
    engine = RolloutEngine(twin.config, sampling, prompt_lengths=(40, 50))
    for message, (wrong, changed) in bad_requests(batch).items():
        options = {"uids": UIDS, "seed": 0} | changed
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            engine.rollout(twin.params, wrong, **options)
        assert "\n" not in str(raised.value)
    assert engine.num_compiles == 0
