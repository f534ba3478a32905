"""The store of replies: one SQLite file in which nothing that was paid for is ever lost.

A reply and its entry in the ledger are committed together, and an attempt is in the ledger before
its request leaves, so that a run killed at any moment knows what it may have spent. Every file that
curation writes is computed from this store, which makes the files of a killed run equal to those of
an undisturbed one.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator

from videorft_jax.curation.failures import RETRYABLE
from videorft_jax.curation.requests import Dead, Reply, Request

SCHEMA_VERSION = 1
PASSING = ("timeout", "memory", "crashed")  # why a good clip may fail on a machine that is busy
GROUP_S = 0.005  # how long the first write of a group waits for others
NETWORK = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "gpfs", "ceph", "glusterfs")
TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS response (key TEXT PRIMARY KEY, stage TEXT, unit TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS dead (
  key TEXT PRIMARY KEY, stage TEXT, unit TEXT, reason TEXT, status INTEGER, retryable INTEGER,
  detail TEXT);
CREATE TABLE IF NOT EXISTS attempt (
  id INTEGER PRIMARY KEY, key TEXT, endpoint TEXT, stage TEXT, state TEXT,
  reserved INTEGER, settled INTEGER, tokens INTEGER, code TEXT, status INTEGER);
CREATE INDEX IF NOT EXISTS waiting ON attempt (key) WHERE state='batch';
CREATE TABLE IF NOT EXISTS derived (
  kind TEXT, name TEXT, value BLOB, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS absorbed (id INTEGER PRIMARY KEY, store TEXT);
"""
Write = tuple[str, tuple]  # a statement and its values


