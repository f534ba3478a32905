"""Batch files: pending requests as providers and `vllm run-batch` take them, and their results.

A line of a request file is {"custom_id": key, "method", "url", "body"} and a line of a result file
{"custom_id", "response": {"status_code", "body"}, "error"}, as in OpenAI's batch interface. What is
written to a file is booked in the ledger at once and written to no other file until its result, or
`--retry_dead`, frees it.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Set

from videorft_jax.curation.budget import Ledger, OutOfBudget
from videorft_jax.curation.client import make_body, read_reply
from videorft_jax.curation.failures import DEAD, RETRYABLE, Failed, classify
from videorft_jax.curation.requests import Dead, Request
from videorft_jax.curation.running import Missing, Work, replay
from videorft_jax.curation.store import Store, Write

MOST_LINES, MOST_BYTES = 50_000, 190 << 20  # OpenAI takes 50,000 lines and 200 MB.
WAITING = "SELECT id FROM attempt WHERE state='batch' AND key=?"
FAILED = "SELECT DISTINCT key, code FROM attempt WHERE code != 'ok'"

Units = Iterable[Callable[[], Work]]


@dataclasses.dataclass
class Exported:
    """files: what was written; requests: their number by stage; out: requests that wait in files of
    before; stop: why no more was written, or None."""

    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    requests: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    out: int = 0
    stop: OutOfBudget | None = None


@dataclasses.dataclass
class Imported:
    """Lines of result files by what became of them: replies, dead letters, failed (asked again by
    the next export), unknown (they answer nothing that is pending) and unreadable ones."""

    replies: int = 0
    dead: int = 0
    failed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unknown: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)


def export_batch(units: Units, store: Store, ledger: Ledger, folder: pathlib.Path) -> Exported:
    """Writes the next missing request of each unit to files in `folder`, a series an endpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    _finish_files(folder, store)
    done, seen = Exported(), set()
    writers: dict[str, _Writer] = {}
    for unit in units:
        try:
            replay(unit(), store.find)
            continue
        except Missing as missing:
            request = missing.request
        if request.key in seen:
            continue
        seen.add(request.key)
        if store.rows(WAITING, (request.key,)):
            done.out += 1
            continue
        try:
            _, booking = ledger.reserve(request, is_batch=True)
        except OutOfBudget as stop:
            done.stop = stop
            break
        writer = writers.setdefault(request.endpoint, _Writer(folder, request.endpoint, store))
        writer.add(_line(request), booking)
        done.requests[request.stage] += 1
    for writer in writers.values():
        writer.close()
        done.files += writer.files
    return done


def import_batch(
    units: Units, store: Store, ledger: Ledger, paths: Iterable[pathlib.Path]
) -> Imported:
    """Stores the results in `paths`. A result goes through the checks that a reply over HTTP goes
    through. Raises ValueError for a file that cannot be read."""
    done = Imported()
    results, failed = _index(paths, done), set(store.rows(FAILED))
    for unit in units:
        while True:
            try:
                replay(unit(), store.find)
                break
            except Missing as missing:
                request = missing.request
            place = results.pop(request.key, None)
            if place is None:
                break
            if not _settle(request, _read_line(*place), store, ledger, done, failed):
                break
    done.unknown += len(results)
    return done


def _settle(
    request: Request, row: dict, store: Store, ledger: Ledger, done: Imported,
    failed: Set[tuple[str, str]],
) -> bool:  # fmt: skip
    """Books one result; whether its request is now answered, be it by a dead letter. failed: key
    and code of what failed before."""
    waiting, failure, reply = store.rows(WAITING, (request.key,)), None, None
    try:
        reply = _read_result(row, request, ledger)
    except Failed as error:
        failure = error
        # A file that is imported again must not be paid for again.
        if not waiting and (request.key, error.code) in failed:
            done.unknown += 1
            return False
    number, opening = (waiting[0][0], []) if waiting else ledger.book(request, is_batch=True)
    settle = {"number": number, "request": request, "is_batch": True}
    if failure is None:
        store.write([*opening, *ledger.settle(**settle, reply=reply)])
        done.replies += 1
        return True
    kind, code = failure.kind, failure.code
    dead = None
    if kind.action == DEAD:
        dead = Dead(code, failure.status, code in RETRYABLE, kind.remedy)
        done.dead += 1
    else:
        done.failed[code] += 1
    booked = ledger.settle(
        **settle, billed=kind.billed, code=code, status=failure.status, dead=dead
    )
    store.write([*opening, *booked])
    return dead is not None


def _read_result(row: dict, request: Request, ledger: Ledger):
    """The reply in a line of a result file. Raises Failed."""
    response = row.get("response")
    if row.get("error") or not isinstance(response, dict):
        raise Failed("busy", detail="the batch ended before this request")
    status, body = response.get("status_code"), json.dumps(response.get("body")).encode()
    if status != 200:
        if not isinstance(status, int):
            raise Failed("bad_shape")
        raise classify(status, {}, body, "the batch")
    return read_reply(body, request, ledger.endpoints[request.endpoint])


def _index(paths: Iterable[pathlib.Path], done: Imported) -> dict[str, tuple[pathlib.Path, int]]:
    """Where the last result of each key lies; the results themselves stay in the files."""
    places = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, 1):
                    try:
                        row = json.loads(line)
                        places[str(row["custom_id"])] = (path, offset)
                    except (ValueError, TypeError, KeyError, RecursionError):
                        if line.strip():
                            done.unreadable.append(f"{path}, line {number}")
                    offset += len(line)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; give the result file of a batch") from None
    return places


def _read_line(path: pathlib.Path, offset: int) -> dict:
    with path.open("rb") as file:
        file.seek(offset)
        return json.loads(file.readline())


def _line(request: Request) -> bytes:
    body = make_body(request, request.load() if request.load else [])
    row = {
        "custom_id": request.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return json.dumps(row).encode() + b"\n"


class _Writer:
    """A series of files of one endpoint. A file gets its name only once its lines are on the disk
    and booked, so that a run that is killed leaves no request in two files."""

    def __init__(self, folder: pathlib.Path, name: str, store: Store):
        self.files: list[pathlib.Path] = []
        self._names, self._store = _names(folder, name), store
        self._bookings: list[Write] = []
        self._file, self._path = None, folder

    def add(self, line: bytes, booking: Write) -> None:
        full = self._file is not None and self._file.tell() + len(line) > MOST_BYTES
        if full or len(self._bookings) == MOST_LINES:
            self.close()
        if self._file is None:
            self._path = next(self._names)
            self._file = _partial(self._path).open("wb")
        self._file.write(line)
        self._bookings.append(booking)

    def close(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._store.write(self._bookings)
        self._bookings = []
        os.replace(_partial(self._path), self._path)
        self.files.append(self._path)


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.partial")


def _names(folder: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    for number in range(1, 1_000_000):
        path = folder / f"{name}-{number:04}.jsonl"
        if not path.exists():
            yield path


def _finish_files(folder: pathlib.Path, store: Store) -> None:
    """Names the files of a killed export whose lines were booked, and removes the others."""
    for partial in folder.glob("*.jsonl.partial"):
        with partial.open("rb") as file:
            try:
                key = json.loads(file.readline())["custom_id"]
            except (ValueError, KeyError, TypeError):
                key = ""
        if store.rows(WAITING, (key,)):
            os.replace(partial, partial.with_suffix(""))
        else:
            partial.unlink()
