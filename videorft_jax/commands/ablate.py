"""`videorft ablate`: a grid of GRPO runs, compared on the same held-out records.

A grid is a list of variants in the config, each a name and the options it changes.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.commands.evaluate import evaluate
from videorft_jax.commands.grpo import check_options, grpo
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.data.records.opening import open_records
from videorft_jax.evaluation import ablation
from videorft_jax.grpo.options import GrpoOptions, without_ratio
from videorft_jax.grpo.rehearsal import rehearse

log = logging.getLogger(__name__)

EXAMPLES = """videorft ablate --config=configs/ablate_rewards.py --workdir=runs/ablate_rewards \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl --config.reward.siglip=DIR \\
    --config.ablate.records=HELD_OUT.jsonl"""


def main(argv: list[str]) -> int:
    """videorft ablate --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = flags.parse(argv, "videorft ablate", EXAMPLES)
    ablate(config, workdir)
    seed = config.ablate.seeds[0]
    runs = [f"{workdir}/{name}/{seed}" for name, _ in config.ablate.variants]
    written = f"{workdir}/{ablation.TABLE}, {workdir}/{ablation.PLOT}"
    print_last_line(written, "report", runs[0], *runs[-1:])
    return 0


def ablate(config: ConfigDict, workdir: str) -> list[dict[str, Any]]:
    """The table of the grid that `config.ablate` describes, see `evaluation.ablation.ablate`.

    Raises ValueError, before the first run, for a grid that cannot be run.
    """
    variants = {name: vary(config, changes) for name, changes in config.ablate.variants}
    names = [name for name, _ in config.ablate.variants]
    ablation.check_grid(config.name, names, config.ablate.seeds, config.ablate.records)
    checked = {}
    for name, varied in variants.items():
        try:
            checked[name] = check_options(varied)
            rehearse(checked[name])
        except ValueError as error:
            raise ValueError(f"variant {name}: {error}") from None
    held_out, root = config.ablate.records, config.ablate.root
    open_records(held_out, root or None, config.data.format)  # Names what is wrong with the file.
    ablation.check_results(names, config.ablate.seeds, workdir, held_out)
    for name, seed in itertools.product(names, config.ablate.seeds):
        recorded = checked[name].train.recorded | {"seed": seed}
        ablation.check_done(workdir, name, seed, recorded)
    for pair in find_same(checked):
        log.warning(
            "variants %s and %s train the same: with one update a rollout every ratio is 1, so "
            "that clips, gspo, sapo and cispo change nothing; raise grpo.num_updates",
            *pair,
        )

    def train(name: str, seed: int, folder: str) -> None:
        grpo(_with_seed(variants[name], seed), folder)

    def judge(name: str, seed: int, training: str, results: str) -> None:
        varied = _with_seed(variants[name], seed)
        varied.evaluate.checkpoint = training
        varied.data.records, varied.data.root = config.ablate.records, config.ablate.root
        evaluate(varied, results)

    return ablation.ablate(names, config.ablate.seeds, workdir, train=train, evaluate=judge)


def find_same(variants: Mapping[str, GrpoOptions]) -> list[tuple[str, str]]:
    """Pairs of variants, by name, that differ in options but not in what is trained."""
    plain = {name: without_ratio(options) for name, options in variants.items()}
    return [(a, b) for a, b in itertools.combinations(plain, 2) if plain[a] == plain[b]]


def vary(config: ConfigDict, changes: Sequence[tuple[str, Any]]) -> ConfigDict:
    """A copy of the config with (option, value) pairs changed, such as ("grpo.variant", "dapo").

    Raises ValueError for an option that does not exist and a value of another type.
    """
    varied = ConfigDict(config.to_dict())
    for path, value in changes:
        *sections, option = path.split(".")
        target: Any = varied
        for section in sections:
            target = target.get(section, {})
        if option not in target:
            raise ValueError(f"{config.name}: ablate.variants changes {path!r}; no such option")
        try:
            target[option] = value
        except TypeError as error:
            raise ValueError(f"{config.name}: ablate.variants, {path}: {error}") from None
    return varied


def _with_seed(config, seed):
    config = ConfigDict(config.to_dict())
    config.seed = seed
    return config
