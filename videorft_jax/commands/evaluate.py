"""`videorft evaluate`: completions of every record of a file, and what they are worth."""

from videorft_jax.evaluation.evaluate import evaluate
from videorft_jax.training import options

EXAMPLES = """videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/base/mmvu \\
    --config.model.init_from=DIR --config.data.records=eval_mmvu.json
videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/grpo_7b/mmvu \\
    --config.evaluate.checkpoint=runs/grpo_7b --config.evaluate.other_media=True ..."""


def main(argv: list[str]) -> int:
    """videorft evaluate --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = options.parse(argv, "videorft evaluate", EXAMPLES)
    return evaluate(config, workdir)
