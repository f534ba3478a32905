"""From records to steps: the grain chain, assembled to batches, watched, and resumable by a number.

One design decision is worth knowing: grain sees single samples, not batches. What stands where is
read off the plan, so grain's own state is never saved: batch k on any number of processes, workers
and threads is the same, and clips of one batch are decoded by all threads at once. The plan also
tells where a clip will stand, so each thread cuts its clips straight into the batch, whose memory
is used again (see `trays`); one more thread lays out the rest while the accelerator works.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import queue
import shutil
import tempfile
import threading
from typing import Any, NamedTuple

import grain
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.layout import Sample, pack
from videorft_jax.data.loader.buckets import Bucket, choose_buckets
from videorft_jax.data.loader.buffers import Pool, Trays, patches_shape
from videorft_jax.data.loader.load_sample import Load, Loaded
from videorft_jax.data.loader.measure import Answers, Measurer, Source, measure
from videorft_jax.data.loader.schedule import Plan, make_plan
from videorft_jax.data.loader.watchdog import kill_workers, mark_flags_parsed, start_worker
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, PromptTemplate
from videorft_jax.data.records.quarantine import Failure, Quarantine
from videorft_jax.data.records.records import Record

logger = logging.getLogger(__name__)
MODES = ("sft", "grpo", "evaluate")
MAX_THREADS = 16
# Bytes from which workers hand arrays over in shared memory. What is left of a sample fits into a
# pipe and is written in one go: a worker killed within a write would leave half a message, for
# whose rest grain waits for ever, even when the process ends.
LARGE_ARRAY = 1 << 12
CLOSE_S = 10.0


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """mode: "sft" packs samples with their answers into rows, "grpo" lays one prompt in a row,
    "evaluate" does so once, unshuffled, and keeps bad records as invalid rows.

    rows: of a batch, all processes together. row_tokens: of a packed row, and the most a sample may
    have. max_buckets: number of compiled shapes. multiple: row lengths are multiples of this.
    max_bad_fraction: above it the run stops. threads: that decode, in each process; None: one per
    core, at most 16; 0: none. workers: processes that decode, 0 for threads alone. timeout_s:
    seconds without a batch after which the run fails. isolate: decode in killable processes.
    """

    mode: str
    rows: int
    row_tokens: int
    max_buckets: int
    multiple: int
    epochs: int
    seed: int
    max_bad_fraction: float
    threads: int | None
    workers: int
    timeout_s: float
    isolate: bool

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"loader: mode {self.mode!r}; choose one of {', '.join(MODES)}")
        if self.epochs < 1 or (self.mode == "evaluate" and self.epochs != 1):
            raise ValueError(f"loader: epochs {self.epochs}; give at least 1, 1 to evaluate")
        if self.workers < 0 or (self.threads or 0) < 0 or not self.timeout_s > 0:
            raise ValueError("loader: threads and workers are >= 0, timeout_s is > 0")

    @property
    def num_threads(self) -> int:
        if self.threads is not None:
            return self.threads
        return min(len(os.sched_getaffinity(0)), MAX_THREADS)


class Step(NamedTuple):
    """One batch of this process's rows, B of them, and what belongs to it on the host."""

    batch: Batch  # NumPy arrays
    records: list[list[Record]]  # of each row, in the order of its segments
    indices: list[list[int]]  # the same as positions in the source: names for random keys
    valid: np.ndarray  # bool [B], the row holds a sample
    failures: list[tuple[int, Failure]]  # row, and what should have stood in it
    index: int  # of the batch in the run; `index + 1` is the state to save after this step
    epoch: int
    bucket: int


class LoaderStalled(RuntimeError):
    """No batch arrived within the limit, or a worker process died."""


