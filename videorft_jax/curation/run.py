"""One run of a curation: opens the store, asks for what is missing, writes files and card."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

from videorft_jax.curation.audit import read_audit
from videorft_jax.curation.budget import Ledger
from videorft_jax.curation.card import LIMITS, warn, write_card
from videorft_jax.curation.card_sections import say_audit
from videorft_jax.curation.counts import Counts
from videorft_jax.curation.croissant import write_croissant
from videorft_jax.curation.difficulty import read_probes
from videorft_jax.curation.endpoints import NANO
from videorft_jax.curation.estimate import Estimate, estimate
from videorft_jax.curation.licences import require_sources
from videorft_jax.curation.local import open_clients
from videorft_jax.curation.open_answers import read_nulls
from videorft_jax.curation.options import CurationOptions
from videorft_jax.curation.page import FILE as PAGE
from videorft_jax.curation.page import choose_sample, write_sample
from videorft_jax.curation.pipeline import Pipeline
from videorft_jax.curation.pool import Entry, Pool, order_used, read_entry
from videorft_jax.curation.progress import Meter
from videorft_jax.curation.publish import Notes, Publisher
from videorft_jax.curation.running import Runner
from videorft_jax.curation.stage_files import SETS
from videorft_jax.curation.store import Store
from videorft_jax.data.media.contract import MediaError
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import RecordSource
from videorft_jax.data.records.tokenizer_folder import load_tokenizer

logger = logging.getLogger(__name__)
STORE = "store.sqlite"
PROGRESS_S = 5.0
GRACE_S = 10.0  # from Ctrl-C on, for requests in flight


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: exit_code 0, 1, 75 (start again later) or 130; why it stopped early."""

    counts: Counts
    exit_code: int
    reasons: tuple[str, ...]
    spent: int  # nano-dollars over all runs, an upper bound


class Curation:
    """The pool and the store of one work directory; a context manager.

    shard: (number, of how many) of this process; its store and files lie in shards/I-of-N.
    """

    def __init__(self, options: CurationOptions, workdir: str, shard: tuple[int, int] = (0, 1)):
        for endpoint in options.endpoints.values():
            endpoint.read_key()  # a missing key is found before anything is opened
        number, parts = shard
        folder = pathlib.Path(workdir)
        self.folder = folder / f"shards/{number}-of-{parts}" if parts > 1 else folder
        self.options, self.shard = options, shard
        self._count_tokens = _load_counter(options.tokenizer)
        self._probes = read_probes(options.difficulty)
        read_audit(self.folder)  # A bad file is told before anything is asked, and read at the end.
        self.source = RecordSource(options.records, options.data_root)
        if not os.path.isdir(self.source.data_root):  # Every set would be written empty.
            raise ValueError(
                f"data.data_root={options.data_root}: no such folder; give the folder of the media"
            )
        self._pool: Pool | None = None
        self.store = Store(self.folder / STORE)
        try:
            self.pipeline = Pipeline(options, self.source.data_root, self.store)
            limits = options.limits.split(parts)
            self.ledger = Ledger(self.store, options.endpoints, limits)
        except BaseException:
            self.store.close()
            raise

    def __enter__(self) -> "Curation":
        return self

    def __exit__(self, *_) -> None:
        self.store.close()

    def pool(self):
        """Entries of this shard, and what cannot be used, in the order of the record file."""
        number, parts = self.shard
        options = self.options
        self._pool = self._pool or Pool(
            self.source, self.store, options.benchmarks, options.val_fraction, options.isolate
        )
        for entry in self._pool:
            own = int(entry.media[:8], 16) % parts if isinstance(entry, Entry) else 0
            if own == number:
                yield entry

    def estimate(self) -> Estimate:
        """What a run would ask and what it would cost, without a request."""
        return estimate(self.units().entries(), self.pipeline, self.ledger)

    def units(self, sample: int = 0) -> "Units":
        """What is to be done, a generator function for each record that is asked about, or for
        `sample` of them. Raises ValueError for a source about whose licence nothing is said."""
        sources: set[str] = set()
        unusable: collections.Counter[str] = collections.Counter()

        def note():
            for entry in self.pool():
                if not isinstance(entry, Entry):
                    unusable[entry.reason] += 1
                elif entry.is_used:
                    sources.add(entry.record.data_source)
                yield entry

        rows = choose_sample(note(), sample) if sample else order_used(note())
        if unusable:
            reasons = ", ".join(f"{count:,} {name}" for name, count in sorted(unusable.items()))
            logger.warning(
                "%s records of the pool cannot be used (%s); a run lists them in quarantine.jsonl",
                f"{unusable.total():,}", reasons,
            )  # fmt: skip
        require_sources(sources, self.options.licences)
        return Units(self, rows)

    def run(self, report: Callable[[str], None] = logger.info, sample: int = 0) -> Result:
        """Asks until all is there or something stops it, then writes the files. sample: asks about
        so many records only and writes a page of them, too; 0 asks about all."""
        units = self.units(sample)
        report(f"{len(units):,} records are asked about, of {len(self.source):,} in the pool")
        exit_code, reasons = asyncio.run(self._ask(report, units))
        counts = self.publish()
        if self.shard == (0, 1) and counts.quarantined == counts.pool:
            raise ValueError(
                f"{self.options.records}: none of its {counts.pool:,} records can be asked about; "
                f"{self.folder / 'quarantine.jsonl'} says why"
            )
        if sample:
            self._write_sample(units)
        return Result(counts, exit_code, reasons, self.ledger.spent)

    def _write_sample(self, units: "Units") -> None:
        """Writes the page of the records that were asked about."""
        rest, spent = self.estimate(), self.ledger.spent / NANO
        note = (
            f"${spent:.4f} or less spent. The rest of the pool costs about ${rest.nano / NANO:.4f}."
        )
        nulls = read_nulls(self.pipeline, self.pool())
        write_sample(self.folder / PAGE, self.pipeline, units.entries(), nulls, note)

    def publish(self) -> Counts:
        """Writes all files from the store alone."""
        notes = Notes(
            nulls=read_nulls(self.pipeline, self.pool()), labels=read_audit(self.folder),
            probes=self._probes, count_tokens=self._count_tokens,
            unit="tokens" if self.options.tokenizer else "words",
        )  # fmt: skip
        counts = Publisher(self.folder, self.pipeline, notes).write(self.pool())
        text = write_card(counts, self.pipeline)
        (self.folder / "README.md").write_text(text, encoding="utf-8")
        models = [f"{stage}: {end.model}" for stage, end in self.options.endpoints.items()]
        limits = " ".join([LIMITS, *say_audit(counts)])
        write_croissant(self.folder, SETS, counts.columns, models, limits)
        for line in warn(counts, self.options):
            logger.warning("%s", line.removeprefix("> "))
        return counts

    async def _ask(self, report, units: "Units") -> tuple[int, tuple[str, ...]]:
        ends = self.options.endpoints
        async with open_clients(ends.values()) as clients:
            by_name = {end.name: end for end in ends.values()}
            runner = Runner(self.store, self.ledger, by_name, clients)
            workers = sum(end.concurrency for end in ends.values())
            asking = asyncio.create_task(runner.run(units, workers))
            interrupted = _close_on_signals(runner, asking, report)
            meter = Meter(runner.progress, len(units), workers, self.options.attempts)
            ticker = asyncio.create_task(self._tick(meter, report))
            try:
                await asking
            except asyncio.CancelledError:
                if not interrupted.is_set():
                    raise
            finally:
                ticker.cancel()
            stops = runner.stopped
            for name, count in sorted(runner.progress.other_models.items()):
                report(f"{count} replies came from the model {name!r}")
        if interrupted.is_set():
            return 130, ("interrupted; what was answered is kept, start again to go on",)
        codes = {getattr(stop, "exit_code", 75) for stop in stops.values()}
        code = 1 if 1 in codes else 75 if codes else 0
        return code, tuple(str(stop) for stop in stops.values())

    async def _tick(self, meter: Meter, report) -> None:
        dollars = self.ledger.limits.dollars
        limit = "" if dollars is None else f" of ${dollars:.2f}"
        while True:
            await asyncio.sleep(PROGRESS_S)
            report(f"{meter.describe()}; ${self.ledger.spent / NANO:.4f}{limit} or less spent")


