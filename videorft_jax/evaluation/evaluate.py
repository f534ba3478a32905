"""Evaluation: completions of every record of a file, what they are worth, and how sure that is.

`results_folder` describes what is written, `summary` how completions count. An evaluation that was
stopped goes on with the same command: records that are written are not run again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import jax

from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.contract_file import read_contract
from videorft_jax.data.records.opening import digest_records
from videorft_jax.data.records.prompts import PromptTemplate
from videorft_jax.evaluation.options import EvaluateOptions
from videorft_jax.evaluation.progress import Progress
from videorft_jax.evaluation.results_folder import ResultsFolder
from videorft_jax.evaluation.runner import evaluate_records, find_batches, own_records
from videorft_jax.evaluation.summary import format_table, summarise
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.tools import Tools
from videorft_jax.training.restore import Saved, find_checkpoint

log = logging.getLogger(__name__)


def evaluate(
    options: EvaluateOptions,
    workdir: str,
    settings: dict[str, dict],
    *,
    engine: RolloutEngine,
    tokenizer: Any,
    make_loader: Callable[[], Loader],
    prepare_params: Callable[[], Any],
    tools: Tools | None = None,
) -> dict[str, Any]:
    """Runs the records that `workdir` has no completions of, writes and prints the results, and
    returns them.

    settings: of `describe`. make_loader: gives the loader of the records, which measures them; it
    is called once the folder is known to be of this evaluation. prepare_params: gives the weights
    as `engine.prepare` does; it is called only when there is something to run. tools: what
    completions may call.

    Raises ValueError when the folder holds another evaluation.
    """
    with ResultsFolder(workdir, settings, options.num_rollouts) as folder:
        loader = make_loader()
        done = set().union(*gather(sorted({row["index"] for row in folder.rows})))
        log.info("media contract %s; %d records are there", _digest(settings), len(done))
        is_left = find_batches(loader, done | loader.failures.keys()).any()
        params = prepare_params() if is_left else None
        performance = _run(options, engine, params, tokenizer, loader, folder, done, tools)
        rows = folder.gather_rows()
        results = summarise(rows)
        folder.finish(rows, results, performance if is_left else {})
    if jax.process_index() == 0:
        print(format_table(results))
    return results


def find_weights(
    options: EvaluateOptions, contract: MediaContract, folder: str, adapter: str = ""
) -> Saved | None:
    """The checkpoint to evaluate, None where the options name none and the weights are those of the
    Hugging Face `folder`, with the `adapter` that is merged into them.

    Raises ValueError when there is no checkpoint, and when the model was trained on media of
    another contract, which exports hold too, and `other_media` does not allow that.
    """
    saved = find_checkpoint(options.checkpoint) if options.checkpoint else None
    if saved and adapter:
        raise ValueError(
            f"model.adapter={adapter}: the checkpoint {saved.name} holds its own weights; leave one"
            " of the two out"
        )
    added = read_contract(adapter) if adapter else None  # The adapter was trained last.
    trained = saved.contract if saved else added or read_contract(folder)
    difference = trained.diff(contract) if trained else ""
    if difference and not options.other_media:
        name = saved.name if saved else adapter if added else folder
        raise ValueError(
            f"{name}: was trained under another media contract "
            f"({difference}); give its config.media options, or --config.evaluate.other_media=True"
        )
    return saved


def describe(
    options: EvaluateOptions,
    contract: MediaContract,
    template: PromptTemplate,
    records: str | os.PathLike,
    num_records: int,
    weights: dict[str, Any],
) -> dict[str, dict]:
    """The settings of an evaluation: everything that decides what its outputs are. A folder is gone
    on with only where they are equal.

    records: the file, of which `num_records` are evaluated. weights: which weights, in what dtype.
    """
    words = json.dumps([template.system, template.question, dict(template.suffixes)])
    digest = digest_records(records)
    return {
        "records": {"sha256": digest, "num_records": num_records},
        "weights": weights,
        "media": contract.to_dict() | {"digest": contract.digest},
        "prompt": {"sha256": hashlib.sha256(words.encode()).hexdigest()},
        "evaluate": options.deciding(),
        "score": {"mode": options.mode, "seed": options.seed},
    }


def _digest(settings):
    return settings["media"]["digest"][:12]


def _run(
    options: EvaluateOptions,
    engine: RolloutEngine,
    params: Any,
    tokenizer: Any,
    loader: Loader,
    folder: ResultsFolder,
    done: set[int],
    tools: Tools | None,
) -> dict[str, float]:
    """Draws, scores and writes what is left; returns figures about the machine, over all
    processes."""
    left = len(own_records(loader) - done)
    drawing_s = 0.0

    def take(rows, counters):
        nonlocal drawing_s
        folder.write(rows)
        progress(rows)
        drawing_s += counters["prefill_s"] + counters["decode_s"]

    with Progress(left, options.interval_s) as progress:
        evaluate_records(
            engine, params, tokenizer, loader, mode=options.mode, seed=options.seed,
            blank=options.blank, done=done, on_batch=take, tools=tools,
        )  # fmt: skip
    tokens, records = (sum(part) for part in zip(*gather(progress.counts), strict=True))
    return {
        "records": records,
        "tokens": tokens,
        "seconds": progress.seconds,
        "tokens_per_s": tokens / progress.seconds,  # reading and compiling included
        "drawing_tokens_per_s": tokens / drawing_s if drawing_s else 0.0,
        "num_compiles": engine.num_compiles,
        "devices": jax.device_count(),
    }
