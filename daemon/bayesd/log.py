"""The log: append events to SQLite, read them back, prove that they are the ones written.

This file decides when an event is durable and whether a file can be trusted. It refuses to know
what an event means: a `Row` is bytes, their hash, and copies of five fields for people who look
with a SQLite shell. `SqliteLog` is the real one, `MemoryLog` is the same promise without a disk.

What is promised, and by what:

- An append that returned is on the disk: WAL, `synchronous=FULL`, one transaction a batch.
- One writer: a file lock keeps honest daemons apart, and the writer epoch, checked inside every
  append, stops one whose lock was stolen.
- Every event is chained to the one before it. `verify` names the first that does not hold, and
  nothing here ever truncates or repairs.
"""

import asyncio
import errno
import fcntl
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import aiosqlite
import orjson

from bayesd.study.canonical import ZERO, leaf_hash
from bayesd.study.row import Fields
from bayesd.study.row import Row as Row

APPLICATION_ID = 0x62617964     # "bayd", for file(1)
FORMAT = 1                      # user_version: raised when an older bayesd must not touch the file

SCHEMA = """
PRAGMA application_id = 0x62617964;
PRAGMA user_version = 1;

CREATE TABLE event (
    seq    INTEGER PRIMARY KEY,                         -- 1, 2, 3, ... without a gap
    body   BLOB NOT NULL,                               -- RFC 8785 bytes of the envelope: the only truth
    hash   BLOB NOT NULL CHECK (length(hash) = 32),     -- SHA-256(0x00 || body)
    type   TEXT NOT NULL,                               -- from here on: copies out of the body
    study  TEXT,
    trial  INTEGER,
    actor  TEXT NOT NULL,
    cmd    TEXT
) STRICT;

-- Against mistakes, ours and those of people with a shell. Who owns the file can drop them; then
-- the chain tells. The first also stops INSERT OR REPLACE, of which the other two never hear.
CREATE TRIGGER event_follows_the_last BEFORE INSERT ON event
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM event)
BEGIN SELECT RAISE(ABORT, 'an event follows the last one'); END;
CREATE TRIGGER event_is_never_changed BEFORE UPDATE ON event
BEGIN SELECT RAISE(ABORT, 'an event is never changed'); END;
CREATE TRIGGER event_is_never_deleted BEFORE DELETE ON event
BEGIN SELECT RAISE(ABORT, 'an event is never deleted'); END;

-- Raised by each daemon that opens the log to write; an older daemon then writes no more.
CREATE TABLE writer (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    epoch  INTEGER NOT NULL
) STRICT;
INSERT INTO writer (one, epoch) VALUES (1, 0);

-- A cache of the folded state; may be emptied at any time.
CREATE TABLE snapshot (
    seq    INTEGER PRIMARY KEY,
    codec  TEXT NOT NULL,
    digest BLOB NOT NULL,
    blob   BLOB NOT NULL
) STRICT;

-- Signed notes of the head, as they left the machine.
CREATE TABLE checkpoint (
    seq    INTEGER PRIMARY KEY,
    note   BLOB NOT NULL
) STRICT;
"""

READ_CHUNK = 1000               # events a read hands over at once
BUSY_S = 5.0                    # how long to wait for a stranger who holds SQLite's write lock
WAL_MAX_BYTES = 16 * 2**20      # beyond this `checkpoint` cuts the WAL file down
SNAPSHOTS_KEPT = 2

AnyPath: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int], None]
T = TypeVar("T")


# --- What can go wrong -------------------------------------------------------------------------

class LogError(Exception):
    """Root of everything this module raises. `exit_code` is what the process ends with."""

    exit_code = 74


class DiskFull(LogError):
    """No space. The outcome is known: nothing was written, and the same append may be tried again."""


class CommitFailed(LogError):
    """A commit failed and nobody knows how far it came. The process ends and reads the log again."""


class LockedOut(LogError):
    """Another daemon has this log open."""

    exit_code = 75


class Fenced(LogError):
    """A newer daemon has taken the log over; this one may not write any more."""

    exit_code = 76


class CannotOpen(LogError):
    """The path, the file system or the version is wrong for us. The file was not touched."""

    exit_code = 78


class Damaged(LogError):
    """The log does not verify from event `seq` on. Everything before `seq` does."""

    exit_code = 65

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(
            f"the log is damaged at event {seq}: {why}. Events before it verify, nothing was changed. "
            f"Keep a copy of the file, then restore a backup; reading up to event {seq - 1} still works.")
        self.seq = seq
        self.why = why

    def __reduce__(self) -> tuple[type["Damaged"], tuple[int, str]]:
        return Damaged, (self.seq, self.why)


