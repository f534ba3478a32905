"""`videorft ablate`: a grid of GRPO runs, compared on the same held-out records."""

from videorft_jax.evaluation.ablation import ablate
from videorft_jax.training import options

EXAMPLES = """videorft ablate --config=configs/ablate_rewards.py --workdir=runs/ablate_rewards \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl --config.reward.siglip=DIR \\
    --config.ablate.records=HELD_OUT.jsonl"""


def main(argv: list[str]) -> int:
    """videorft ablate --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = options.parse(argv, "videorft ablate", EXAMPLES)
    ablate(config, workdir)
    return 0
