"""Answers held-out records with the weights that a run is training, for `training.validation`."""

import dataclasses
import logging
import math
import os
from typing import Any

from videorft_jax.evaluation.runner import evaluate_records
from videorft_jax.evaluation.summary import summarise
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.training.held_out import open_held_out
from videorft_jax.training.run import Run, make_loader, make_tools
from videorft_jax.training.step import TrainState
from videorft_jax.training.trees import join
from videorft_jax.training.validation import Measure

log = logging.getLogger(__name__)


def open_validation(run: Run) -> Measure:
    """Reads and measures the records of `validate.records`, which are shown under the run's own
    media contract and prompt, and returns the function that answers them.

    Raises ValueError where the file cannot be read.
    """
    options, validate = run.options, run.options.validate
    source = open_held_out(validate)
    data = dataclasses.replace(
        options.data,
        records=validate.records,
        root=validate.root,
        format="auto",
        pass_rates="",
        filter="",
        order="",
        epochs=1,
        max_bad_fraction=1.0,  # A record that cannot be read is counted, and ends nothing.
    )
    loader = make_loader(
        dataclasses.replace(options, data=data),
        "evaluate",
        run.tokenizer,
        os.path.join(run.folder, "validate"),
        source,
    )
    sampling = make_sampling(
        run.weights.model,
        run.tokenizer,
        num_rollouts=1,
        max_new_tokens=validate.max_new_tokens,
        temperature=0.0,
    )
    model, tools = options.model, make_tools(options, run.tokenizer, source)
    engine = RolloutEngine(
        run.weights.model, sampling, run.mesh, dtype=model.dtype, attention=model.attention
    )

    def measure(state: TrainState) -> dict[str, float]:
        params = engine.prepare(run.weights.merged(join(state.params, state.frozen)))
        own = evaluate_records(
            engine, params, run.tokenizer, loader, mode=validate.mode, seed=options.seed,
            tools=tools,
        )  # fmt: skip
        rows = [row for part in gather(own) for row in part]
        return figures({row["index"]: row for row in rows}.values())

    return measure


def figures(rows) -> dict[str, float]:
    """The metrics of one round: accuracy with its 95 % interval clustered by clip, the accuracy
    with every record in the denominator, counts, and the mean length of a completion."""
    whole: dict[str, Any] = summarise(sorted(rows, key=lambda row: row["index"]))
    names = ("accuracy", "low", "high", "all_rows", "num_records", "num_scored", "unparseable")
    names += ("truncated", "quarantined", "mean_length")
    return {name: math.nan if whole[name] is None else float(whole[name]) for name in names}
