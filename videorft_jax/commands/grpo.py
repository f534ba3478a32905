"""`videorft grpo`: reinforced fine-tuning on questions whose answers can be checked."""

import functools

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.grpo.trainer import train
from videorft_jax.planning.fits import check_memory

EXAMPLES = """videorft grpo --config=configs/grpo_7b.py --workdir=runs/grpo_7b \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl --config.reward.siglip=DIR
videorft grpo --config=configs/grpo_7b.py --workdir=runs/no_semantic \\
    --config.rewards="(('accuracy', 1.0), ('format', 1.0))" ..."""


def main(argv: list[str]) -> int:
    """videorft grpo --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    return grpo(*flags.parse(argv, "videorft grpo", EXAMPLES, remote=True))


def grpo(config: ConfigDict, workdir: str) -> int:
    """Trains as the config says, to the end of its data; returns exit code 0.

    Raises ValueError, one line, for a config that cannot work, before anything is allocated.
    """
    return train(config, workdir, functools.partial(check_memory, config, "grpo"))