class Units:
    """The records that are asked about, as generator functions that are made when they are taken;
    `rows` are their places in the record file. A record that changed meanwhile is left out."""

    def __init__(self, curation: Curation, rows):
        self._curation, self._rows = curation, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self):
        for entry in self.entries():
            yield lambda entry=entry: self._curation.pipeline.curate(entry)

    def entries(self) -> Iterator[Entry]:
        """The records themselves."""
        own = self._curation
        for row in self._rows:
            try:
                entry = read_entry(own.source, int(row), own.store)
            except (RecordError, MediaError) as error:
                logger.warning("%s; it was readable a moment ago and is left out", error)
                continue
            yield entry


def _load_counter(folder: str) -> Callable[[str], int]:
    """Counts the tokens of a text by a tokenizer, or its words without one."""
    if not folder:
        return lambda text: len(text.split())
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError:
        raise ValueError(
            f"data.tokenizer={folder}: holds no tokenizer; give the student's folder, or leave it "
            "empty to count words"
        ) from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def merge(options: CurationOptions, workdir: str) -> Counts:
    """Takes the stores of all shards into one and writes the files of the whole.

    Raises ValueError without shards, or where one of them is missing."""
    folders = sorted(pathlib.Path(workdir).glob("shards/*-of-*"))
    parts = {folder.name.split("-of-")[1] for folder in folders}
    if not folders or len(parts) != 1 or len(folders) != int(next(iter(parts))):
        names = ", ".join(folder.name for folder in folders) or "none"
        raise ValueError(f"{workdir}: shards found: {names}; run all shards of one number first")
    with Curation(options, workdir) as curation:
        for folder in folders:
            curation.store.absorb(folder / STORE)
        return curation.publish()


def summarise(result: Result) -> str:
    """The end of a run in one line of JSON."""
    counts = vars(result.counts)
    return json.dumps({"exit_code": result.exit_code, "spent_nano": result.spent} | counts)


def _close_on_signals(runner: Runner, asking: asyncio.Task, report) -> asyncio.Event:
    """The first Ctrl-C or SIGTERM lets what is in flight end, for some seconds; a second one ends
    the process, and what is in flight is then booked as lost."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        event.set()
        runner.close()
        report(
            f"stopping: requests in flight have {GRACE_S:.0f} s to end, their answers are kept; "
            "Ctrl-C once more ends at once"
        )
        loop.call_later(GRACE_S, asking.cancel)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    with contextlib.suppress(ValueError, RuntimeError):  # Only the main thread can set handlers.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    return event
