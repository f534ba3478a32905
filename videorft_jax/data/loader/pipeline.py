"""The loader: from records to the batches of a run, which a number resumes."""

import contextlib
import logging
import math
import os
from typing import Any

import numpy as np

from videorft_jax.data.loader.buckets import Bucket, choose_buckets
from videorft_jax.data.loader.buffers import Pool, patches_shape
from videorft_jax.data.loader.load_sample import Load
from videorft_jax.data.loader.measure import Measured, Measurer, measure
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.recent import RecentClips
from videorft_jax.data.loader.schedule import Schedule, make_schedule
from videorft_jax.data.loader.shorten import Frames, shorten
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.loader.steps import MakeSpan, Steps
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.records.pass_rates import Selection
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, PromptTemplate
from videorft_jax.data.records.quarantine import Failure, Quarantine
from videorft_jax.data.records.records import Record
from videorft_jax.data.records.source import Source

log = logging.getLogger(__name__)


class Loader:
    """Measures all records, chooses the shapes and schedules the run; `steps(k)` reads from batch k
    on.

    sizes_dir: folder where measured sizes are remembered; shared_sizes: another one that is only
    read, such as that of `videorft validate`. quarantine_path: JSONL of bad records (of
    process p > 0: with "-p" before the suffix). cache: a `FrameCache` of the same contract. Raises
    ValueError for settings that cannot work, TooManyBad.

    len() is the number of batches of all epochs; `buckets` the compiled shapes, rows of this
    process only; `waste` the share of padding among tokens and among visual slots; `digest` names
    the schedule and the contract: all processes must have the same one, and a restored run the one
    it was saved with; `source` the records; `failures` those of all processes that measuring found
    to be bad, by their index; `shortened` the frames of those that an evaluation shows with fewer;
    `clips` int [N] numbers the media of each record, so that records
    of an evaluation which show the same have the same number.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        contract: MediaContract,
        options: LoaderOptions,
        *,
        template: PromptTemplate = DEFAULT_TEMPLATE,
        limits: Limits = Limits(),  # noqa: B008, frozen
        sizes_dir: str | os.PathLike | None = None,
        shared_sizes: str | os.PathLike | None = None,
        quarantine_path: str | os.PathLike | None = None,
        cache: Any = None,
        selection: Selection | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if cache is not None:
            cache.check_contract(contract)
        self.options, self.source, self._selection = options, source, selection
        measurer = Measurer(
            source=source,
            contract=contract,
            tokenizer=tokenizer,
            template=template,
            target=options.mode == "sft",
            limits=limits,
            isolate=options.isolate,
        )
        path = _own_path(quarantine_path, process_index)
        self.quarantine = Quarantine(path, options.max_bad_fraction, len(source))
        sizes = SizeCache(sizes_dir, process_index, shared_sizes)
        evaluates = options.mode == "evaluate"
        measured, self.shortened = self._measure(measurer, sizes)
        self.failures = known = self._put_aside(measured, source)
        self.clips = np.arange(len(source))
        if evaluates:
            self.clips = _number_clips(source, known, self.shortened)
        schedule = self._schedule_run(measured, known)
        self.waste = schedule.waste(measured.sizes, measured.visual_tokens)
        self.digest = f"{schedule.digest[:32]}{contract.digest[:32]}"
        self.schedule: Schedule = schedule.share(process_index, process_count)
        self.buckets: tuple[Bucket, ...] = self.schedule.buckets
        recent = RecentClips(2 + options.num_threads) if evaluates else None
        needs = np.stack(measured.sizes, axis=1)
        self._load = Load(measurer, needs, known, cache, recent, self.shortened)
        shapes = [patches_shape(bucket, contract.geometry) for bucket in self.buckets]
        self._pool = Pool(max(map(math.prod, shapes), default=0))
        self._report(schedule, len(source), len(known))
        if measured.unused:
            what = ", ".join(
                f"{name} in {count}" for name, count in sorted(measured.unused.items())
            )
            log.warning("fields that change nothing but user rewards: %s records", what)

    @property
    def first_record(self) -> Record:
        """The first record that this process is going to read."""
        return self._load.measurer.source[int(self.schedule.record[0])]

    def _measure(self, measurer: Measurer, sizes: SizeCache) -> tuple[Measured, dict[int, Frames]]:
        """What was measured, and which records an evaluation shows with fewer frames."""
        try:
            measured = measure(measurer, sizes, max(1, self.options.num_threads))
            if self.options.mode != "evaluate":
                return measured, {}
            return measured, shorten(measurer, measured, sizes, self.options.row_tokens)
        finally:
            sizes.close()

    def _put_aside(self, measured: Measured, source: Source) -> dict[int, Failure]:
        """Quarantines bad and too long records. Raises TooManyBad."""
        failures, longest = list(measured.failures), self.options.row_tokens
        for index in np.flatnonzero(measured.sizes.tokens > longest):
            tokens, visual = measured.sizes.tokens[index], measured.visual_tokens[index]
            what = f"media: {len(measured.probes[index])} with {visual} of the record's {tokens}"
            what += f" tokens, row_tokens is {longest}"
            failures.append(Failure(int(index), source.where(int(index)), "too_many_tokens", what))
        for failure in failures:
            self.quarantine.add(failure, "measure")
        self.quarantine.check(0)
        return {failure.index: failure for failure in failures}

    def _schedule_run(self, measured: Measured, known: dict[int, Failure]) -> Schedule:
        """The schedule of all processes. An evaluation keeps bad records, each in an empty row, and
        has no batch where all records are bad."""
        options, sizes = self.options, measured.sizes
        evaluate, packed = options.mode == "evaluate", options.mode == "sft"
        every = np.argsort(self.clips, kind="stable")  # the questions of a clip stand together
        selection, ranks = self._selection, None
        good = np.array([i for i in every if i not in known], np.int64)
        if selection is not None:
            good, ranks = good[selection.chosen[good]], selection.ranks
            log.info("%d of %d records are chosen by pass rate", len(good), len(every))
        shape = (options.rows, options.row_tokens, options.max_buckets, options.multiple, packed)
        is_empty = evaluate and not good.size
        buckets = () if is_empty else choose_buckets(sizes.take(good), *shape)
        for size in sizes:
            size[list(known)] = 0
        return make_schedule(
            every if evaluate and not is_empty else good,
            sizes,
            buckets,
            packed=packed,
            seed=None if evaluate else options.seed,
            epochs=options.epochs,
            ranks=ranks,
        )

    def _report(self, schedule: Schedule, num_records: int, num_bad: int) -> None:
        shapes = ", ".join(str(tuple(map(int, bucket[:3]))) for bucket in schedule.buckets)
        log.info(
            "%d records, %d bad; %d batches in %d epochs; %d compiled shapes (tokens, frame pairs,"
            " windows): %s; padding %.1f %% of tokens, %.1f %% of visual slots",
            num_records,
            num_bad,
            len(schedule),
            self.options.epochs,
            len(schedule.buckets),
            shapes,
            *(100 * share for share in self.waste),
        )

    def __len__(self) -> int:
        return len(self.schedule)

    def check_digest(self, digest: str) -> None:
        """Raises ValueError when a saved run had another schedule, so that k means other
        batches."""
        if digest != self.digest:
            raise ValueError(
                f"loader: the saved run read plan {digest}, this one {self.digest}; restore the"
                " records, media, media contract and loader settings it had, or start anew"
            )

    def steps(self, start: int = 0, span: MakeSpan = contextlib.nullcontext) -> Steps:
        """Batches start, start + 1, ... to the end of the last epoch. Close it when done.

        span: see `Steps`.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"loader: batch {start} of {len(self)}; give 0 to {len(self)}")
        parts = (self.schedule, self._load, self._pool, self.quarantine, self.options)
        return Steps(*parts, start, span)


def _number_clips(
    source: Source, known: dict[int, Failure], shortened: dict[int, Frames]
) -> np.ndarray:
    """The number of each record's media, int [N], in the order in which they first occur. Bad
    records, and those whose media the source holds itself, have numbers of their own."""
    holds_media = getattr(source, "fingerprint", None) is not None
    alone = range(len(source)) if holds_media else known
    keys = (
        index if index in alone else (source[index].media, shortened.get(index))
        for index in range(len(source))
    )
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _own_path(path: str | os.PathLike | None, process_index: int) -> str | os.PathLike | None:
    """The quarantine file of one process."""
    if not process_index or path is None:
        return path
    root, suffix = os.path.splitext(path)
    return f"{root}-{process_index}{suffix}"