class LogBug(LogError, AssertionError):
    """We tried to write what may never be in a log. Nothing was written; report a bug."""

    exit_code = 70


# --- What a log holds --------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Snapshot:
    """The folded state after event `seq`, as bytes that only `codec` can read."""

    seq: int
    codec: str
    digest: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A signed note of the head at `seq`."""

    seq: int
    note: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `seq` and `hash` are the last event that verifies (0 and zeros: none)."""

    events: int
    seq: int
    hash: bytes
    log: str | None
    epoch: int | None
    damage: Damaged | None


class Log(Protocol):
    """What the service needs of a log. All methods are for one event loop."""

    @property
    def epoch(self) -> int:
        """The writer epoch of this life; the first daemon on a new log has 1."""
        ...

    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the last committed event; (0, 32 zero bytes) when there is none."""
        ...

    async def append(self, rows: Sequence[Row]) -> None:
        """Commit all of these rows or none. When it returns they are durable."""
        ...

    def read(self, after: int = 0, until: int | None = None) -> AsyncIterator[list[Row]]:
        """Committed rows with after < seq <= until, in chunks, each checked against its hash."""
        ...

    async def save_snapshot(self, seq: int, codec: str, digest: bytes, blob: bytes) -> None: ...

    async def load_snapshot(self, until: int | None = None) -> Snapshot | None:
        """The newest snapshot at or before `until`; whether it can be believed, the caller decides."""
        ...

    async def save_note(self, seq: int, note: bytes) -> None: ...

    async def load_note(self) -> Note | None: ...

    @property
    def checkpoint_due(self) -> bool:
        """True when so much waits in the WAL that the next idle moment should not be waited for."""
        ...

    async def checkpoint(self) -> None:
        """Housekeeping, off the commit path: call it when idle, or when it is due."""
        ...

    async def close(self) -> None:
        """Give the log back. Safe to call twice, and after any error."""
        ...


# --- SQLite ------------------------------------------------------------------------------------

class SqliteLog:
    """The one writer of a log file. `await SqliteLog.open(path)` makes it."""

    def __init__(self, path: Path, lock: int, writer: aiosqlite.Connection, reader: aiosqlite.Connection,
                 epoch: int, head: tuple[int, bytes]) -> None:
        self.path = path
        self._lock = lock
        self._writer = writer           # the only connection that ever writes or checkpoints
        self._reader = reader
        self._epoch = epoch
        self._head = head
        self._one_at_a_time = asyncio.Lock()
        self._ended: LogError | None = None     # set once no append may follow
        self._closed = False
        self._dirty = True              # something may be in the WAL that is not in the file
        self._wal_bound_bytes = WAL_MAX_BYTES
        self._file = os.stat(path)

    @classmethod
    async def open(cls, path: AnyPath, *, allow_network: bool = False,
                   on_progress: Progress | None = None) -> "SqliteLog":
        """Open a log to write, creating it if it is not there: lock, look, verify, raise the epoch.

        A network file system is refused unless `allow_network`: file locks and shared memory,
        on which SQLite's WAL rests, do not hold there. `on_progress` is called from a thread
        with the number of events verified so far.
        """
        path = _true_name(path)
        with _translated(0):
            _make_directory(path.parent)
            _refuse_network(path.parent, allow_network)
            lock = _take_lock(path)
        opened: list[aiosqlite.Connection] = []
        try:
            report = await asyncio.to_thread(_prepare, path, on_progress)
            with _translated(report.seq):
                writer = await aiosqlite.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S,
                                                 isolation_level="IMMEDIATE")
                opened.append(writer)
                await _set_up_writer(writer)
                epoch, seq = await _raise_epoch(writer)
                reader = await aiosqlite.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_S,
                                                 isolation_level=None)
                opened.append(reader)
                await _set_up_reader(reader)
            if seq != report.seq:
                # Another writer, whom a stolen lock did not stop, appended after we had verified.
                # It is fenced from now on; what it wrote must verify like the rest.
                report = await asyncio.to_thread(verify, path)
                if report.damage:
                    raise report.damage
            return cls(path, lock, writer, reader, epoch, (report.seq, report.hash))
        except BaseException:
            for connection in reversed(opened):
                with suppress(sqlite3.Error):
                    await connection.close()
            os.close(lock)
            raise

    @property
    def epoch(self) -> int:
        return self._epoch

    def head(self) -> tuple[int, bytes]:
        return self._head

    async def append(self, rows: Sequence[Row]) -> None:
        if rows:
            await _to_the_end(self._append([row.fields for row in rows]))

    async def _append(self, rows: list[Fields]) -> None:
        async with self._one_at_a_time:
            self._must_be_able_to_write()
            _refuse_bad_rows(rows, self._head)
            self._refuse_other_file()
            try:
                # Two trips to the connection's thread and not four (each costs about 0.1 ms):
                # the module begins the transaction itself, IMMEDIATE, and each INSERT carries
                # the fence, so a writer of an older epoch inserts nothing at all. That they follow
                # the head without a gap, a trigger sees to.
                done = await self._writer.executemany("""
                    INSERT INTO event (seq, body, hash, type, study, trial, actor, cmd)
                    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8
                    WHERE (SELECT epoch FROM writer WHERE one = 1) = ?9
                    """, [(*row, self._epoch) for row in rows])
                if done.rowcount == len(rows):
                    await self._writer.commit()
                else:
                    await self._fenced()
            except LogError:
                raise
            except asyncio.CancelledError:
                self._broken_off()
                raise
            except Exception as error:
                await self._give_up_transaction(error)
            self._head = rows[-1][0], rows[-1][2]
            self._dirty = True

    def _must_be_able_to_write(self) -> None:
        if self._closed:
            raise LogBug("append to a log that is closed")
        if self._ended is not None:
            raise self._ended

    def _refuse_other_file(self) -> None:
        # An administrator who moves the log away, or restores a backup over it, under a running
        # daemon would have it acknowledge results into a file without a name.
        try:
            here = os.stat(self.path)
        except OSError as error:
            self._end(CommitFailed(f"{self.path} is gone while the daemon has it open ({error.strerror}); nothing "
                                   "was written. Put the file back and start again"), error)
        if (here.st_dev, here.st_ino) != (self._file.st_dev, self._file.st_ino):
            self._end(CommitFailed(f"{self.path} was replaced while the daemon has it open; nothing was written. "
                                   "Start again to work with the file that is there now"))

    async def _fenced(self) -> NoReturn:
        # Still inside the transaction that inserted nothing: what is read here is why.
        rows = await self._writer.execute_fetchall("SELECT epoch FROM writer WHERE one = 1")
        epoch = next((row[0] for row in rows), None)
        await self._writer.rollback()
        self._end(Fenced(f"another daemon took {self.path} over (epoch {epoch}, this one has {self._epoch}); "
                         "nothing was written. Leave the log to it and end this process"))

    def _broken_off(self) -> None:
        # A caller that is cancelled does not come here (see _to_the_end), only a loop that closes.
        self._ended = CommitFailed(f"a transaction on {self.path} was broken off and its outcome is unknown. "
                                   "Start again: the log is read from the beginning")

    async def _give_up_transaction(self, error: Exception) -> NoReturn:
        """Turn an error during an append into what the caller must know: is the outcome known?"""
        try:
            await self._writer.rollback()       # does nothing when SQLite has rolled back already
            rows = await self._writer.execute_fetchall("SELECT coalesce(max(seq), 0) FROM event")
            clean = next(iter(rows))[0] == self._head[0]
        except sqlite3.Error:
            clean = False
        if clean and _code(error) == sqlite3.SQLITE_FULL:
            raise DiskFull(f"no space left for {self.path}; nothing was written. Free some space, "
                           "the daemon goes on by itself") from error
        if clean and (not isinstance(error, sqlite3.Error) or isinstance(error, _OURS)):
            raise LogBug(f"the log refused a row: {error}; nothing was written. Please report this") from error
        self._end(CommitFailed(f"writing {self.path} failed ({_says(error)}) and the outcome is unknown. Look at the "
                               "disk, then start again: the log is read from the beginning"), error)

    def _end(self, last: LogError, cause: BaseException | None = None) -> NoReturn:
        self._ended = last
        raise last from cause

    async def read(self, after: int = 0, until: int | None = None) -> AsyncIterator[list[Row]]:
        # Each chunk is a query of its own, so a slow caller holds no read transaction open, which
        # would keep the WAL from being cut.
        seq, last = after, _upper(until)
        while seq < last:
            good: list[Row] = []
            with _translated(seq):
                found = await self._reader.execute_fetchall("""
                    SELECT seq, body, hash, type, study, trial, actor, cmd FROM event
                    WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?
                    """, (seq, last, READ_CHUNK))
            for fields in found:
                if fields[0] != seq + 1:
                    raise Damaged(seq + 1, "it is missing")
                if leaf_hash(fields[1]) != fields[2]:
                    raise Damaged(seq + 1, "its hash is not that of its body")
                good.append(Row(*fields))
                seq += 1
            if good:
                yield good
            if len(good) < READ_CHUNK:
                return

    async def save_snapshot(self, seq: int, codec: str, digest: bytes, blob: bytes) -> None:
        await _to_the_end(self._save("""
            INSERT OR REPLACE INTO snapshot (seq, codec, digest, blob)
            SELECT ?2, ?3, ?4, ?5 WHERE (SELECT epoch FROM writer WHERE one = 1) = ?1
            """, (seq, codec, digest, blob), """
            DELETE FROM snapshot WHERE seq NOT IN (SELECT seq FROM snapshot ORDER BY seq DESC LIMIT ?)
            """, (SNAPSHOTS_KEPT,)))

    async def load_snapshot(self, until: int | None = None) -> Snapshot | None:
        with _translated(self._head[0]):
            rows = await self._reader.execute_fetchall("""
                SELECT seq, codec, digest, blob FROM snapshot WHERE seq <= ? ORDER BY seq DESC LIMIT 1
                """, (_upper(until),))
        return next((Snapshot(*row) for row in rows), None)

    async def save_note(self, seq: int, note: bytes) -> None:
        await _to_the_end(self._save("""
            INSERT OR REPLACE INTO checkpoint (seq, note)
            SELECT ?2, ?3 WHERE (SELECT epoch FROM writer WHERE one = 1) = ?1
            """, (seq, note)))

    async def load_note(self) -> Note | None:
        with _translated(self._head[0]):
            rows = await self._reader.execute_fetchall("SELECT seq, note FROM checkpoint ORDER BY seq DESC LIMIT 1")
        return next((Note(*row) for row in rows), None)

    async def _save(self, insert: str, values: tuple[int, object, object, object] | tuple[int, object],
                    tidy: str | None = None, tidy_values: tuple[object, ...] = ()) -> None:
        async with self._one_at_a_time:
            self._must_be_able_to_write()
            if values[0] > self._head[0]:       # the first value is the seq
                raise LogBug(f"a snapshot or note of event {values[0]} before that event is committed")
            try:
                done = await self._writer.execute(insert, (self._epoch, *values))
                if done.rowcount != 1:
                    await self._fenced()
                if tidy is not None:
                    await self._writer.execute(tidy, tidy_values)
                await self._writer.commit()
            except LogError:
                raise
            except asyncio.CancelledError:
                self._broken_off()
                raise
            except Exception as error:
                await self._give_up_transaction(error)
            self._dirty = True

    @property
    def wal_bytes(self) -> int:
        """The size of the WAL file: how much it ever held since it was last cut."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    @property
    def checkpoint_due(self) -> bool:
        return self.wal_bytes > self._wal_bound_bytes

    async def checkpoint(self) -> None:
        """Move the WAL into the file. Appends wait meanwhile, so this is for an idle moment.

        PASSIVE leaves the WAL file its size, and the next appends overwrite it, which is cheaper
        than to let it grow anew; past `WAL_MAX_BYTES` it is cut.
        """
        if self._dirty or self.checkpoint_due:
            await _to_the_end(self._checkpoint())

    async def _checkpoint(self) -> None:
        async with self._one_at_a_time:
            self._must_be_able_to_write()
            try:
                if not self.checkpoint_due:
                    await self._writer.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
                else:
                    # Cutting needs a moment without readers. Do not wait for one while results
                    # wait for us: try again when the file has grown by another quarter.
                    await self._writer.execute("PRAGMA busy_timeout = 0")
                    await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
                    await self._writer.execute(_BUSY_TIMEOUT)
                    self._wal_bound_bytes = max(WAL_MAX_BYTES, self.wal_bytes + WAL_MAX_BYTES // 4)
            except sqlite3.Error as error:
                if _code(error) == sqlite3.SQLITE_FULL:
                    raise DiskFull(f"no space left to move the WAL into {self.path}; nothing is lost") from error
                # A failed fsync of the file may have thrown pages away that the next one would
                # report as written, so nothing may be built on it.
                self._end(CommitFailed(f"the checkpoint of {self.path} failed ({_says(error)}). Look at the disk, "
                                       "then start again: every acknowledged event is in the WAL"), error)
            self._dirty = False

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._reader.close()
            async with self._one_at_a_time:
                await self._writer.close()      # the last one out moves the WAL into the file
        finally:
            os.close(self._lock)


_OURS = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)
_BUSY_TIMEOUT = f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}"


