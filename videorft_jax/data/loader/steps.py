"""The steps of a run: grain's chain of samples, assembled to batches, watched, and ended cleanly.

Grain sees single samples, not batches. What stands where is read off the schedule, so grain's own
state is never saved: batch k on any number of processes, workers and threads is the same, and clips
of one batch are decoded by all threads at once. The schedule also tells where a clip will stand, so
each thread cuts its clips straight into the batch, whose memory is used again (see `Trays`); one
more thread lays out the rest while the accelerator works.
"""

import contextlib
import dataclasses
import functools
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import NamedTuple

import grain
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.layout import Sample, pack
from videorft_jax.data.loader.buffers import Pool, Trays
from videorft_jax.data.loader.load_sample import Load, Loaded
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.precedence import go_before_devices
from videorft_jax.data.loader.schedule import Schedule
from videorft_jax.data.loader.watchdog import (
    kill_workers,
    mark_flags_parsed,
    quieten_tracker,
    start_worker,
)
from videorft_jax.data.records.quarantine import Failure, Quarantine
from videorft_jax.data.records.records import Record

# Workers hand arrays of so many bytes and more over in shared memory. The rest of a sample then
# fits into a pipe and is written in one go. A worker that is killed in the middle of a longer write
# would leave half a message, and grain would wait for the other half for ever.
LARGE_ARRAY = 1 << 12
CLOSE_S = 10.0
MakeSpan = Callable[[str], contextlib.AbstractContextManager]


class Step(NamedTuple):
    """One batch of this process's rows, B of them, and what belongs to it on the host."""

    batch: Batch  # NumPy arrays
    records: list[list[Record]]  # Each row has its own, in the order of its segments.
    indices: list[list[int]]  # the same as positions in the source: names for random keys
    valid: np.ndarray  # bool [B], the row holds a sample
    failures: list[tuple[int, Failure]]  # row, and what should have stood in it
    index: int  # It counts batches; `index + 1` is the state to save after this step.
    epoch: int
    bucket: int
    pairs: list[list[int]]  # the frame pairs of each clip and image of each row, in order


class LoaderStalled(RuntimeError):
    """No batch arrived within the limit, or a worker process died."""


class Steps:
    """Iterator of `Step`, and a context manager. Raises LoaderStalled, TooManyBad.

    span: gives a context manager for the name of what a thread of the loader does inside, so that
    a profile can show it.
    """

    def __init__(
        self,
        schedule: Schedule,
        load: Load,
        pool: Pool,
        quarantine: Quarantine,
        options: LoaderOptions,
        start: int,
        span: MakeSpan = contextlib.nullcontext,
    ):
        self._span = span
        self._schedule, self._load, self._quarantine = schedule, load, quarantine
        self._options, self._start = options, start
        self._trays = Trays(
            schedule, load.needs[schedule.record, 1], pool, load.measurer.contract.geometry
        )
        self._folder = tempfile.mkdtemp(prefix="videorft-loader-")
        self._stop, self._ended = threading.Event(), None
        self._ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=1)
        self._pump = threading.Thread(target=self._work, daemon=True, name="videorft-loader")
        go_before_devices()
        self._pump.start()

    @property
    def is_ready(self) -> bool:
        """Whether `next` has something to give, or to raise, at once."""
        return self._ended is not None or not self._ready.empty()

    def __iter__(self) -> "Steps":
        return self

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __next__(self) -> Step:
        if self._ended is not None:
            raise self._ended
        options = self._options
        try:
            item = self._ready.get(timeout=options.timeout_s)
        except queue.Empty:
            item = LoaderStalled(
                f"loader: no batch within {options.timeout_s:g} s ({options.workers} workers,"
                f" {options.num_threads} threads); check the storage or raise timeout_s"
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
        schedule, workers = self._schedule, self._options.workers
        slots = np.arange(schedule.starts[self._start], len(schedule.record))
        share = max(1, workers)
        buffer = max(1, 2 * int(np.diff(schedule.starts).max(initial=1)) // share)
        threads = -(-self._options.num_threads // share)
        options = grain.ReadOptions(threads, buffer if threads else 0)
        if not workers:
            return grain.MapDataset.source(slots).map(self._fill).to_iter_dataset(options)
        load = functools.partial(self._load, place=Sample.in_one_piece)
        chain = grain.MapDataset.source(schedule.record[slots]).map(load).to_iter_dataset(options)
        mark_flags_parsed()
        quieten_tracker()
        options = grain.experimental.DatasetOptions(min_shm_size=LARGE_ARRAY)
        chain = grain.experimental.WithOptionsIterDataset(chain, options)
        return chain.mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=1),
            worker_init_fn=_WorkerStart(self._folder),
        )

    def _fill(self, slot: np.int64) -> Loaded | Failure:
        place = functools.partial(self._trays.put, int(slot))
        with self._span("loader: decode a clip"):
            return self._load(self._schedule.record[slot], place)

    def _assemble(self, samples):
        for k in range(self._start, len(self._schedule)):
            yield self._make_step(k, samples)

    def _make_step(self, k: int, samples) -> Step:
        schedule, quarantine = self._schedule, self._quarantine
        bucket = schedule.buckets[schedule.bucket[k]]
        rows: list[list[Loaded]] = [[] for _ in range(bucket.rows)]
        indices: list[list[int]] = [[] for _ in range(bucket.rows)]
        failures, loaded = [], int(schedule.starts[k + 1])
        for slot in range(schedule.starts[k], schedule.starts[k + 1]):
            found, row = next(samples), int(schedule.row[slot])
            if isinstance(found, Failure):
                failures.append((row, found))
                quarantine.add(found, "load", loaded)
            else:
                rows[row].append(found)
                indices[row].append(int(schedule.record[slot]))
        quarantine.check(loaded)
        samples = [[item.sample for item in row] for row in rows]
        with self._span("loader: lay out a batch"):
            batch = pack(samples, *bucket[:3], self._trays.take(k))
        return Step(
            batch=batch,
            records=[[item.record for item in row] for row in rows],
            indices=indices,
            valid=np.array([bool(row) for row in rows]),
            failures=failures,
            index=k,
            epoch=int(schedule.epoch[k]),
            bucket=int(schedule.bucket[k]),
            pairs=[[item.grid[0] for sample in row for item in sample.media] for row in samples],
        )


@dataclasses.dataclass(frozen=True)
class _WorkerStart:
    folder: str

    def __call__(self, worker: int, num_workers: int) -> None:
        start_worker(self.folder, worker, num_workers)
