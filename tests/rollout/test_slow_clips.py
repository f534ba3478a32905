"""Decoding after a clip whose time ids pass those of the text behind it: 40 frames at .2 fps."""

import hf_twin as hf
import jax
import numpy as np
import pytest

from videorft_jax.data.batch import layout
from videorft_jax.grpo.logprobs import Groups, score_completions
from videorft_jax.models import family
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import SamplingConfig

NEW, PAIRS = 12, 20
PARTS = (5, (40, 2, 1, 0.2), 6)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return hf.make_twin(tmp_path_factory.mktemp("twin"), seed=3)


def draw(twin, rule):
    """A prompt under a rule, its clip, and what our engine draws greedily after it."""
    rng = np.random.default_rng(3)
    clip = hf.random_clip(rng, *PARTS[1])
    sample = hf.make_sample(rng, twin.config, [PARTS[0], clip, PARTS[2]], rule=rule)
    batch = layout.pack([[sample]], len(sample.tokens) + 3, PAIRS, 1)
    sampling = SamplingConfig(num_rollouts=1, max_new_tokens=NEW, temperature=0)
    engine = RolloutEngine(twin.config, sampling, dtype="float32", num_buckets=1)
    out = engine.rollout(engine.prepare(twin.params), batch, np.array([0]), seed=0)
    return sample, clip, batch, out


def test_positions_of_the_clip_pass_the_text_or_not(twin):
    """What makes the case: under hf5 the last text id lies far below the largest id."""
    for rule, is_passed in (("hf5", True), ("qwen", False)):
        positions = draw(twin, rule)[0].positions
        assert (positions.max() > positions[0, -1] + 300) == is_passed


def test_greedy_equals_generate(twin):
    sample, clip, _, out = draw(twin, "hf5")
    length = len(sample.tokens)
    inputs, _ = hf.hf_inputs(twin.config, [sample], [[clip]], length=length)
    theirs = twin.hf.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, length:]
    np.testing.assert_array_equal(out.tokens[0, 0], theirs.numpy())


@pytest.mark.parametrize("rule", ["hf5", "qwen"])
def test_decoding_forward_and_scoring_agree(twin, rule):
    """The largest logit of a full forward over prompt and completion, and the score of GRPO."""
    sample, _, batch, out = draw(twin, rule)
    length, tokens = len(sample.tokens), out.tokens
    following = sample.positions[0, -1] + 1 + np.arange(NEW)
    grown = sample._replace(
        tokens=np.concatenate([sample.tokens, tokens[0, 0]]),
        loss_mask=np.zeros(length + NEW, bool),
        positions=np.concatenate([sample.positions, np.tile(following, (3, 1))], 1),
        visual_slot=np.pad(sample.visual_slot, ((0, 0), (0, NEW)), constant_values=-1),
    )
    row = layout.pack([[grown]], length + NEW, PAIRS, 1)

    @jax.jit
    def forward(params, row):
        model = family.bind(twin.config, params)
        return model.logits(model.hidden_states(row))

    @jax.jit
    def score(params, groups):
        model = family.bind(twin.config, params)
        return score_completions(model, groups)[0]

    logits = np.asarray(forward(twin.params, row))[0, length - 1 : length - 1 + NEW]
    whole = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    whole = whole[np.arange(NEW), tokens[0, 0]]
    np.testing.assert_array_equal(logits.argmax(-1), tokens[0, 0])
    scored = score(twin.params, Groups(batch, tokens, np.full((1, 1), NEW, np.int32)))
    np.testing.assert_allclose(np.asarray(scored)[0, 0], whole, atol=1e-5)