async def _set_up_writer(db: aiosqlite.Connection) -> None:
    for pragma in (
        "PRAGMA synchronous = FULL",            # NORMAL loses acknowledged events in a power cut
        "PRAGMA fullfsync = ON",                # the same on macOS, where fsync alone does not flush
        "PRAGMA checkpoint_fullfsync = ON",
        "PRAGMA wal_autocheckpoint = 0",        # never inside a commit: see checkpoint()
        *_READING,
    ):
        await db.execute(pragma)
    mode = next(iter(await db.execute_fetchall("PRAGMA journal_mode = WAL")))[0]
    if mode != "wal":
        raise CannotOpen(f"SQLite offers no write-ahead log here (journal_mode is {mode!r}); use a local disk")


async def _set_up_reader(db: aiosqlite.Connection) -> None:
    for pragma in _READING:
        await db.execute(pragma)


_READING = (
    "PRAGMA trusted_schema = OFF",      # a schema that was tampered with calls no functions
    "PRAGMA cell_size_check = ON",      # notice a broken page before its numbers are used
    "PRAGMA mmap_size = 0",             # an I/O error is then an error and not a SIGBUS
)


async def _raise_epoch(db: aiosqlite.Connection) -> tuple[int, int]:
    """Make every older writer stop at its next append; return our epoch and the seq of the head."""
    try:
        await db.execute("UPDATE writer SET epoch = epoch + 1 WHERE one = 1")
        rows = await db.execute_fetchall("""
            SELECT epoch, (SELECT coalesce(max(seq), 0) FROM event) FROM writer WHERE one = 1
            """)
        await db.commit()
    except BaseException:
        with suppress(sqlite3.Error):
            await db.rollback()
        raise
    epoch, seq = next(iter(rows))
    return epoch, seq


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when the caller is cancelled: nobody owns half a transaction."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()    # was looked at; what ended the log is kept in the log itself
        raise


