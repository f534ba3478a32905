"""`videorft sft`: supervised fine-tuning on chains of thought."""

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.evaluation.validation import open_validation
from videorft_jax.planning.fits import MemoryCheck
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.sft import train

EXAMPLES = """videorft sft --config=configs/sft_7b.py --workdir=runs/sft_7b \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl
videorft sft --config=configs/sft_7b.py --workdir=runs/tensor4 --config.mesh.tensor=4 ..."""


def main(argv: list[str]) -> int:
    """videorft sft --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    return sft(*flags.parse(argv, "videorft sft", EXAMPLES, remote=True))


def sft(config: ConfigDict, workdir: str) -> int:
    """Trains as the config says, to the end of its data; returns exit code 0.

    Raises ValueError, one line, for a config that cannot work, before anything is allocated, and
    RuntimeError, one line, where a device runs out of memory.
    """
    options = make_train_options(config)
    check = MemoryCheck(options)
    with check.explained():
        return train(options, workdir, check, open_validation)
