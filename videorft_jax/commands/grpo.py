"""`videorft grpo`: reinforced fine-tuning on questions whose answers can be checked."""

from ml_collections import ConfigDict

from videorft_jax import losses
from videorft_jax.checkpoints.bucket import resolve
from videorft_jax.commands import flags
from videorft_jax.evaluation.validation import open_validation
from videorft_jax.grpo import trainer
from videorft_jax.grpo.alarms import AlarmOptions
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.sources import find_folder
from videorft_jax.planning.drawing import MeshChoice
from videorft_jax.planning.fits import MemoryCheck
from videorft_jax.rewards.combine import RewardConfig
from videorft_jax.rewards.semantic import SemanticOptions, require_siglip
from videorft_jax.rollout.mesh import parse_sizes
from videorft_jax.rollout.options import RolloutOptions
from videorft_jax.training.setup import make_train_options

EXAMPLES = """videorft grpo --config=configs/grpo_7b.py --workdir=runs/grpo_7b \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl --config.reward.siglip=DIR
videorft grpo --config=configs/grpo_7b.py --workdir=runs/no_semantic \\
    --config.rewards="(('accuracy', 1.0), ('format', 1.0))" ..."""


def main(argv: list[str]) -> int:
    """videorft grpo --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    return grpo(*flags.parse(argv, "videorft grpo", EXAMPLES, remote=True))


def grpo(config: ConfigDict, workdir: str) -> int:
    """Trains as the config says, to the end of its data; returns exit code 0.

    Raises ValueError, one line, for a config that cannot work, before anything is allocated, and
    RuntimeError, one line, where a device runs out of memory.
    """
    options = check_options(config)
    check = MemoryCheck(options.train, options)
    with check.explained():
        return trainer.train(options, workdir, check, open_validation, MeshChoice(options))


def check_options(config: ConfigDict) -> GrpoOptions:
    """Makes the options of a run and checks that the semantic reward has the weights it needs.

    Raises ValueError for losses and rewards that cannot work.
    """
    rewards = tuple(map(tuple, config.rewards))
    return _make_options(config, require_siglip(rewards, config.reward.siglip))


def read_options(config: ConfigDict) -> GrpoOptions:
    """Makes the options of a plan, for which the weights of SigLIP need not be there.

    Raises ValueError for losses and rewards that cannot work.
    """
    weight = dict(map(tuple, config.rewards)).get("semantic")
    return _make_options(config, weight is not None and bool(weight or config.reward.siglip))


def _make_options(config, has_semantic):
    rewards, semantic = _make_rewards(config, has_semantic)
    grpo = config.grpo
    return GrpoOptions(
        train=make_train_options(config),
        loss=losses.LossOptions(
            variant=grpo.variant,
            beta=grpo.beta,
            kl=grpo.kl,
            clip_low=grpo.clip_low,
            clip_high=grpo.clip_high,
            max_length=config.rollout.max_new_tokens,
            sampler_cap=grpo.sampler_cap,
            sampler_floor=grpo.sampler_floor,
            sampler_level=grpo.sampler_level,
            sampler_rule=grpo.sampler_rule,
            dual_clip=grpo.dual_clip,
            entropy_bonus=grpo.entropy_bonus,
            top_entropy=grpo.top_entropy,
            off_policy_limit=grpo.off_policy_limit,
            num_given=grpo.num_given,
            given_shaping=grpo.given_shaping,
        ),
        rollout=_make_rollout(config),
        rewards=rewards,
        semantic=semantic,
        num_updates=grpo.num_updates,
        minibatches=grpo.minibatches,
        max_draws=grpo.max_draws,
        filter=grpo.filter,
        length_buckets=grpo.length_buckets,
        spread=grpo.scale_rewards if grpo.divide_by_std else "none",
        normalise_each=grpo.normalise_each,
        kl_in_reward=grpo.kl_in_reward,
        mask_truncated=grpo.mask_truncated,
        reference=_find_reference(grpo.reference),
        reference_on_host=grpo.reference_on_host,
        sync_every=grpo.sync_every,
        reference_mixup=grpo.reference_mixup,
        alarms=AlarmOptions(**config.alarms.to_dict()),
    )


def _make_rollout(config):
    values = config.rollout.to_dict()
    return RolloutOptions(**values | {"mesh": parse_sizes(values["mesh"])})


def _find_reference(name):
    """The folder that a path, a name of the hub or a URL of the reference policy leads to."""
    return resolve(find_folder(name)) if name else ""


def _make_rewards(config, has_semantic):
    """(RewardConfig, SemanticOptions or None) of a config."""
    rewards, options = tuple(map(tuple, config.rewards)), config.reward
    if not has_semantic:
        rewards = tuple(pair for pair in rewards if pair[0] != "semantic")
    semantic = SemanticOptions(
        siglip=options.siglip,
        frames=options.frames,
        averaging=options.averaging,
        text_rule=options.text_rule,
        scale=options.scale,
        cache=options.cache,
    )
    found = RewardConfig(
        rewards,
        mode=options.mode,
        gated=tuple(options.gated),
        gate=tuple(map(tuple, options.gates)) or None,
        timeout_s=options.timeout_s,
        overlong=(config.rollout.max_new_tokens, options.overlong_tokens),
    )
    return found, semantic if has_semantic else None
