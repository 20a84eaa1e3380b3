"""The log: append events, read them back.

This file decides when an event is durable. It refuses to know what an event means: a `Row` is
bytes, their hash, and copies of five fields for people who look with a SQLite shell. `SqliteLog` is
the real one, `MemoryLog` is the same promise without a disk.

What is promised, and by what:

- An append that returned is on the disk: WAL, `synchronous=FULL`, one transaction a batch.
- One writer: a file lock keeps honest daemons apart, and the writer epoch, checked inside every
  append, stops one whose lock was stolen.
- Every event is chained to the one before it; `logfile.verify` names the first that does not hold.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import aiosqlite

from bayesd.logfile import (
    BUSY_S,
    READ_CHUNK,
    READING,
    TEXTS,
    AnyPath,
    CannotOpen,
    CommitFailed,
    Damaged,
    DiskFull,
    Fenced,
    LockedOut,
    LogBug,
    LogError,
    Look,
    Progress,
    Report,
    fault,
    make_directory,
    prepare,
    read_events,
    refuse_bad_rows,
    refuse_network,
    says,
    sqlite_code,
    take_lock,
    translated,
    true_name,
    upper,
    verify,
)
from bayesd.study.canonical import ZERO, leaf_hash
from bayesd.study.merkle import Tree
from bayesd.study.row import Fields, Row
from bayesd.study.texts import Text

HASH_CHUNK = 10_000              # hashes that a read of them hands over at once
WAL_MAX_BYTES = 16 * 2**20      # beyond this `checkpoint` cuts the WAL file down
SNAPSHOTS_KEPT = 2
T = TypeVar("T")


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


class Log(Protocol):
    """What the service needs of a log. All methods are for one event loop."""

    @property
    def epoch(self) -> int:
        """The writer epoch of this life; the first daemon on a new log has 1."""
        ...

    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the last committed event; (0, 32 zero bytes) when there is none."""
        ...

    @property
    def tree(self) -> Tree:
        """The Merkle tree over the committed events, and never over one that is not committed."""
        ...

    async def must_be_newest(self) -> None:
        """Raise Fenced when a newer writer has taken the log over."""
        ...

    async def append(self, rows: Sequence[Row]) -> None:
        """Commit all of these rows or none. When it returns they are durable."""
        ...

    def read(self, after: int = 0, until: int | None = None) -> AsyncIterator[list[Row]]:
        """Committed rows with after < seq <= until, in chunks, each checked against its hash."""
        ...

    def hashes(self, until: int) -> AsyncIterator[list[bytes]]:
        """The hashes of the first `until` committed events, in chunks: a fraction of what `read` costs."""
        ...

    async def save_snapshot(self, seq: int, codec: str, digest: bytes, blob: bytes) -> None: ...

    async def load_snapshot(self, until: int | None = None) -> Snapshot | None:
        """The newest snapshot at or before `until`; whether it can be believed, the caller decides."""
        ...

    async def save_note(self, seq: int, note: bytes) -> None: ...

    async def load_note(self, seq: int | None = None) -> Note | None:
        """The note of the head at `seq`, or the newest."""
        ...

    async def texts(self, refs: Sequence[str]) -> dict[str, str]:
        """The free texts that are still there, by reference."""
        ...

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
                 epoch: int, head: tuple[int, bytes], tree: Tree) -> None:
        self.path = path
        self._lock = lock
        self._writer = writer           # the only connection that ever writes or checkpoints
        self._reader = reader
        self._epoch = epoch
        self._head = head
        self._tree = tree
        self._one_at_a_time = asyncio.Lock()
        self._ended: LogError | None = None     # set once no append may follow
        self._closed = False
        self._dirty = True              # something may be in the WAL that is not in the file
        self._wal_bound_bytes = WAL_MAX_BYTES
        self._scrub = False             # the WAL has pages with text that was redacted: cut it soon
        self._file = os.stat(path)

    @classmethod
    async def open(cls, path: AnyPath, *, allow_network: bool = False, on_progress: Progress | None = None,
                   look: Look | None = None) -> "SqliteLog":
        """Open a log to write, creating it if it is not there: lock, look, verify, raise the epoch.

        A network file system is refused unless `allow_network`: file locks and shared memory,
        on which SQLite's WAL rests, do not hold there. `on_progress` is called from a thread
        with the number of events verified so far, and `look` with the envelope of every event:
        what it raises ends the opening before a byte of the file is changed.
        """
        path = true_name(path)
        with translated(0):
            make_directory(path.parent)
            refuse_network(path.parent, allow_network)
            lock = take_lock(path)
        opened: list[aiosqlite.Connection] = []
        try:
            report = await asyncio.to_thread(prepare, path, on_progress, look)
            with translated(report.seq):
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
            return cls(path, lock, writer, reader, epoch, (report.seq, report.hash), report.tree)
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

    @property
    def tree(self) -> Tree:
        return self._tree

    async def must_be_newest(self) -> None:
        with translated(self._head[0]):
            rows = await self._reader.execute_fetchall("SELECT epoch FROM writer WHERE one = 1")
        epoch = next((row[0] for row in rows), None)
        if epoch != self._epoch:
            self._end(self._overtaken(epoch))

    async def append(self, rows: Sequence[Row]) -> None:
        if rows:
            await _to_the_end(self._append([row.fields for row in rows], [text for row in rows for text in row.texts]))

    async def _append(self, rows: list[Fields], texts: list[Text]) -> None:
        async with self._one_at_a_time:
            self._must_be_able_to_write()
            refuse_bad_rows(rows, self._head)
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
                    if texts:
                        await self._keep(texts)
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
            self._tree.extend(row[2] for row in rows)
            self._dirty = True
            self._scrub = self._scrub or any(text.text is None for text in texts)

    async def _keep(self, texts: list[Text]) -> None:
        """Free text goes in, or out, in the transaction of its event."""
        kept = [text for text in texts if text.text is not None]
        gone = [(text.ref,) for text in texts if text.text is None]
        if kept:
            await self._writer.executemany("INSERT OR IGNORE INTO text (ref, salt, text) VALUES (?, ?, ?)", kept)
        if gone:
            await self._writer.executemany("DELETE FROM text WHERE ref = ?", gone)

    async def texts(self, refs: Sequence[str]) -> dict[str, str]:
        out: dict[str, str] = {}
        with translated(self._head[0]):
            for at in range(0, len(refs), 500):
                some = refs[at:at + 500]
                out.update(await self._reader.execute_fetchall(         # type: ignore[arg-type]  # rows of two
                    f"SELECT ref, text FROM text WHERE ref IN ({','.join('?' * len(some))})", some))   # noqa: S608
        return out

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
        self._end(self._overtaken(epoch))

    def _overtaken(self, epoch: int | None) -> Fenced:
        return Fenced(f"another daemon took {self.path} over (epoch {epoch}, this one has {self._epoch}); "
                      "nothing was written. Leave the log to it and end this process")

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
        if clean and sqlite_code(error) == sqlite3.SQLITE_FULL:
            raise DiskFull(f"no space left for {self.path}; nothing was written. Free some space, "
                           "the daemon goes on by itself") from error
        if clean and (not isinstance(error, sqlite3.Error) or isinstance(error, _OURS)):
            raise LogBug(f"the log refused a row: {error}; nothing was written. Please report this") from error
        self._end(CommitFailed(f"writing {self.path} failed ({says(error)}) and the outcome is unknown. Look at the "
                               "disk, then start again: the log is read from the beginning"), error)

    def _end(self, last: LogError, cause: BaseException | None = None) -> NoReturn:
        self._ended = last
        raise last from cause

    async def read(self, after: int = 0, until: int | None = None) -> AsyncIterator[list[Row]]:
        # Each chunk is a query of its own, so a slow caller holds no read transaction open, which
        # would keep the WAL from being cut.
        seq, last = after, upper(until)
        while seq < last:
            good: list[Row] = []
            with translated(seq):
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

    async def hashes(self, until: int) -> AsyncIterator[list[bytes]]:
        seq = 0
        while seq < until:
            with translated(seq):
                found = list(await self._reader.execute_fetchall(
                    "SELECT hash FROM event WHERE seq > ? AND seq <= ? ORDER BY seq",
                    (seq, min(until, seq + HASH_CHUNK))))
            if not found:
                raise Damaged(seq + 1, "it is missing")
            seq += len(found)
            yield [row[0] for row in found]

    async def save_snapshot(self, seq: int, codec: str, digest: bytes, blob: bytes) -> None:
        await _to_the_end(self._save("""
            INSERT OR REPLACE INTO snapshot (seq, codec, digest, blob)
            SELECT ?2, ?3, ?4, ?5 WHERE (SELECT epoch FROM writer WHERE one = 1) = ?1
            """, (seq, codec, digest, blob), """
            DELETE FROM snapshot WHERE seq NOT IN (SELECT seq FROM snapshot ORDER BY seq DESC LIMIT ?)
            """, (SNAPSHOTS_KEPT,)))

    async def load_snapshot(self, until: int | None = None) -> Snapshot | None:
        with translated(self._head[0]):
            rows = await self._reader.execute_fetchall("""
                SELECT seq, codec, digest, blob FROM snapshot WHERE seq <= ? ORDER BY seq DESC LIMIT 1
                """, (upper(until),))
        return next((Snapshot(*row) for row in rows), None)

    async def save_note(self, seq: int, note: bytes) -> None:
        await _to_the_end(self._save("""
            INSERT OR REPLACE INTO checkpoint (seq, note)
            SELECT ?2, ?3 WHERE (SELECT epoch FROM writer WHERE one = 1) = ?1
            """, (seq, note)))

    async def load_note(self, seq: int | None = None) -> Note | None:
        with translated(self._head[0]):
            rows = await self._reader.execute_fetchall(
                "SELECT seq, note FROM checkpoint WHERE seq = ?1 OR ?1 IS NULL ORDER BY seq DESC LIMIT 1", (seq,))
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
        return self._scrub or self.wal_bytes > self._wal_bound_bytes

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
                    done = await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
                    self._scrub = self._scrub and next(iter(done))[0] != 0      # a reader was in the way
                    await self._writer.execute(_BUSY_TIMEOUT)
                    self._wal_bound_bytes = max(WAL_MAX_BYTES, self.wal_bytes + WAL_MAX_BYTES // 4)
            except sqlite3.Error as error:
                if sqlite_code(error) == sqlite3.SQLITE_FULL:
                    await self._writer.execute(_BUSY_TIMEOUT)
                    raise DiskFull(f"no space left to move the WAL into {self.path}; nothing is lost") from error
                # A failed fsync of the file may have thrown pages away that the next one would
                # report as written, so nothing may be built on it.
                self._end(CommitFailed(f"the checkpoint of {self.path} failed ({says(error)}). Look at the disk, "
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
        "PRAGMA secure_delete = ON",            # what is redacted is written over, not only forgotten
        *READING,
    ):
        await db.execute(pragma)
    mode = next(iter(await db.execute_fetchall("PRAGMA journal_mode = WAL")))[0]
    if mode != "wal":
        raise CannotOpen(f"SQLite offers no write-ahead log here (journal_mode is {mode!r}); use a local disk")


async def _set_up_reader(db: aiosqlite.Connection) -> None:
    for pragma in READING:
        await db.execute(pragma)


async def _raise_epoch(db: aiosqlite.Connection) -> tuple[int, int]:
    """Make every older writer stop at its next append; return our epoch and the seq of the head."""
    try:
        await db.execute("UPDATE writer SET epoch = epoch + 1 WHERE one = 1")
        await db.execute(TEXTS)                 # a log of an earlier release has no such table yet
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


# --- In memory ---------------------------------------------------------------------------------

Hook: TypeAlias = Callable[[Sequence[Row]], Awaitable[None]]


@dataclass(slots=True)
class MemoryDisk:
    """What survives a daemon that was killed: hand the same disk to the next MemoryLog."""

    rows: list[Row] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
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
        self._tree = Tree(row.hash for row in disk.rows)

    @classmethod
    async def open(cls, disk: MemoryDisk | None = None, *, before_commit: Hook | None = None,
                   after_commit: Hook | None = None) -> "MemoryLog":
        disk = MemoryDisk() if disk is None else disk
        if disk.holder is not None:
            raise LockedOut("this memory disk is open in another daemon; stop that one first")
        seq, prev = 0, ZERO
        for row in disk.rows:
            why = fault(row.fields, seq + 1, prev)
            if why is not None:
                raise Damaged(seq + 1, why)
            seq, prev = seq + 1, row.hash.hex()
        return cls(disk, before_commit, after_commit)

    @property
    def epoch(self) -> int:
        return self._epoch

    def head(self) -> tuple[int, bytes]:
        return self._head

    @property
    def tree(self) -> Tree:
        return self._tree

    async def must_be_newest(self) -> None:
        self._must_be_newest()

    async def append(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        async with self._one_at_a_time:
            self._must_be_able_to_write()
            self._must_be_newest()
            refuse_bad_rows([row.fields for row in rows], self.head())
            try:
                if self._before_commit is not None:
                    await self._before_commit(rows)
                self._must_be_able_to_write()
                self._must_be_newest()      # who came while we waited has the log now
                self.disk.rows.extend(rows)
                for text in (text for row in rows for text in row.texts):
                    if text.text is None:
                        self.disk.texts.pop(text.ref, None)
                    else:
                        self.disk.texts[text.ref] = text.text
                self._head = rows[-1].seq, rows[-1].hash
                self._tree.extend(row.hash for row in rows)
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
        last = upper(until)
        while chunk := self.disk.rows[after:min(after + READ_CHUNK, last)]:
            yield chunk
            after += len(chunk)

    async def hashes(self, until: int) -> AsyncIterator[list[bytes]]:
        yield [row.hash for row in self.disk.rows[:until]]

    async def save_snapshot(self, seq: int, codec: str, digest: bytes, blob: bytes) -> None:
        self._must_be_able_to_write()
        self._must_be_newest()
        self._refuse_ahead(seq)
        kept = [each for each in self.disk.snapshots if each.seq != seq]
        kept.append(Snapshot(seq, codec, digest, blob))
        self.disk.snapshots = sorted(kept, key=lambda each: each.seq)[-SNAPSHOTS_KEPT:]

    async def load_snapshot(self, until: int | None = None) -> Snapshot | None:
        return next((each for each in reversed(self.disk.snapshots) if each.seq <= upper(until)), None)

    async def save_note(self, seq: int, note: bytes) -> None:
        self._must_be_able_to_write()
        self._must_be_newest()
        self._refuse_ahead(seq)
        kept = [each for each in self.disk.notes if each.seq != seq]
        self.disk.notes = sorted([*kept, Note(seq, note)], key=lambda each: each.seq)

    async def load_note(self, seq: int | None = None) -> Note | None:
        return next((each for each in reversed(self.disk.notes) if seq in (None, each.seq)), None)

    async def texts(self, refs: Sequence[str]) -> dict[str, str]:
        return {ref: self.disk.texts[ref] for ref in refs if ref in self.disk.texts}

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


__all__ = ["CannotOpen", "CommitFailed", "Damaged", "DiskFull", "Fenced", "Hook", "LockedOut", "Log", "LogBug",
           "LogError", "MemoryDisk", "MemoryLog", "Note", "Report", "Row", "Snapshot", "SqliteLog", "read_events",
           "verify"]
