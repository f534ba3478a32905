"""One run of a curation: opens the store, asks for what is missing, writes files and card."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Mapping

from videorft_jax.curation.budget import Ledger
from videorft_jax.curation.card import write_card
from videorft_jax.curation.endpoints import NANO
from videorft_jax.curation.local import open_clients
from videorft_jax.curation.options import CurationOptions
from videorft_jax.curation.pipeline import Pipeline
from videorft_jax.curation.pool import Entry, read_pool
from videorft_jax.curation.publish import Counts, iter_used, write_files
from videorft_jax.curation.running import Missing, Runner, replay
from videorft_jax.curation.store import Store
from videorft_jax.data.records.source import RecordSource

logger = logging.getLogger(__name__)
STORE = "store.sqlite"
PROGRESS_S = 5.0


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
        self.source = RecordSource(options.records, options.data_root)
        self.benchmarks = [RecordSource(file, root) for file, root in options.benchmarks]
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
        for entry in read_pool(self.source, self.store, self.benchmarks, options.val_fraction):
            own = int(entry.media[:8], 16) % parts if isinstance(entry, Entry) else 0
            if own == number:
                yield entry

    def units(self):
        """What is to be done, a generator function for each record that is asked about."""
        for entry in iter_used(self.pool()):
            yield lambda entry=entry: self.pipeline.curate(entry)

    def run(self, licences: Mapping[str, str], report: Callable[[str], None] = logger.info):
        """Asks until all is there or something stops it, then writes the files."""
        exit_code, reasons = asyncio.run(self._ask(report))
        counts = self.publish(licences)
        return Result(counts, exit_code, reasons, self.ledger.spent)

    def publish(self, licences: Mapping[str, str]) -> Counts:
        """Writes all files from the store alone."""
        counts = write_files(self.folder, self.pipeline, self.pool())
        text = write_card(counts, self.pipeline, licences)
        (self.folder / "README.md").write_text(text, encoding="utf-8")
        return counts

    async def _ask(self, report) -> tuple[int, tuple[str, ...]]:
        ends = self.options.endpoints
        async with open_clients(ends.values()) as clients:
            by_name = {end.name: end for end in ends.values()}
            runner = Runner(self.store, self.ledger, by_name, clients)
            interrupted = _close_on_signals(runner)
            ticker = asyncio.create_task(self._tick(runner, report))
            try:
                await runner.run(self.units(), sum(end.concurrency for end in ends.values()))
            finally:
                ticker.cancel()
            stops = runner.stopped
            for name, count in sorted(runner.progress.other_models.items()):
                report(f"{count} replies came from the model {name!r}")
        if interrupted.is_set():
            return 130, ("interrupted; start again to go on",)
        codes = {getattr(stop, "exit_code", 75) for stop in stops.values()}
        code = 1 if 1 in codes else 75 if codes else 0
        return code, tuple(str(stop) for stop in stops.values())

    async def _tick(self, runner: Runner, report) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_S)
            seconds, progress = time.monotonic() - started, runner.progress
            replies = sum(progress.replies.values())
            by_stage = ", ".join(f"{n} {c:,}" for n, c in sorted(progress.replies.items()))
            report(
                f"{progress.units:,} of at most {len(self.source):,} records; {by_stage or 'none'} "
                f"replies, {replies / seconds:.1f} a second; "
                f"${self.ledger.spent / NANO:.4f} or less spent"
            )

    def estimate(self) -> dict[str, dict[str, int]]:
        """What a run would ask first, by stage, without a request: the next missing request of
        each record, distinct ones, their most tokens and most nano-dollars."""
        found: dict[str, dict[str, int]] = {}
        seen = set()
        for unit in self.units():
            try:
                replay(unit(), self.store.find)
            except Missing as missing:
                request = missing.request
                if request.key in seen:
                    continue
                seen.add(request.key)
                row = found.setdefault(
                    request.stage, {"requests": 0, "most_tokens": 0, "most_nano_dollars": 0}
                )
                money, tokens = self.ledger.worst_case(request)
                row["requests"] += 1
                row["most_tokens"] += tokens
                row["most_nano_dollars"] += money
        return found


def merge(options: CurationOptions, workdir: str, licences: Mapping[str, str]) -> Counts:
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
        return curation.publish(licences)


def summarise(result: Result) -> str:
    """The end of a run in one line of JSON."""
    counts = vars(result.counts)
    return json.dumps({"exit_code": result.exit_code, "spent_nano": result.spent} | counts)


def _close_on_signals(runner: Runner) -> asyncio.Event:
    """The first Ctrl-C or SIGTERM lets what is in flight end; a second one ends the process."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        event.set()
        runner.close()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    with contextlib.suppress(ValueError, RuntimeError):  # Only the main thread can set handlers.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    return event
