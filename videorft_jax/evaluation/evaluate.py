"""Evaluation: completions of every record of a file, what they are worth, and how sure that is.

The file is any in the record format. The weights are those of a Hugging Face folder or of one of
our checkpoints. What is written is described in evaluation/output.py, how completions count in
evaluation/summary.py. An evaluation that was stopped goes on with the same command.
"""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import sys
import time
from typing import Any

import jax

from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.head import Head
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.records import RecordSource
from videorft_jax.evaluation.results_folder import OutputFolder
from videorft_jax.evaluation.runner import evaluate_records
from videorft_jax.evaluation.summary import format_table, summarise
from videorft_jax.parallel.processes import gather
from videorft_jax.rewards.accuracy import check_mode
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.training import options
from videorft_jax.training import restore as restoring
from videorft_jax.training import setup as assembly
from videorft_jax.training.weights import Weights

log = logging.getLogger(__name__)


def evaluate(config, workdir: str) -> int:
    """Runs the records that the work directory has no completions of, and writes and prints the
    results. Returns exit code 0. Raises ValueError for a config that cannot work."""
    log.info("%s on %s", config.name, options.describe_environment())
    mesh = assembly.make_mesh(config)
    check_mode(config.reward.mode)
    if config.evaluate.limit < 0:
        raise ValueError(
            f"{config.name}: evaluate.limit is {config.evaluate.limit}; give at least 0"
        )
    contract = assembly.make_contract(config)
    saved = find_weights(config, contract)
    model_config, tokenizer = assembly.load_model_files(config)
    engine = make_engine(config, model_config, tokenizer, mesh)
    source = RecordSource(config.data.records, config.data.root or None)
    if config.evaluate.limit:
        source = Head(source, config.evaluate.limit)
    settings = describe(config, contract, saved, len(source))
    with OutputFolder(workdir, settings, config.evaluate.num_rollouts) as folder:
        loader = assembly.make_loader(config, "evaluate", tokenizer, contract, workdir, source)
        done = {row["index"] for row in folder.rows}
        log.info("media contract %s; %d records are there", contract.digest[:12], len(done))
        performance = {}
        if any(gather(any(int(index) not in done for index in loader.plan.record))):
            params = engine.prepare(read_weights(config, saved, model_config, mesh))
            performance = run(config, engine, params, tokenizer, loader, folder, done)
        rows = folder.gather_rows()
        results = summarise(rows, seed=config.seed)
        folder.finish(results, performance)
    if jax.process_index() == 0:
        print(format_table(results))
        print(f"{workdir}/results.json")
    return 0


def find_weights(config, contract: MediaContract) -> restoring.Saved | None:
    """The checkpoint to evaluate, None for the weights of `model.init_from`; that option is filled
    in where the checkpoint knows it. Raises ValueError when the model was trained on media of
    another contract and this is not asked for."""
    path = config.evaluate.checkpoint
    if not path:
        if config.evaluate.ema:
            raise ValueError(
                f"{config.name}: evaluate.ema is of a checkpoint; give evaluate.checkpoint"
            )
        return None
    saved = restoring.find_checkpoint(path)
    config.model.init_from = config.model.init_from or saved.init_from
    difference = saved.contract.diff(contract)
    if difference and not config.evaluate.other_media:
        raise ValueError(
            f"{saved.name}: was trained under another media contract ({difference}); give its "
            "config.media options, or --config.evaluate.other_media=True"
        )
    return saved


def read_weights(config, saved: restoring.Saved | None, model_config, mesh) -> Any:
    """The model's parameters in their shards."""
    if saved is not None:
        dtype, ema = config.model.dtype, config.evaluate.ema
        return restoring.read_params(saved, model_config, mesh, dtype, ema=ema)
    return assembly.read_params(config, Weights(model_config, (), None), mesh)


def make_engine(config, model_config, tokenizer, mesh) -> RolloutEngine:
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


def describe(config, contract: MediaContract, saved, num_records: int) -> dict[str, dict]:
    """All that decides about the outputs: an evaluation is gone on with only where it is equal."""
    template = config.data.template_file
    template = load_template(template) if template else DEFAULT_TEMPLATE
    words = json.dumps([template.system, template.question, dict(template.suffixes)])
    with open(config.data.records, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    free = ("checkpoint", "other_media")  # told by `weights`
    return {
        "records": {"sha256": digest, "num_records": num_records},
        "weights": {
            "init_from": config.model.init_from,
            "checkpoint": saved and saved.name,
            "dtype": config.model.dtype,
            "int8_weights": config.rollout.int8_weights,
            "int8_cache": config.rollout.int8_cache,
        },
        "media": contract.to_dict() | {"digest": contract.digest},
        "prompt": {"sha256": hashlib.sha256(words.encode()).hexdigest()},
        "evaluate": {k: v for k, v in config.evaluate.to_dict().items() if k not in free},
        "score": {"mode": config.reward.mode, "seed": config.seed},
    }


def run(
    config, engine, params, tokenizer, loader: Loader, folder: OutputFolder, done: set[int]
) -> dict[str, float]:
    """Draws, scores and writes what is left; figures about the machine, of all processes."""
    left = sum(int(index) not in done for index in loader.plan.record)
    progress = Progress(left, config.log.interval_s)
    drawing_s = 0.0

    def take(rows, counters):
        nonlocal drawing_s
        folder.write(rows)
        progress(rows)
        drawing_s += counters["prefill_s"] + counters["decode_s"]

    evaluate_records(
        engine, params, tokenizer, loader, mode=config.reward.mode, seed=config.seed,
        blank=config.evaluate.blank, done=done, on_batch=take,
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


@dataclasses.dataclass
class Progress:
    """A line on how far this process is, live on a terminal, else every `interval` seconds."""

    total: int
    interval: float

    def __post_init__(self):
        self.start, self.printed = time.perf_counter(), -math.inf
        self.tokens, self.scores, self.records = 0, [], set()

    @property
    def counts(self) -> tuple[int, int]:
        return self.tokens, len(self.records)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def __call__(self, rows: list[dict]) -> None:
        self.tokens += sum(row["completion_tokens"] or 0 for row in rows)
        self.scores += [row["score"] for row in rows if row["score"] is not None]
        self.records |= {row["index"] for row in rows}
        seconds, done = self.seconds, len(self.records)
        last, live = done >= self.total, sys.stderr.isatty()
        if jax.process_index() or not (live or last or seconds - self.printed >= self.interval):
            return
        self.printed = seconds
        parts = [f"{done}/{self.total} records"]
        if self.scores:
            parts.append(f"accuracy {sum(self.scores) / len(self.scores):.3f}")
        parts.append(f"{self.tokens / seconds:,.0f} tok/s")
        minutes, left = divmod(round(seconds / max(done, 1) * (self.total - done)), 60)
        text = "  ".join([*parts, f"ETA {minutes // 60}:{minutes % 60:02d}:{left:02d}"])
        if live:
            text = f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}"
        sys.stderr.write(text + ("\n" if last or not live else ""))
        sys.stderr.flush()
