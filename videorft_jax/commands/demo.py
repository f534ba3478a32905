"""`videorft demo`: the whole method on synthetic clips, in minutes on a CPU."""

from videorft_jax.commands.evaluate import evaluate
from videorft_jax.demo.run import Demo
from videorft_jax.training import options

EXAMPLES = """videorft demo --config=configs/demo.py --workdir=runs/demo
videorft demo --config=configs/demo.py --workdir=runs/demo_1 --config.seed=1"""


def main(argv: list[str]) -> int:
    """videorft demo --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = options.parse(argv, "videorft demo", EXAMPLES)
    return Demo(config, workdir, evaluate).run()
