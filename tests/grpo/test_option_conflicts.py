"""Options of GRPO that cannot work together are refused by one line, before anything is read."""

import pytest
from tiny_run import load_recipe

from videorft_jax.commands.grpo import check_options


def configure(**fields):
    config = load_recipe("grpo_7b")
    config.rewards = (("accuracy", 1.0), ("format", 1.0))
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grpo__kl_in_reward": True, "grpo__beta": 0.0}, "without a divergence; set grpo.beta"),
        ({"grpo__kl_in_reward": True, "grpo__normalise_each": True}, "exclude each other"),
        ({"grpo__normalise_each": True, "grpo__scale_rewards": "none"}, "set grpo.scale_rewards"),
        (
            {"grpo__normalise_each": True, "grpo__divide_by_std": False},
            "set grpo.scale_rewards=group and grpo.divide_by_std=True",
        ),
        ({"alarms__kl_above": 1.0, "grpo__beta": 0.0}, "kl_above is 1.0 and grpo.beta is 0"),
        ({"train__legacy_labels": True}, "train.legacy_labels is of SFT"),
        ({"grpo__sampler_rule": "mask"}, "do nothing without a sampler_cap; give one"),
        ({"grpo__sampler_level": "sequence"}, "do nothing without a sampler_cap; give one"),
        ({"reward__gates": (("regresion", 0.5),)}, "a gate names 'regresion'; name one of multi"),
        ({"reward__gates": (("regression", 50.0),)}, "regression is 50.0, which no accuracy exc"),
        ({"grpo__num_given": 8}, "num_given is 8 of rollout.num_rollouts = 8; leave at least one"),
        ({"grpo__num_given": -1}, "grpo.num_given is -1; give"),
        ({"grpo__given_shaping": 0.0}, "grpo.given_shaping is 0.0; give"),
        ({"grpo__num_given": 1, "grpo__kl_in_reward": True}, "num_given and grpo.kl_in_reward"),
        ({"grpo__num_given": 1, "rewards": (("accuracy", 1.0), ("order", 0.3))}, "reward 'order'"),
        ({"grpo__num_given": 1, "tools__names": ("frames",)}, "num_given and tools.names exclude"),
        ({"grpo__sync_every": 2, "grpo__beta": 0.0}, "sync_every and grpo.beta=0 exclude each"),
        ({"grpo__sync_every": 2, "lora__rank": 4}, "sync_every and lora.rank exclude each other"),
        ({"grpo__sync_every": 2, "grpo__reference_on_host": True}, "grpo.reference_on_host excl"),
        ({"grpo__sync_every": -1}, "grpo.sync_every is -1; give"),
        ({"grpo__reference_mixup": 0.0}, "grpo.reference_mixup is 0.0; give above 0 to 1"),
        ({"grpo__minibatches": 0}, "grpo.minibatches is 0; give at least 1"),
        ({"grpo__top_entropy": 0.0}, "grpo.top_entropy is 0.0; give above 0 to 1"),
        ({"reward__overlong_tokens": 0}, "reward.overlong_tokens is 0; give at least 1"),
        ({"grpo__filter": "semantic"}, "grpo.filter is 'semantic'; name one of the rewards"),
    ],
)
def test_options_that_contradict_each_other(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_options(configure(**fields))
    assert len(str(caught.value).splitlines()) == 1


def test_minibatches_divide_the_rows_of_every_part_of_the_mesh():
    options = check_options(configure(grpo__minibatches=2, data__rows=8))
    options.check_parts(4)
    with pytest.raises(ValueError, match="data.rows is 8; with data [*] fsdp = 8"):
        options.check_parts(8)
    assert (options.steps_per_rollout, options.needs_score) == (2, True)
    assert not check_options(configure()).needs_score
