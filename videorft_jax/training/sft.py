"""Stage one: supervised fine-tuning on chains of thought.

One step is compiled for each bucket of the loader. A checkpoint holds the whole state and the index
of the next batch, so that a run that was killed goes on as if nothing had happened.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.metrics import flops
from videorft_jax.metrics.profile import span
from videorft_jax.parallel import sharding
from videorft_jax.training.ahead import Ahead
from videorft_jax.training.counts import over_processes, train_settings
from videorft_jax.training.loop import Taken, begin_validation, run_steps, say_nothing_left
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.run import Run, open_run
from videorft_jax.training.sft_step import make_sft_step
from videorft_jax.training.validation import Measure


def train(
    options: TrainOptions, workdir: str, check_memory, open_validation: Callable[[Run], Measure]
) -> int:
    """Trains to the end of the data and returns exit code 0.

    check_memory: that of `open_run`. open_validation: makes the function that answers the records
    of `validate.records`; `evaluation.validation` has one.

    Raises ValueError for options that cannot work, RuntimeError when too many steps in a row were
    not finite, and SystemExit once a checkpoint is written after SIGTERM.
    """
    with open_run(options, workdir, "sft", check_memory) as run:
        start = int(run.state.step)
        if start >= run.total:
            say_nothing_left(run)
            return 0
        validation = begin_validation(run, open_validation)
        step = make_sft_step(options, run.weights, run.optimizer, run.shardings)
        with run.loader.steps(start, span) as items:
            batches = Ahead(items, lambda item: sharding.place_batch(item.batch, run.mesh))

            def take_step(number, state, tracker):
                with tracker.phase("data"):
                    item, batch = next(batches)
                with tracker.phase("step"):
                    state, metrics = step(state, batch)
                    if number < run.total:
                        batches.fetch(metrics["loss"].is_ready)
                    with span("step: wait for the devices"):
                        metrics = {name: float(value) for name, value in metrics.items()}
                return Taken(state, metrics, _counts(run, item.batch), item.records, number)

            run_steps(run, start, take_step, validation=validation)
    return 0


def _counts(run: Run, batch: Batch) -> dict[str, Any]:
    """Tokens and operations of a packed batch."""
    settings = train_settings(run.options, run.weights)
    useful, executed = (
        flops.train_cost(run.weights.model, over_processes(work), **settings)
        for work in flops.packed_work(batch)
    )
    tokens = over_processes(int(np.sum(batch.segment_ids > 0)))
    return {"tokens": tokens, "useful": useful, "executed": executed}
