"""`videorft grpo`: reinforced fine-tuning on questions whose answers can be checked."""

from videorft_jax.grpo.trainer import train
from videorft_jax.training import options

EXAMPLES = """videorft grpo --config=configs/grpo_7b.py --workdir=runs/grpo_7b \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl --config.reward.siglip=DIR
videorft grpo --config=configs/grpo_7b.py --workdir=runs/no_semantic \\
    --config.rewards="(('accuracy', 1.0), ('format', 1.0))" ..."""


def main(argv: list[str]) -> int:
    """videorft grpo --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = options.parse(argv, "videorft grpo", EXAMPLES, remote=True)
    return train(config, workdir)