class Store:
    """Opens `path`, or makes it. Use it as a context manager: one process holds it at a time.

    Raises RuntimeError, one line with a remedy: a network file system, another process, a damaged
    file, another version, or a store that is gone although it was there before.
    """

    def __init__(self, path: str | os.PathLike, mounts: str | None = None):
        self.path = pathlib.Path(path).absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        refuse_network(self.path, mounts)
        known = self.path.with_suffix(".lock").exists()
        self._lock_file = _lock(self.path.with_suffix(".lock"))
        # Reads have a connection of their own, so that none waits for a commit to reach the disk.
        self._mutex, self._read_mutex = threading.Lock(), threading.Lock()
        self._connection = self._reader = None
        self._waiting: list[tuple[list[Write], asyncio.Future]] = []
        self._group: asyncio.Task | None = None
        self._fault: str | None = None
        try:
            if known and not self.path.exists():
                raise RuntimeError(
                    f"{self.path}: is gone, though its lock is there; restore it, or remove "
                    f"{self.path.with_suffix('.lock').name} to pay for everything anew"
                )
            self._open()
        except BaseException as error:
            self._fault = (
                f"not opened: {error}"  # A refused store must not be marked as closed in order.
            )
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._connection = sqlite3.connect(
                self.path, check_same_thread=False, isolation_level=None, timeout=30
            )
            run = self._connection.execute
            if run("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                raise RuntimeError(f"{self.path}: this disk allows no WAL; use a local disk")
            run("PRAGMA synchronous=FULL")
            fresh = not run("SELECT name FROM sqlite_master").fetchall()
            if fresh and self.path.stat().st_size > 4096:
                raise sqlite3.DatabaseError("no tables in it")
            self._connection.executescript(TABLES)
            meta = dict(run("SELECT name, value FROM meta"))
            if not fresh and meta.get("version") != str(SCHEMA_VERSION):
                raise RuntimeError(
                    f"{self.path}: has version {meta.get('version')}, this program reads "
                    f"{SCHEMA_VERSION}; use the program that wrote it, or another workdir"
                )
            if meta.get("clean") == "0" and run("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check found damage")
            self.write(
                [
                    ("INSERT OR REPLACE INTO meta VALUES ('version', ?)", (str(SCHEMA_VERSION),)),
                    ("INSERT OR REPLACE INTO meta VALUES ('clean', '0')", ()),
                    # Nobody knows whether these reached the server: they count at the worst case.
                    ("UPDATE attempt SET state='lost', settled=reserved WHERE state='open'", ()),
                ]
            )
            self._reader = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
        except sqlite3.DatabaseError as error:
            raise RuntimeError(
                f"{self.path}: {error}; free space or restore the file from a copy, or choose "
                "another workdir; it was left as it is"
            ) from None

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error, RuntimeError):
            if self._connection is not None and not self._fault:
                self.write([("INSERT OR REPLACE INTO meta VALUES ('clean', '1')", ())])
        for connection in (self._reader, self._connection):
            if connection is not None:
                connection.close()
        self._connection = self._reader = None
        self._lock_file.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, writes: list[Write]) -> None:
        """Commits statements in one transaction; they are on the disk when it returns."""
        if self._fault:
            raise RuntimeError(self._fault)
        with self._mutex:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for statement, values in writes:
                    self._connection.execute(statement, values)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                self._fault = (
                    f"{self.path}: cannot be written ({error}); make space on that disk and start "
                    "again: what was committed stays"
                )
                raise RuntimeError(self._fault) from None

    async def commit(self, writes: list[Write]) -> None:
        """`write`, together with whatever else wants to be written within a few milliseconds, and
        after all that was enqueued before."""
        await asyncio.shield(self.enqueue(writes))

    async def flush(self) -> None:
        """Returns when all that was enqueued is on the disk."""
        await self.commit([])

    def enqueue(self, writes: list[Write]) -> asyncio.Future:
        """Like `commit`, without waiting: a fault is raised by whatever is committed next."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, done))
        if self._group is None:
            self._group = asyncio.create_task(self._write_groups())
        done.add_done_callback(lambda each: each.cancelled() or each.exception())  # seen
        return done

    async def _write_groups(self) -> None:
        await asyncio.sleep(GROUP_S)
        while self._waiting:
            group, self._waiting = self._waiting, []
            error = None
            try:
                await asyncio.to_thread(self.write, [w for writes, _ in group for w in writes])
            except RuntimeError as fault:
                error = fault
            for _, done in group:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)
        self._group = None

    def rows(self, statement: str, values: tuple = ()) -> list[tuple]:
        """The rows of a query, of what is committed."""
        with self._read_mutex:
            return self._reader.execute(statement, values).fetchall()

    def find(self, key: str) -> Reply | Dead | None:
        """What is known about a request."""
        if found := self.rows("SELECT body FROM response WHERE key=?", (key,)):
            return Reply(**json.loads(zlib.decompress(found[0][0])))
        found = self.rows("SELECT reason, status, retryable, detail FROM dead WHERE key=?", (key,))
        if found:
            reason, status, retryable, detail = found[0]
            return Dead(reason, status, bool(retryable), detail)
        return None

    def replies(self) -> Iterator[tuple[str, Reply]]:
        """(stage, reply) of everything that is answered."""
        for stage, body in self._reader.execute("SELECT stage, body FROM response"):
            yield stage, Reply(**json.loads(zlib.decompress(body)))

    def derive(self, kind: str, name: str, make: Callable[[], object]) -> object:
        """The value kept under (kind, name), made and committed where there is none yet."""
        rows = self.rows("SELECT value FROM derived WHERE kind=? AND name=?", (kind, name))
        if rows:
            return json.loads(zlib.decompress(rows[0][0]))
        value = make()
        body = zlib.compress(json.dumps(value).encode())
        self.write([("INSERT OR REPLACE INTO derived VALUES (?, ?, ?)", (kind, name, body))])
        return value

    def dead_rows(self) -> Iterator[dict]:
        """Dead letters by stage and unit: no prompt, no header."""
        names = ("key", "stage", "unit", "reason", "status", "retryable", "detail")
        order = "SELECT key, stage, unit, reason, status, retryable, detail FROM dead"
        for row in self.rows(f"{order} ORDER BY stage, unit, key"):
            yield dict(zip(names, row, strict=True))

    def revive(self) -> int:
        """Forgets the dead letters that are worth asking again, the requests in batch files that no
        result came for, which stay booked at the worst case, and the clips that ran out of time or
        memory when they were decoded. Returns their number."""
        count = "SELECT (SELECT COUNT(*) FROM dead WHERE retryable=1) + COUNT(*) FROM attempt"
        number = self.rows(f"{count} WHERE state='batch'")[0][0]
        writes: list[Write] = [
            ("DELETE FROM dead WHERE retryable=1", ()),
            ("UPDATE attempt SET state='lost', settled=reserved WHERE state='batch'", ()),
        ]
        for name, value in self.rows("SELECT name, value FROM derived WHERE kind='frames'"):
            if json.loads(zlib.decompress(value)).get("reason") in PASSING:
                number += 1
                media = name.split(" ")[0]
                writes.append(("DELETE FROM derived WHERE kind='frames' AND name=?", (name,)))
                writes.append(("DELETE FROM derived WHERE kind='fingerprint' AND name=?", (media,)))
        self.write(writes)
        return number

    def absorb(self, path: str | os.PathLike) -> None:
        """Takes over all that another store (of a shard) holds. One that was absorbed before, by
        the name of its folder, is taken over anew, so that nothing is booked twice."""
        name = pathlib.Path(path).absolute().parent.name
        columns = "key, endpoint, stage, state, reserved, settled, tokens, code, status"
        with self._mutex:
            run = self._connection.execute
            try:
                run("ATTACH DATABASE ? AS other", (os.fspath(path),))
                run("BEGIN IMMEDIATE")
                for table in ("response", "dead", "derived"):
                    run(f"INSERT OR IGNORE INTO {table} SELECT * FROM other.{table}")
                run("DELETE FROM dead WHERE key IN (SELECT key FROM response)")
                run(
                    "DELETE FROM attempt WHERE id IN (SELECT id FROM absorbed WHERE store=?)",
                    (name,),
                )
                run("DELETE FROM absorbed WHERE store=?", (name,))
                last = run("SELECT COALESCE(MAX(id), 0) FROM attempt").fetchone()[0]
                run(
                    f"INSERT INTO attempt (id, {columns}) SELECT ? + id, {columns} "
                    "FROM other.attempt",
                    (last,),
                )
                run("INSERT INTO absorbed SELECT ? + id, ? FROM other.attempt", (last, name))
                run("COMMIT")
                run("DETACH DATABASE other")
            except sqlite3.Error as error:
                raise RuntimeError(f"{path}: cannot be merged ({error}); run that shard") from None


def save_reply(request: Request, reply: Reply) -> Write:
    body = zlib.compress(json.dumps(dataclasses.asdict(reply)).encode())
    values = (request.key, request.stage, request.unit, body)
    return "INSERT OR REPLACE INTO response VALUES (?, ?, ?, ?)", values


def save_dead(request: Request, dead: Dead) -> Write:
    retryable = int(dead.reason in RETRYABLE)
    row = (request.key, request.stage, request.unit, dead.reason, dead.status, retryable)
    return "INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, dead.detail)


def refuse_network(path: pathlib.Path, mounts: str | None = None) -> None:
    """Raises RuntimeError where the path lies on a network file system, which loses WAL's locks.
    mounts: the text of /proc/mounts, for tests."""
    if mounts is None:
        try:
            mounts = pathlib.Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, fields[2]
    if kind.startswith(NETWORK):
        raise RuntimeError(
            f"{path}: lies on {best}, a {kind} file system, on which SQLite loses data; give a "
            "workdir on a local disk and copy it there when the run is done"
        )


def _lock(path: pathlib.Path):
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, held until the store is closed
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise RuntimeError(
            f"{path.parent}: {holder} is curating there; wait for it, or choose another workdir"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
