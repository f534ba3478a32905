"""Stage one: supervised fine-tuning on chains of thought.

One compiled step per bucket; the state is one checkpointed tree and one batch index, so that a run
that was killed goes on as if nothing had happened.
"""

import functools
import logging
import operator

import jax
import numpy as np

from videorft_jax.metrics import flops
from videorft_jax.metrics.tracker import Tracker
from videorft_jax.parallel import sharding
from videorft_jax.training import setup as assembly
from videorft_jax.training.preemption import PreemptionGuard, stopped
from videorft_jax.training.sft_step import make_sft_step

log = logging.getLogger(__name__)


def train(config, workdir: str, check_memory) -> int:
    """Runs to the end of the data. Returns exit code 0. `check_memory` is that of `open_run`.

    Raises ValueError for a config that cannot work, RuntimeError when too many steps in a row were
    not finite, and SystemExit once a checkpoint is written after SIGTERM.
    """
    with assembly.open_run(config, workdir, "sft", check_memory) as run:
        step = make_sft_step(config, run.weights, run.optimizer, run.shardings)
        _loop(config, run, step)
    return 0


def _loop(config, run, step):
    state, start, total = run.state, int(run.state.step), run.total
    if start >= total:
        log.info("step %d of %d: nothing left to do; raise data.epochs to go on", start, total)
        return
    log.info("steps %d to %d; the first of each shape is compiled", start + 1, total)
    with (
        PreemptionGuard() as guard,
        Tracker(
            run.folder,
            total,
            start_step=start + 1,
            interval=config.log.interval_s,
            wandb=config.log.wandb or None,
            config=run.meta["config"],
        ) as tracker,
        run.loader.steps(start) as batches,
    ):
        for number in range(start + 1, total + 1):
            with tracker.phase("data"):
                item = next(batches)
            batch = sharding.place_batch(item.batch, run.mesh)
            with tracker.phase("step"):
                state, metrics = step(state, batch)
                metrics = {name: float(value) for name, value in metrics.items()}
            tracker.log(number, metrics, **_counts(config, run.weights, item.batch))
            assembly.check_skipped(config, number, metrics, item.records)
            stop = guard.should_stop(number)
            if stop or number == total or number % config.checkpoint.every == 0:
                run.save(number, state, number)
            if stop:
                log.info("stopped after step %d; the same command goes on from there", number)
                raise stopped()


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
