"""Answers held-out records with the weights that a run is training, for `training.validation`."""

import dataclasses
import logging
import math
import os
from typing import Any

from videorft_jax.data.records import opening
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import FirstRecords, Source
from videorft_jax.evaluation.runner import evaluate_records
from videorft_jax.evaluation.summary import summarise
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.training.run import Run, make_loader, make_tools
from videorft_jax.training.step import TrainState
from videorft_jax.training.trees import join
from videorft_jax.training.validation import Measure

log = logging.getLogger(__name__)


def open_validation(run: Run) -> Measure:
    """Reads and measures the records of `validate.records`, which are shown under the run's own
    media contract and prompt, and returns the function that answers them.

    Raises ValueError where the file cannot be read, and where it shows a clip that the run trains
    on.
    """
    options, validate = run.options, run.options.validate
    source: Source = opening.open_records(validate.records, validate.root or None, "auto")
    if validate.limit:
        source = FirstRecords(source, validate.limit)
    check_overlap(source, run.loader.source, validate.records)
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


def check_overlap(held_out: Source, trained: Source, name: str) -> None:
    """Raises ValueError where records to validate with show a clip that is trained on.

    Clips are the same where their paths lead to the same file. Media that a source holds itself
    have no path and are not compared.
    """
    seen = {path for _, path in _find_paths(trained)}
    both = [(index, path) for index, path in _find_paths(held_out) if path in seen]
    if both:
        index, path = both[0]
        num_records = len({index for index, _ in both})
        raise ValueError(
            f"validate.records={name}: {num_records} records show clips that are trained on, the "
            f"first {held_out.where(index)}: {path}; take them out of one of the two files"
        )


def _find_paths(source):
    """(record, file that a path of its media leads to) of all records that can be read."""
    for index in range(len(source)):
        try:
            items = source[index].media
        except RecordError:  # The loader names it.
            continue
        for item in items:
            paths = item.path if isinstance(item.path, tuple) else (item.path,)
            for path in paths:
                if path:
                    yield index, os.path.realpath(os.path.join(source.data_root, path))