class Loader:
    """Measures all records, chooses the shapes and plans the run; `steps(k)` reads from batch k on.

    answers_dir: where measured sizes are remembered. quarantine_path: JSONL of bad records (of
    process p > 0: with "-p" before the suffix). cache: a `cache.FrameCache` of the same contract.
    Raises ValueError for settings that cannot work, TooManyBad.

    len() is the number of batches of all epochs; `buckets` the compiled shapes, rows of this
    process only; `digest` names the plan and the contract: all processes must have the same one,
    and a restored run the one it was saved with.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        contract: MediaContract,
        config: LoaderConfig,
        *,
        template: PromptTemplate = DEFAULT_TEMPLATE,
        limits: Limits = Limits(),  # noqa: B008, frozen
        answers_dir: str | os.PathLike | None = None,
        quarantine_path: str | os.PathLike | None = None,
        cache: Any = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.config = config
        if cache is not None:
            cache.check_contract(contract)
        measurer = Measurer(
            source=source,
            contract=contract,
            tokenizer=tokenizer,
            template=template,
            target=config.mode == "sft",
            limits=limits,
            isolate=config.isolate,
        )
        if process_index and quarantine_path is not None:
            root, suffix = os.path.splitext(quarantine_path)
            quarantine_path = f"{root}-{process_index}{suffix}"
        self.quarantine = Quarantine(quarantine_path, config.max_bad_fraction, len(source))
        answers = Answers(answers_dir, process_index)
        try:
            measured = measure(measurer, answers, max(1, config.num_threads))
        finally:
            answers.close()
        sizes, failures = measured.sizes, list(measured.failures)
        for index in np.flatnonzero(sizes.tokens > config.row_tokens):
            what = f"{sizes.tokens[index]} tokens, row_tokens is {config.row_tokens}"
            failures.append(Failure(int(index), source.where(int(index)), "too_many_tokens", what))
        for failure in failures:
            self.quarantine.add(failure, "measure")
        self.quarantine.check(0)
        known = {failure.index: failure for failure in failures}
        good = np.array([i for i in range(len(source)) if i not in known], np.int64)
        packed, evaluate = config.mode == "sft", config.mode == "evaluate"
        buckets = choose_buckets(
            sizes.take(good),
            config.rows,
            config.row_tokens,
            config.max_buckets,
            config.multiple,
            packed,
        )
        for index in known:  # bad records of an evaluation take up an empty row
            for size in sizes:
                size[index] = 0
        plan = make_plan(
            np.arange(len(source)) if evaluate else good,
            sizes,
            buckets,
            packed=packed,
            seed=None if evaluate else config.seed,
            epochs=config.epochs,
        )
        self.waste = plan.waste(sizes, measured.visual_tokens)
        self.digest = f"{plan.digest[:32]}{contract.digest[:32]}"
        self.plan: Plan = plan.share(process_index, process_count)
        self.buckets: tuple[Bucket, ...] = self.plan.buckets
        self._load = Load(measurer, np.stack(sizes, axis=1), known, cache)
        self._pool = Pool(max(math.prod(patches_shape(bucket)) for bucket in self.buckets))
        logger.info(
            "%d records, %d bad; %d batches in %d epochs; %d compiled shapes (tokens, frame pairs,"
            " windows): %s; padding %.1f %% of tokens, %.1f %% of visual slots",
            len(source),
            len(known),
            len(plan),
            config.epochs,
            len(buckets),
            ", ".join(str(tuple(map(int, b[:3]))) for b in buckets),
            *(100 * share for share in self.waste),
        )

    def __len__(self) -> int:
        return len(self.plan)

    def check_digest(self, digest: str) -> None:
        """Raises ValueError when a saved run had another plan, so that k means other batches."""
        if digest != self.digest:
            raise ValueError(
                f"loader: the saved run read plan {digest}, this one {self.digest}; restore the"
                " records, media, media contract and loader settings it had, or start anew"
            )

    def steps(self, start: int = 0) -> "Steps":
        """Batches start, start + 1, ... to the end of the last epoch. Close it when done."""
        if not 0 <= start <= len(self):
            raise ValueError(f"loader: batch {start} of {len(self)}; give 0 to {len(self)}")
        return Steps(self, start)


class Steps:
    """Iterator of `Step`, and a context manager. Raises LoaderStalled, TooManyBad."""

    def __init__(self, loader: Loader, start: int):
        self._loader, self._start = loader, start
        plan = loader.plan
        self._trays = Trays(plan, loader._load.needs[plan.record, 1], loader._pool)
        self._folder = tempfile.mkdtemp(prefix="videorft-loader-")
        self._stop, self._ended = threading.Event(), None
        self._ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=1)
        self._pump = threading.Thread(target=self._work, daemon=True, name="videorft-loader")
        self._pump.start()

    def __iter__(self) -> "Steps":
        return self

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __next__(self) -> Step:
        if self._ended is not None:
            raise self._ended
        config = self._loader.config
        try:
            item = self._ready.get(timeout=config.timeout_s)
        except queue.Empty:
            item = LoaderStalled(
                f"loader: no batch within {config.timeout_s:g} s ({config.workers} workers,"
                f" {config.num_threads} threads); check the storage or raise timeout_s"
            )
        if isinstance(item, Step):
            return item
        self._ended = item
        self.close()
        raise item

    def close(self) -> None:
        """Ends threads and worker processes; safe to call twice."""
        if self._ended is None:
            self._ended = StopIteration()
        self._stop.set()
        stalled = isinstance(self._ended, LoaderStalled)
        if os.path.isdir(self._folder):
            if stalled:
                kill_workers(self._folder)
            self._pump.join(CLOSE_S)
            if self._pump.is_alive() and not stalled:
                kill_workers(self._folder)
                self._pump.join(CLOSE_S)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        try:
            samples = iter(self._chain())
            try:
                for step in self._assemble(samples):
                    self._hand_over(step)
                    del step  # so that its memory is free when the receiver is done
                    if self._stop.is_set():
                        return
            finally:
                samples.close()
            self._hand_over(StopIteration())
        except RuntimeError as error:
            if "Worker process was terminated" in str(error):
                error = LoaderStalled(f"loader: {error}")
            self._hand_over(error)
        except BaseException as error:
            self._hand_over(error)

    def _hand_over(self, item: Step | BaseException) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.2)
                return

    def _chain(self) -> grain.IterDataset:
        plan, config = self._loader.plan, self._loader.config
        slots = np.arange(plan.starts[self._start], len(plan.record))
        share = max(1, config.workers)
        buffer = max(1, 2 * int(np.diff(plan.starts).max(initial=1)) // share)
        threads = -(-config.num_threads // share)
        options = grain.ReadOptions(threads, buffer if threads else 0)
        if not config.workers:
            return grain.MapDataset.source(slots).map(self._fill).to_iter_dataset(options)
        load = functools.partial(self._loader._load, place=Sample.in_one_piece)
        chain = grain.MapDataset.source(plan.record[slots]).map(load).to_iter_dataset(options)
        mark_flags_parsed()
        options = grain.experimental.DatasetOptions(min_shm_size=LARGE_ARRAY)
        chain = grain.experimental.WithOptionsIterDataset(chain, options)
        return chain.mp_prefetch(
            grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=1),
            worker_init_fn=_WorkerStart(self._folder),
        )

    def _fill(self, slot: np.int64) -> Loaded | Failure:
        place = functools.partial(self._trays.put, int(slot))
        return self._loader._load(self._loader.plan.record[slot], place)

    def _assemble(self, samples):
        for k in range(self._start, len(self._loader)):
            yield self._make_step(k, samples)

    def _make_step(self, k: int, samples) -> Step:
        plan, quarantine = self._loader.plan, self._loader.quarantine
        bucket = plan.buckets[plan.bucket[k]]
        rows: list[list[Loaded]] = [[] for _ in range(bucket.rows)]
        indices: list[list[int]] = [[] for _ in range(bucket.rows)]
        failures = []
        for slot in range(plan.starts[k], plan.starts[k + 1]):
            found, row = next(samples), int(plan.row[slot])
            if isinstance(found, Failure):
                failures.append((row, found))
                quarantine.add(found, "load")
            else:
                rows[row].append(found)
                indices[row].append(int(plan.record[slot]))
        quarantine.check(int(plan.starts[k + 1]))
        samples = [[item.sample for item in row] for row in rows]
        return Step(
            batch=pack(samples, *bucket[:3], self._trays.take(k)),
            records=[[item.record for item in row] for row in rows],
            indices=indices,
            valid=np.array([bool(row) for row in rows]),
            failures=failures,
            index=k,
            epoch=int(plan.epoch[k]),
            bucket=int(plan.bucket[k]),
        )


@dataclasses.dataclass(frozen=True)
class _WorkerStart:
    folder: str

    def __call__(self, worker: int, num_workers: int) -> None:
        start_worker(self.folder, worker, num_workers)
