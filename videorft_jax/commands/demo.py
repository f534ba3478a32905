"""`videorft demo`: the whole method on synthetic clips, in minutes on a CPU."""

from videorft_jax.commands import flags
from videorft_jax.commands.evaluate import evaluate
from videorft_jax.commands.grpo import grpo
from videorft_jax.commands.sft import sft
from videorft_jax.demo.run import Demo

EXAMPLES = """videorft demo --config=configs/demo.py --workdir=runs/demo
videorft demo --config=configs/demo.py --workdir=runs/demo_1 --config.seed=1"""


def main(argv: list[str]) -> int:
    """videorft demo --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = flags.parse(argv, "videorft demo", EXAMPLES)
    return Demo(config, workdir, sft=sft, grpo=grpo, evaluate=evaluate).run()
