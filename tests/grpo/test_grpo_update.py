"""One row per group against a row per completion in PyTorch: log-probs, loss and every gradient."""

import hf_twin as hf
import jax
import jax.numpy as jnp
import naive_grpo
import numpy as np
import pytest
import torch
from tiny_run import load_recipe

from videorft_jax.commands.grpo import read_options
from videorft_jax.data.batch import layout
from videorft_jax.grpo import trainer as grpo
from videorft_jax.grpo import update as updating
from videorft_jax.grpo.logprobs import Groups, score_completions
from videorft_jax.models import family
from videorft_jax.models.lora import merge_lora
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.weights import make_weights

B, R, C, TEMPERATURE = 2, 3, 5, 0.8


def perturbed(rng, values):
    return (values + rng.normal(0, 0.2, values.shape)).astype(np.float32)


class Problem:
    """Two prompts with clips of different sizes, three completions each, two policies."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.twin, self.reference = (
            hf.make_twin(folder / f"{seed}", seed=seed) for seed in range(2)
        )
        self.folder, config = folder, self.twin.config
        self.clips = [hf.random_clip(rng, 4, 3, 5, 2.0), hf.random_clip(rng, 3, 2, 2, 1.3)]
        samples = [
            hf.make_sample(rng, config, [3 + b, clip, 2]) for b, clip in enumerate(self.clips)
        ]
        self.samples = samples
        longest = max(len(sample.tokens) for sample in samples)
        batch = layout.pack([[sample] for sample in samples], longest + 3, 2, 2)
        self.completions = rng.integers(0, 300, (B, R, C)).astype(np.int32)
        self.lengths = np.array([[5, 1, 3], [4, 0, 5]], np.int32)  # one takes no part
        self.groups = Groups(batch, self.completions, self.lengths)
        self.mask = np.asarray(self.groups.mask)
        self.advantages = rng.normal(size=(B, R)).astype(np.float32)
        self.wanted, self.entropy = self.naive_logprobs(self.twin.hf)
        self.old, self.sampler = (perturbed(rng, self.wanted.detach().numpy()) for _ in range(2))
        with torch.no_grad():
            self.reference_logprobs, _ = self.naive_logprobs(self.reference.hf)

    def naive_logprobs(self, model):
        """A row of its own for each completion, clip and prompt repeated; [B, R, C] each."""
        scores = torch.zeros(2, B, R, C)
        for b, (sample, clip) in enumerate(zip(self.samples, self.clips, strict=True)):
            prompt = len(sample.tokens)
            for r in range(R):
                own = self.completions[b, r]
                tokens = np.concatenate([sample.tokens, own])
                following = sample.positions[0, -1] + 1 + np.arange(C)
                longer = sample._replace(
                    tokens=tokens,
                    loss_mask=np.zeros(len(tokens), bool),
                    positions=np.concatenate(
                        [sample.positions, np.broadcast_to(following, (3, C))], axis=1
                    ),
                )
                inputs, _ = hf.hf_inputs(self.twin.config, [longer], [[clip]], length=len(tokens))
                logits = model(**inputs).logits[0, prompt - 1 : prompt - 1 + C] / TEMPERATURE
                every = torch.log_softmax(logits, -1)
                scores[0, b, r] = every[torch.arange(C), torch.tensor(own).long()]
                scores[1, b, r] = -(every.exp() * every).sum(-1)
        return scores


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return Problem(tmp_path_factory.mktemp("twins"))


def make_config(**changes):
    config = load_recipe("grpo_7b")
    config.model.dtype, config.model.remat = "float32", "none"
    config.rollout.temperature = TEMPERATURE
    config.rollout.max_new_tokens = C
    config.grpo.update(changes)
    return config


def test_logprobs_and_entropy(problem):
    run = jax.jit(
        lambda params, groups: score_completions(
            family.bind(problem.twin.config, params), groups, temperature=TEMPERATURE
        ),
    )
    for ours, wanted in zip(
        run(problem.twin.params, problem.groups), (problem.wanted, problem.entropy), strict=True
    ):
        wanted = np.where(problem.mask, wanted.detach().numpy(), 0.0)
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


VARIANTS = {
    "grpo": {},
    "dapo": {"variant": "dapo", "clip_high": 0.28},
    "dr_grpo": {"variant": "dr_grpo", "kl": "k2"},
    "gspo": {"variant": "gspo"},
    "cispo": {"variant": "cispo", "beta": 0.0, "sampler_cap": 1.1},
    "on_policy": {"first": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients(problem, name):
    changes = dict(VARIANTS[name])
    first = changes.pop("first", False)
    config = make_config(**changes)
    weights = make_weights(make_train_options(config), problem.twin.config)
    loss, totals = updating.make_loss(read_options(config), weights)
    rows = updating.GroupRows(
        problem.groups, problem.advantages, problem.sampler, None if first else problem.old
    )
    counts = totals(jax.tree.map(jnp.asarray, rows))
    other = (problem.reference.params,) if config.grpo.beta else ()
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, _), grads = step(problem.twin.params, rows, counts, *other)

    problem.twin.hf.zero_grad()
    expected = naive_grpo.loss(
        problem.wanted, None if first else torch.tensor(problem.old), problem.reference_logprobs,
        torch.tensor(problem.sampler), problem.mask, torch.tensor(problem.advantages),
        read_options(config).loss,
    )  # fmt: skip
    expected.backward(retain_graph=True)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4, atol=1e-6)
    wanted = hf.gradients(problem.folder / f"gradients_{name}", problem.twin)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    assert len(paths) == len(jax.tree.leaves(wanted))
    vision = 0.0
    for (path, ours), theirs in zip(paths, jax.tree.leaves(wanted), strict=True):
        theirs, where = np.asarray(theirs), jax.tree_util.keystr(path)
        error = np.abs(np.asarray(ours) - theirs).max()
        assert error <= 1e-4 * np.abs(theirs).max() + 1e-8, where
        vision += np.abs(theirs).max() if "vision" in where else 0.0
    assert vision > 1e-3  # the tower learns through every completion


def test_adapters_learn_what_the_merged_weights_would(problem):
    """Merged where a layer is read, against merged beforehand; the reference is the base."""
    config, model, base = make_config(), problem.twin.config, problem.twin.params
    full, totals = updating.make_loss(
        read_options(config), make_weights(make_train_options(config), model)
    )
    config.lora.rank, config.lora.alpha = 3, 6.0
    config.lora.targets = (r"/(q|o|qkv|proj|gate|up|down)$",)
    config.model.remat = "full"
    weights = make_weights(make_train_options(config), model)
    adapted, _ = updating.make_loss(read_options(config), weights)
    lora = weights.split(base, jax.random.key(0))[0]["lora"]
    keys = iter(jax.random.split(jax.random.key(1), 99))
    lora = jax.tree.map(lambda x: 0.1 * jax.random.normal(next(keys), x.shape), lora)
    rows = updating.GroupRows(problem.groups, problem.advantages, problem.sampler, problem.old)
    counts = totals(jax.tree.map(jnp.asarray, rows))

    def ours(lora):
        return adapted(base | {"lora": lora}, rows, counts)[0]

    def merged(lora):
        return full(merge_lora(base, lora, weights.lora), rows, counts, base)[0]

    (value, grads), (wanted, whole) = (
        jax.jit(jax.value_and_grad(function))(lora) for function in (ours, merged)
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max() + 1e-8)


def test_group_without_survivors_leaves_the_denominators(problem):
    """With all completions of group 0 masked, the loss is that of group 1 alone."""
    config = make_config(variant="dapo")
    weights = make_weights(make_train_options(config), problem.twin.config)
    loss, totals = updating.make_loss(read_options(config), weights)
    run = jax.jit(
        lambda params, rows: loss(params, rows, totals(rows), problem.reference.params)[0],
    )
    rows = updating.GroupRows(problem.groups, problem.advantages, problem.sampler, problem.old)
    rows = jax.tree.map(np.asarray, rows)
    masked = problem.lengths.copy()
    masked[0] = 0
    gone = rows._replace(groups=rows.groups._replace(lengths=masked))
    alone = jax.tree.map(lambda leaf: np.stack([leaf[1], leaf[1]]), rows)  # same shapes
    twice = alone._replace(groups=alone.groups._replace(lengths=alone.groups.lengths * [[1], [0]]))
    assert abs(run(problem.twin.params, rows) - run(problem.twin.params, gone)) > 1e-3
    np.testing.assert_allclose(
        run(problem.twin.params, gone), run(problem.twin.params, twice), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("longest", "limit", "buckets", "size"),
    [(1, 768, 4, 256), (257, 768, 4, 384), (768, 768, 4, 768), (3, 10, 4, 3), (4, 10, 4, 5),
     (0, 10, 1, 10)],
)  # fmt: skip
def test_completion_lengths_fall_into_few_sizes(longest, limit, buckets, size):
    assert grpo.fit_length(longest, limit, buckets) == size


@pytest.mark.parametrize(
    ("section", "option", "value", "message"),
    [
        ("grpo", "num_updates", 0, "grpo.num_updates is 0; give at least 1"),
        ("grpo", "max_draws", 0, "grpo.max_draws is 0; give at least 1"),
        ("grpo", "variant", "ppo", "variant is 'ppo'; choose one of"),
        ("grpo", "beta", -1.0, "give at least 0"),
        ("rollout", "num_rollouts", 1, "a group needs at least 2 completions"),
        ("rollout", "temperature", 0.0, "would all be the same"),
    ],
)
def test_refuses_settings_that_cannot_work(section, option, value, message):
    config = make_config()
    config[section][option] = value
    with pytest.raises(ValueError, match=message):
        read_options(config)
