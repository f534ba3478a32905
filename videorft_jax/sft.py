"""Stage one: supervised fine-tuning on chains of thought.

One compiled step per bucket; the state is one checkpointed tree and one batch index, so that a run
that was killed goes on as if nothing had happened.
"""

import functools
import json
import logging
import operator
import sys

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax import assembly, cli, flops, losses, options, sharding, training
from videorft_jax.checkpoint import Checkpointer, PreemptionGuard
from videorft_jax.model import vlm
from videorft_jax.tracking import Tracker

log = logging.getLogger(__name__)

EXAMPLES = """videorft sft --config=configs/sft_7b.py --workdir=runs/sft_7b \\
    --config.model.init_from=DIR --config.data.records=FILE.jsonl
videorft sft --config=configs/sft_7b.py --workdir=runs/tensor4 --config.mesh.tensor=4 ..."""


def main(argv: list[str]) -> int:
    """videorft sft --config=FILE --workdir=DIR [--config.section.option=value ...]"""
    config, workdir = options.parse(argv, "videorft sft", EXAMPLES)
    return train(config, workdir)


def make_loss(config, weights: assembly.Weights):
    """(loss, totals) for `training.make_step`: cross-entropy of the assistant's tokens."""
    image = weights.model.token_ids.image

    def mask_of(batch):
        if config.train.legacy_labels:
            return losses.legacy_labels(batch.tokens, batch.segment_ids, image)
        return batch.loss_mask

    def totals(batch):
        return jnp.maximum(mask_of(batch).sum(), 1).astype(jnp.float32)

    def loss(joined, rows, num_targets):
        model = vlm.bind(weights.model, weights.merged(joined))
        settings = {"attention": config.model.attention, "remat": config.model.remat}
        hidden = model.hidden_states(rows, **settings)
        head = model.text.output_weight
        return losses.sft_loss(hidden, head, rows.tokens, mask_of(rows), num_targets)

    return loss, totals


def train(config, workdir: str) -> int:
    """Runs to the end of the data, or to the next checkpoint after SIGTERM. Returns exit code 0.

    Raises ValueError for a config that cannot work, RuntimeError when too many steps in a row were
    not finite.
    """
    log.info("%s on %s", config.name, options.describe_environment())
    mesh = assembly.make_mesh(config)
    model_config, tokenizer = assembly.load_model_files(config)
    contract = assembly.make_contract(config)
    weights = assembly.make_weights(config, model_config)
    abstract = assembly.abstract_state(config, weights, mesh)
    agreed = assembly.expected_meta(weights, contract)
    with (
        jax.set_mesh(mesh),
        Checkpointer(
            workdir,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        ) as checkpointer,
    ):
        checkpointer.check_room(abstract)
        state = None
        if checkpointer.latest_step() is not None:
            state, saved = checkpointer.restore(None, abstract, agreed)
        loader = assembly.make_loader(config, "sft", tokenizer, contract, workdir)
        total = min(len(loader), config.train.max_steps or len(loader))
        optimizer = training.make_optimizer(assembly.make_optim_config(config, total))
        if state is None:
            state = assembly.fresh_state(config, weights, optimizer, abstract, mesh)
        else:
            loader.check_digest(saved["data"]["plan"])
        meta = agreed | {
            "data": {"plan": loader.digest},
            "seed": config.seed,
            "config": json.loads(config.to_json_best_effort()),
        }
        loss, totals = make_loss(config, weights)
        step = training.make_step(
            loss,
            totals,
            optimizer,
            dtype=jnp.dtype(config.model.dtype),
            accumulate=config.train.accumulate,
            ema_decay=config.optim.ema_decay,
            shardings=jax.tree.map(lambda x: x.sharding, abstract),
        )
        _loop(config, workdir, weights, loader, mesh, checkpointer, meta, state, step, total)
    return 0


def _loop(config, workdir, weights, loader, mesh, checkpointer, meta, state, step, total):
    start = int(state.step)
    if start >= total:
        log.info("step %d of %d: nothing left to do; raise data.epochs to go on", start, total)
        return
    log.info("steps %d to %d; the first of each shape is compiled", start + 1, total)
    with (
        PreemptionGuard() as guard,
        Tracker(
            workdir,
            total,
            start_step=start + 1,
            interval=config.log.interval_s,
            wandb=config.log.wandb or None,
            config=meta["config"],
        ) as tracker,
        loader.steps(start) as batches,
    ):
        for number in range(start + 1, total + 1):
            with tracker.phase("data"):
                item = next(batches)
            batch = sharding.place_batch(item.batch, mesh)
            with tracker.phase("step"):
                state, metrics = step(state, batch)
                metrics = {name: float(value) for name, value in metrics.items()}
            tracker.log(number, metrics, **_counts(config, weights, item.batch))
            _check(config, number, metrics, item.records)
            stop = guard.should_stop(number)
            if stop or number == total or number % config.checkpoint.every == 0:
                checkpointer.save(number, state, meta)
            if stop:
                log.info("stopped after step %d; the same command goes on from there", number)
                break


def _check(config, number, metrics, records):
    if not metrics["skipped_in_row"]:
        return
    ids = [record.problem_id for row in records for record in row]
    log.warning("step %d was not finite and is skipped; samples %s", number, ids)
    if metrics["skipped_in_row"] >= config.train.max_skipped_in_row:
        raise RuntimeError(
            f"{config.name}: {int(metrics['skipped_in_row'])} steps in a row were not finite, the "
            f"last one step {number} with samples {ids}; lower optim.lr or look at those samples"
        )


def _counts(config, weights, batch):
    """Tokens and operations of a step over all processes, each holding as many rows."""
    useful, executed = (
        functools.reduce(operator.add, [work] * jax.process_count())
        for work in flops.packed_work(batch)
    )
    settings = {
        "remat": config.model.remat,
        "trained": weights.is_trained,
        "merged": weights.targets,
        "rank": config.lora.rank,
    }
    return {
        "tokens": int(np.sum(batch.segment_ids > 0)) * jax.process_count(),
        "useful": flops.train_cost(weights.model, useful, **settings),
        "executed": flops.train_cost(weights.model, executed, **settings),
    }


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:], "videorft sft"))