# --- Trust: the way to open a file, and the proof of a chain -----------------------------------

def verify(path: AnyPath, on_progress: Progress | None = None) -> Report:
    """Check every byte of every event, offline and read-only. Raises only CannotOpen or I/O errors.

    Works on a file and a directory that cannot be written, and beside a running daemon.
    """
    path = _true_name(path)
    seq, last_hash, last_body, log, epoch = 0, bytes(32), b"", None, None
    damage: Damaged | None = None
    try:
        _look_at_header(path)
        with _reading(path) as db:
            for chunk in _verified(db, 0, _upper(None)):
                if seq == 0:
                    name = orjson.loads(chunk[0][1]).get("log")
                    log = name if isinstance(name, str) else None
                seq, last_body, last_hash = chunk[-1][:3]
                if on_progress is not None:
                    on_progress(seq)
            with _translated(seq):
                epoch = _look_round(db, seq, last_body)
    except Damaged as found:
        damage = found
    return Report(seq, seq, last_hash, log, epoch, damage)


def _true_name(path: AnyPath) -> Path:
    """`path` without links, so that two names of one file share its lock and its WAL."""
    return Path(os.path.realpath(path))


def read_events(path: AnyPath, after: int = 0, until: int | None = None) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (seq, body, hash) with after < seq <= until, offline; each is checked before it is yielded.

    Raises Damaged after the last event that verifies.
    """
    path = _true_name(path)
    _look_at_header(path)
    with _reading(path) as db:
        for chunk in _verified(db, after, _upper(until)):
            for fields in chunk:
                yield fields[0], fields[1], fields[2]


def _verified(db: sqlite3.Connection, after: int, until: int) -> Iterator[list[Fields]]:
    """Chunks of verified events; then Damaged, if there is damage.

    What is good in a chunk is handed over before the damage is raised, so that a reader sees
    everything that can be trusted.
    """
    seq, prev = after, ZERO
    if after:
        with _translated(after - 1):
            found = db.execute("SELECT hash FROM event WHERE seq = ?", (after,)).fetchone()
        if found is None:
            return          # nothing follows an event that is not there yet
        prev = found[0].hex()
    while seq < until:
        good: list[Fields] = []
        damage: Damaged | None = None
        try:
            # Row by row, because an error in the file then tells after which event it came.
            with closing(db.execute("""
                SELECT seq, body, hash, type, study, trial, actor, cmd FROM event
                WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?
                """, (seq if seq else -2**63, until, READ_CHUNK))) as rows:     # none before event 1 either
                for fields in rows:
                    why = _fault(fields, seq + 1, prev)
                    if why is not None:
                        raise Damaged(seq + 1, why)
                    seq, prev = seq + 1, fields[2].hex()
                    good.append(fields)
        except Damaged as found_here:
            damage = found_here
        except _SQLITE_ERRORS as error:
            damage = _damage(error, seq)
        if good:
            yield good
        if damage is not None:
            raise damage
        if len(good) < READ_CHUNK:
            return


def _fault(fields: Fields, expected: int, prev: str) -> str | None:
    """Why this row cannot be event `expected` after the event with hash `prev`; None when it can."""
    seq, body, hash_, type_, study, trial, actor, cmd = fields
    if seq != expected:
        return "it is missing" if seq > expected else f"event {seq} stands in its place"
    if type(body) is not bytes:
        return "its body is not bytes"
    if sha256(b"\0" + body).digest() != hash_:
        return "its hash is not that of its body"
    try:
        event = orjson.loads(body)
        told = event.get
    except (orjson.JSONDecodeError, AttributeError):
        return "its body is not a JSON object"
    if told("seq") != seq:
        return f"its body says that it is event {told('seq')!r}"
    if told("prev") != prev:
        return "its prev is not the hash of the event before it"
    if told("type") != type_ or told("study") != study or told("trial") != trial \
            or told("actor") != actor or told("cmd") != cmd or type_ is None or actor is None:
        return "type, study, trial, actor or cmd beside its body are not those in its body"
    return None


def _refuse_bad_rows(rows: list[Fields], head: tuple[int, bytes]) -> None:
    """The same proof before a row is written (about 2 µs): a broken chain would be for ever."""
    seq, prev = head[0], head[1].hex()
    for fields in rows:
        why = _fault(fields, seq + 1, prev)
        if why is not None:
            raise LogBug(f"append of event {fields[0]} after event {seq}: {why}; nothing was written. "
                         "Please report this")
        seq, prev = seq + 1, fields[2].hex()


def _look_round(db: sqlite3.Connection, seq: int, last_body: bytes) -> int:
    """What the chain does not cover: the pages, the schema and the epoch. Returns the epoch.

    Events verify when this is reached, so damage found here is at the place of the next event:
    it is writing that would not be safe.
    """
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise Damaged(seq + 1, f"all events verify but the file around them does not ({problem})")
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        wanted = _schema(fresh)
    if not wanted <= _schema(db):
        raise Damaged(seq + 1, "all events verify but tables or triggers around them were changed")
    row = db.execute("SELECT epoch FROM writer WHERE one = 1").fetchone()
    epoch = row[0] if row is not None else None
    written_in = orjson.loads(last_body).get("epoch") if last_body else None
    if type(epoch) is not int or (type(written_in) is int and epoch < written_in):
        raise Damaged(seq + 1, f"all events verify but the writer epoch ({epoch}) is older than the last of them")
    return epoch


def _schema(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    # SQLite keeps comments and white space of the text that made a table, and those may change
    # between releases of ours.
    return {(kind, name, " ".join(re.sub(r"--[^\n]*", "", str(sql)).split()))
            for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_schema")}


def _prepare(path: Path, on_progress: Progress | None) -> Report:
    """Under the lock: create the file if there is none, and let nobody write to one that is damaged."""
    with _translated(0):
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
    report = verify(path, on_progress)
    if report.damage is not None:
        raise report.damage
    return report


def _create(path: Path) -> None:
    """Make an empty log beside its place, then put it there whole: no crash leaves half a log."""
    stale = Path(f"{path}-wal")
    if stale.exists() and stale.stat().st_size > 0:
        # SQLite would take the pages of that WAL for pages of the new file.
        raise CannotOpen(f"{path} is missing or empty, but {stale.name} beside it holds events of a log: "
                         "put the log back, or move both away")
    new = Path(f"{path}.new")
    for leftover in (new, Path(f"{new}-journal"), Path(f"{new}-wal"), Path(f"{new}-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(f"{new.as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.executescript("BEGIN;" + SCHEMA + "COMMIT;")
        db.execute("PRAGMA journal_mode = WAL")
    os.rename(new, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _look_at_header(path: Path) -> None:
    """Decide from the first 100 bytes whether this is a log we may open, before SQLite touches it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise CannotOpen(f"cannot read {path}: {error.strerror}") from error
    if not header:
        raise CannotOpen(f"{path} is empty: no daemon has written to it yet")
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise Damaged(1, "the file is not a SQLite database")
    application = int.from_bytes(header[68:72], "big")
    version = int.from_bytes(header[60:64], "big")
    if application != APPLICATION_ID:
        raise CannotOpen(f"{path} is a SQLite database but not a log of bayesd (application_id {application:#x}); "
                         "it was not touched")
    if version > FORMAT:
        raise CannotOpen(f"{path} was written by a newer bayesd (format {version}, this one knows {FORMAT}); "
                         "it was not touched. Install the newer release")
    wal = Path(f"{path}-wal")
    modes = [b"\x02\x02"]
    if not (wal.exists() and wal.stat().st_size > 0):
        modes.append(b"\x01\x01")   # a copy made by VACUUM INTO: not in WAL mode, but then without a WAL
    if version != FORMAT or header[18:20] not in modes:
        raise Damaged(1, "the header of the file was changed")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection, also where the directory cannot be written."""
    with _translated(0):
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
    copy: tempfile.TemporaryDirectory[str] | None = None
    try:
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except _SQLITE_ERRORS as error:
            if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise _damage(error, 0) from error
            # To read a WAL needs a file beside it. Without a WAL the file can be read as one that
            # never changes; with one, a copy of both is read, since the WAL may hold events.
            db.close()
            wal = Path(f"{path}-wal")
            with _translated(0):
                if wal.exists() and wal.stat().st_size > 0:
                    copy = tempfile.TemporaryDirectory(prefix="bayesd-verify-")
                    shutil.copyfile(path, Path(copy.name, "log.db"))
                    shutil.copyfile(wal, Path(copy.name, "log.db-wal"))
                    uri = f"{Path(copy.name, 'log.db').as_uri()}?mode=ro"
                else:
                    uri = f"{path.as_uri()}?mode=ro&immutable=1"
                db = sqlite3.connect(uri, uri=True, isolation_level=None)
        with _translated(0):
            for pragma in _READING:
                db.execute(pragma)
        yield db
    finally:
        db.close()
        if copy is not None:
            copy.cleanup()


def _make_directory(directory: Path) -> None:
    # os.makedirs gives the mode to the last directory only.
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs",
                     "gpfs", "ncpfs", "coda", "beegfs", "pvfs2"})


def _refuse_network(directory: Path, allowed: bool) -> None:
    if allowed or not sys.platform.startswith("linux"):
        return
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return      # without /proc there is no telling; the epoch still keeps writers apart
    kind = _filesystem(directory, mounts.splitlines())
    if kind in NETWORK or kind == "fuse" or kind.startswith("fuse."):
        raise CannotOpen(f"{directory} is on {kind}: SQLite's locks and shared memory do not hold on a network file "
                         "system. Put the log on a local disk, or force it if you know that this mount is one")


def _filesystem(directory: Path, mounts: Iterable[str]) -> str:
    """The type of the file system that `directory` is on; of mounts on one place the last is on top."""
    best, kind = -1, ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        if not after:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4]))
        if directory.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ")[0]
    return kind


def _take_lock(path: Path) -> int:
    name = Path(f"{path}.lock")
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise LockedOut(f"{path} is open in another daemon (process {holder}); stop that one first") from error
    with suppress(OSError):     # the number is for people; the lock is what counts
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
    return lock


# --- Errors of SQLite in our words -------------------------------------------------------------

# The messages of SQLite quote the file, and a damaged file need not be text: Python then fails to
# decode the message itself.
_SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

_NOT_DAMAGE = frozenset({
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_AUTH,
})


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF     # the low byte is the primary code


def _says(error: Exception) -> str:
    return f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"


def _damage(error: Exception, seq: int) -> Damaged:
    """Damage after the good event `seq`; raises instead when the error speaks of something else.

    What SQLite says of a file with a few wrong bytes is of many kinds (malformed, no such table,
    text that is not UTF-8, a blob too big), so everything counts that is not known to be harmless.
    """
    code = _code(error)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        raise CannotOpen(f"cannot open the log ({_says(error)}); check the path and who may read it") from error
    if code == sqlite3.SQLITE_FULL:
        raise DiskFull("no space left to open the log; nothing was written. Free some space") from error
    if code in _NOT_DAMAGE:
        raise LogError(f"cannot read the log ({_says(error)}). Look at the disk and try again") from error
    return Damaged(seq + 1, _says(error))


@contextmanager
def _translated(seq: int) -> Iterator[None]:
    """Errors of SQLite and of the system become ours; `seq` is the last event known to be good."""
    try:
        yield
    except _SQLITE_ERRORS as error:
        raise _damage(error, seq) from error
    except OSError as error:
        kind = DiskFull if error.errno == errno.ENOSPC else CannotOpen
        raise kind(f"cannot open the log: {error.strerror} ({error.filename})") from error


def _upper(until: int | None) -> int:
    return 2**63 - 1 if until is None else until


# --- In memory ---------------------------------------------------------------------------------

Hook: TypeAlias = Callable[[Sequence[Row]], Awaitable[None]]


@dataclass(slots=True)
class MemoryDisk:
    """What survives a daemon that was killed: hand the same disk to the next MemoryLog."""

    rows: list[Row] = field(default_factory=list)
    epoch: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    holder: "MemoryLog | None" = None

    def kill(self) -> None:
        """End the daemon that holds this disk as kill -9 does: what it had not committed is gone."""
        if self.holder is not None:
            self.holder._dead = True
            self.holder = None

    def steal_lock(self) -> None:
        """Let a second daemon in while the first lives on, as a removed lock file would."""
        self.holder = None


class MemoryLog:
    """The promises of SqliteLog without a disk, for simulations, tests and studies in one process.

    `before_commit` and `after_commit` are awaited around the moment at which rows become durable.
    They may sleep (latency), or raise: DiskFull before the commit; CommitFailed before or after,
    since its outcome is unknown. A daemon killed in one of them has not, or has, committed.
    """

    def __init__(self, disk: MemoryDisk, before_commit: Hook | None, after_commit: Hook | None) -> None:
        disk.epoch += 1
        disk.holder = self
        self.disk = disk
        self._epoch = disk.epoch
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._one_at_a_time = asyncio.Lock()
        self._ended: LogError | None = None
        self._closed = False
        self._dead = False
        self._head = (disk.rows[-1].seq, disk.rows[-1].hash) if disk.rows else (0, bytes(32))

    @classmethod
    async def open(cls, disk: MemoryDisk | None = None, *, before_commit: Hook | None = None,
                   after_commit: Hook | None = None) -> "MemoryLog":
        disk = MemoryDisk() if disk is None else disk
        if disk.holder is not None:
            raise LockedOut("this memory disk is open in another daemon; stop that one first")
        seq, prev = 0, ZERO
        for row in disk.rows:
            why = _fault(row.fields, seq + 1, prev)
            if why is not None:
                raise Damaged(seq + 1, why)
            seq, prev = seq + 1, row.hash.hex()
        return cls(disk, before_commit, after_commit)

    @property
    def epoch(self) -> int:
        return self._epoch

    def head(self) -> tuple[int, bytes]:
        return self._head

    async def append(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        async with self._one_at_a_time:
            self._must_be_able_to_write()
            self._must_be_newest()
            _refuse_bad_rows([row.fields for row in rows], self.head())
            try:
                if self._before_commit is not None:
                    await self._before_commit(rows)
                self._must_be_able_to_write()
                self._must_be_newest()      # who came while we waited has the log now
                self.disk.rows.extend(rows)
                self._head = rows[-1].seq, rows[-1].hash
                if self._after_commit is not None:
                    await self._after_commit(rows)
                    self._must_be_able_to_write()   # a killed daemon does not hear of its success
            except DiskFull:
                raise
            except LogError as error:
                self._ended = error
                raise

    def _must_be_able_to_write(self) -> None:
        if self._closed:
            raise LogBug("append to a log that is closed")
        if self._dead:
            raise CommitFailed("this daemon was killed")
        if self._ended is not None:
            raise self._ended

    def _must_be_newest(self) -> None:
        if self.disk.epoch != self._epoch:
            self._ended = Fenced(f"another daemon took the log over (epoch {self.disk.epoch}, this one has "
                                 f"{self._epoch}); nothing was written. End this process")
            raise self._ended

    async def read(self, after: int = 0, until: int | None = None) -> AsyncIterator[list[Row]]:
        last = _upper(until)
        while chunk := self.disk.rows[after:min(after + READ_CHUNK, last)]:
            yield chunk
            after += len(chunk)

    async def save_snapshot(self, seq: int, codec: str, digest: bytes, blob: bytes) -> None:
        self._must_be_able_to_write()
        self._must_be_newest()
        self._refuse_ahead(seq)
        kept = [each for each in self.disk.snapshots if each.seq != seq]
        kept.append(Snapshot(seq, codec, digest, blob))
        self.disk.snapshots = sorted(kept, key=lambda each: each.seq)[-SNAPSHOTS_KEPT:]

    async def load_snapshot(self, until: int | None = None) -> Snapshot | None:
        return next((each for each in reversed(self.disk.snapshots) if each.seq <= _upper(until)), None)

    async def save_note(self, seq: int, note: bytes) -> None:
        self._must_be_able_to_write()
        self._must_be_newest()
        self._refuse_ahead(seq)
        kept = [each for each in self.disk.notes if each.seq != seq]
        self.disk.notes = sorted([*kept, Note(seq, note)], key=lambda each: each.seq)

    async def load_note(self) -> Note | None:
        return self.disk.notes[-1] if self.disk.notes else None

    def _refuse_ahead(self, seq: int) -> None:
        if seq > self.head()[0]:
            raise LogBug(f"a snapshot or note of event {seq} before that event is committed")

    @property
    def checkpoint_due(self) -> bool:
        return False

    async def checkpoint(self) -> None:
        self._must_be_able_to_write()

    async def close(self) -> None:
        self._closed = True
        if self.disk.holder is self:
            self.disk.holder = None
