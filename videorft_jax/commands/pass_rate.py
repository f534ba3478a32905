"""`videorft pass_rate`: how often a checkpoint answers each training question right."""

import json
import logging
import os
import pathlib

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.commands.evaluate import SAMPLED, evaluate
from videorft_jax.data.records.opening import digest_records
from videorft_jax.data.records.pass_rates import FILE as PASS_RATES
from videorft_jax.data.records.pass_rates import write_pass_rates
from videorft_jax.evaluation.results_folder import COMPLETIONS
from videorft_jax.models.folder_digest import digest_weights
from videorft_jax.training.setup import make_train_options

log = logging.getLogger(__name__)

EXAMPLES = """videorft pass_rate --config=configs/grpo_7b.py --workdir=runs/pass_rate \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl
videorft grpo --config=configs/grpo_7b.py --workdir=runs/grpo_7b ... \\
    --config.data.pass_rates=runs/pass_rate/pass_rates.jsonl \\
    --config.data.filter="0 < pass_rate < 1" --config.data.order=easy_first"""


def main(argv: list[str]) -> int:
    """videorft pass_rate --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    return pass_rate(*flags.parse(argv, "videorft pass_rate", EXAMPLES))


def pass_rate(config: ConfigDict, workdir: str) -> int:
    """Draws `rollout.num_rollouts` completions of every record as GRPO would, scores them by
    `reward.mode`, and writes the rates into the work directory; returns exit code 0.

    It goes on where it was stopped. Raises ValueError for a config that cannot work.
    """
    if config.evaluate.checkpoint:
        raise ValueError(
            "pass_rate: evaluate.checkpoint is of evaluate; export the run and give its folder as "
            "model.init_from, since that is what GRPO starts from"
        )
    own = ConfigDict(config.to_dict())
    for name in SAMPLED:
        own.evaluate[name] = config.rollout[name]
    own.data.pass_rates = own.data.filter = own.data.order = ""
    options = make_train_options(own)
    evaluate(own, workdir)
    folder = pathlib.Path(workdir)
    rows = [json.loads(line) for line in (folder / COMPLETIONS).read_text("utf-8").splitlines()]
    weights = digest_weights(options.model.init_from, options.model.adapter)
    records = digest_records(options.data.records)
    counts = write_pass_rates(folder / PASS_RATES, rows, records, weights)
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    path = os.path.join(workdir, PASS_RATES)
    print(f"{path}; next: videorft grpo ... --config.data.pass_rates={path}")
    return 0
