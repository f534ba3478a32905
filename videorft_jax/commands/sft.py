"""`videorft sft`: supervised fine-tuning on chains of thought."""

from videorft_jax.training import options
from videorft_jax.training.sft import train

EXAMPLES = """videorft sft --config=configs/sft_7b.py --workdir=runs/sft_7b \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl
videorft sft --config=configs/sft_7b.py --workdir=runs/tensor4 --config.mesh.tensor=4 ..."""


def main(argv: list[str]) -> int:
    """videorft sft --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = options.parse(argv, "videorft sft", EXAMPLES, remote=True)
    return train(config, workdir)
