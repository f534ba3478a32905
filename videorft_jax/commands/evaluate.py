"""`videorft evaluate`: completions of every record of a file, and what they are worth."""

import functools
import logging

from ml_collections import ConfigDict

from videorft_jax.commands import flags
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.source import FirstRecords, RecordSource
from videorft_jax.evaluation import evaluate as evaluation
from videorft_jax.evaluation.options import EvaluateOptions
from videorft_jax.parallel.processes import describe_environment
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.training import restore, setup
from videorft_jax.training.weights import Weights

log = logging.getLogger(__name__)

EXAMPLES = """videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/base/mmvu \\
    --config.model.init_from=DIR --config.data.records=eval_mmvu.json
videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/grpo_7b/mmvu \\
    --config.evaluate.checkpoint=runs/grpo_7b --config.evaluate.other_media=True ..."""


def main(argv: list[str]) -> int:
    """videorft evaluate --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = flags.parse(argv, "videorft evaluate", EXAMPLES)
    evaluate(config, workdir)
    return 0


def evaluate(config: ConfigDict, workdir: str) -> dict:
    """The results of `config.data.records`, as `videorft evaluate` writes and prints them.

    Raises ValueError for a config that cannot work, before anything is allocated.
    """
    log.info("%s on %s", config.name, describe_environment())
    mesh = setup.make_mesh(config)
    options = make_options(config)
    contract = setup.make_contract(config)
    saved = evaluation.find_weights(options, contract)
    if saved is not None and not config.model.init_from:
        config = ConfigDict(config.to_dict())  # the caller's stays as it is
        config.model.init_from = saved.init_from
    model_config, tokenizer = setup.load_model_files(config)
    engine = make_engine(config, model_config, tokenizer, mesh)
    source = RecordSource(config.data.records, config.data.root or None)
    if options.limit:
        source = FirstRecords(source, options.limit)
    template = config.data.template_file
    settings = evaluation.describe(
        options,
        contract,
        load_template(template) if template else DEFAULT_TEMPLATE,
        config.data.records,
        len(source),
        describe_weights(config, saved),
    )
    loader = functools.partial(setup.make_loader, config, "evaluate", tokenizer, contract)
    return evaluation.evaluate(
        options,
        workdir,
        settings,
        engine=engine,
        tokenizer=tokenizer,
        make_loader=functools.partial(loader, workdir, source),
        read_params=functools.partial(read_weights, config, saved, model_config, mesh),
    )


def make_options(config: ConfigDict) -> EvaluateOptions:
    """The options of one evaluation; raises ValueError for values that it cannot have."""
    return EvaluateOptions(
        name=config.name,
        mode=config.reward.mode,
        seed=config.seed,
        interval_s=config.log.interval_s,
        **config.evaluate.to_dict(),
    )


def make_engine(config: ConfigDict, model_config, tokenizer, mesh) -> RolloutEngine:
    """The engine that draws the completions as `config.evaluate` says."""
    sampled = ("num_rollouts", "max_new_tokens", "temperature", "top_p")
    sampling = {name: config.evaluate[name] for name in sampled}
    of_engine = ("chunk", "num_buckets", "int8_weights", "int8_cache")
    return RolloutEngine(
        model_config,
        make_sampling(model_config, tokenizer, **sampling),
        mesh,
        dtype=config.model.dtype,
        attention=config.model.attention,
        **{name: config.rollout[name] for name in of_engine},
    )


def describe_weights(config: ConfigDict, saved: restore.Saved | None) -> dict:
    """Which weights are evaluated and in what precision, for the settings of the results."""
    return {
        "init_from": config.model.init_from,
        "checkpoint": saved and saved.name,
        "dtype": config.model.dtype,
        "int8_weights": config.rollout.int8_weights,
        "int8_cache": config.rollout.int8_cache,
    }


def read_weights(config: ConfigDict, saved: restore.Saved | None, model_config, mesh):
    """The parameters of the checkpoint, or of `model.init_from`, in their shards."""
    if saved is not None:
        dtype, ema = config.model.dtype, config.evaluate.ema
        return restore.read_params(saved, model_config, mesh, dtype, ema=ema)
    return setup.read_params(config, Weights(model_config, (), None), mesh)
