"""A disk that can lose power, fail and be full, and our log on it.

    disk = Disk(fail=lambda call: ...)
    with disk.under_the_log():
        log = await SqliteLog.open(path)        # daemon/bayesd/log.py, its statements and its pragmas
        ...
    disk.lose_power(rng, elsewhere)             # what a disk may have kept

It stands below SQLite, as a VFS made with APSW: what is written goes to a file, and is remembered until it is synced.
When the power goes, each write that was not synced is there or is not, torn at sectors, whatever its order was. What
was synced is there. APSW brings an SQLite of its own, newer than that of Python, so the statements of `log.py` come
to it by an adapter of the shape of aiosqlite, which begins transactions as Python's module does. Shared memory is the
real one, so that the log has its two connections and its usual locking. Making an empty log and looking at one before
it is opened (`logfile.py`) is done by Python's SQLite on the same files, as are all starts after a loss of power.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import apsw

import bayesd.log

SECTOR = 512
WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
Parameters = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that SQLite wants of the disk."""

    number: int
    kind: str
    """write, sync, truncate or delete."""
    file: str
    """The name in its folder, such as log.db-wal."""
    grows_bytes: int = 0
    """By how much a write makes the file longer: only that needs space."""


@dataclass(slots=True)
class _File:
    """What is on the disk of one file for sure, and what may be."""

    synced: bytearray
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)
    """(offset, data) of a write, or the size after a truncation."""
    named: bool = True
    """Its folder has its name for good."""
    before: bytes | None = None
    """What had this name before, and may still have it after a loss of power."""


class Disk:
    """Files below SQLite. `fail` is asked before each call and may raise `broken()` or `full()`."""

    def __init__(self, fail: Callable[[Call], None] = lambda call: None) -> None:
        self.fail = fail
        self.calls = 0
        self.dead = False
        """Without power: whatever is wanted of it fails."""
        self._files: dict[Path, _File] = {}
        self._gone: dict[Path, bytes] = {}
        """Deleted, and perhaps not for good."""
        self._vfs: _Vfs | None = None

    @contextmanager
    def under_the_log(self) -> Iterator[None]:
        """Every log that is opened to write lies on this disk."""
        self._vfs = _Vfs(self)

        async def connect(database: str, *, uri: bool, timeout: float, isolation_level: str | None) -> Connection:
            assert uri
            return Connection(self, database, timeout, isolation_level)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(bayesd.log, "aiosqlite", SimpleNamespace(connect=connect)))
            stack.callback(self._vfs.unregister)
            yield

    def cut(self) -> None:
        """The power is gone."""
        self.dead = True

    def lose_power(self, rng: Random, folder: Path) -> None:
        """Put what may be left into a folder."""
        self.dead = True
        for path in self._files.keys() | self._gone.keys():
            left = self._left(path, rng)
            if left is not None:
                (folder / path.name).write_bytes(left)

    def _left(self, path: Path, rng: Random) -> bytes | None:
        file = self._files.get(path)
        if file is None:
            return self._gone[path] if rng.random() < 0.5 else None
        if not file.named and rng.random() < 0.5:
            return file.before
        content, pending = bytearray(file.synced), list(file.pending)
        torn = rng.random() < 0.5
        pieces: list[tuple[int, bytes] | int] = []
        for each in pending:
            pieces += [each] if isinstance(each, int) or not torn else _sectors(*each)
        chance = rng.choice((0.5, 0.5, 0.95, 1.0))
        pieces = [each for each in pieces if rng.random() < chance]
        if rng.random() < 0.5:
            rng.shuffle(pieces)
        for piece in pieces:
            _apply(content, piece)
        return bytes(content)

    # ------------------------------------------------------------ what the VFS tells

    def _call(self, kind: str, path: Path, grows_bytes: int = 0) -> None:
        if self.dead:
            raise broken()
        self.calls += 1
        self.fail(Call(self.calls, kind, path.name, grows_bytes))

    def _opened(self, path: Path) -> None:
        if path not in self._files:
            content = path.read_bytes() if path.exists() else b""
            self._files[path] = _File(bytearray(content), named=bool(content), before=self._gone.pop(path, None))

    def _did(self, path: Path, what: tuple[int, bytes] | int) -> None:
        self._files[path].pending.append(what)

    def _synced(self, path: Path) -> None:
        file = self._files[path]
        for each in file.pending:
            _apply(file.synced, each)
        file.pending.clear()
        file.named, file.before = True, None       # the first sync of a WAL flushes its folder, too

    def _not_synced(self, path: Path) -> None:
        """As Linux has it: what could not be written is thrown away, and the next sync says that all is well."""
        if not self.dead:
            self._files[path].pending.clear()

    def _deleted(self, path: Path, for_good: bool) -> None:
        file = self._files.pop(path, None)
        if file is None:
            return
        for each in file.pending:
            _apply(file.synced, each)
        if not for_good:
            self._gone[path] = bytes(file.synced)


def broken() -> Any:
    """EIO."""
    error: Any = apsw.IOError("input/output error (a simulated disk)")
    error.result = error.extendedresult = sqlite3.SQLITE_IOERR
    return error


def full() -> Any:
    """ENOSPC."""
    error: Any = apsw.FullError("no space left (a simulated disk)")
    error.result = error.extendedresult = sqlite3.SQLITE_FULL
    return error


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    at, end = offset, offset + len(data)
    while at < end:
        to = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, data[at - offset:to - offset]
        at = to


def _apply(content: bytearray, what: tuple[int, bytes] | int) -> None:
    if isinstance(what, int):
        if what < len(content):
            del content[what:]
        else:
            content.extend(bytes(what - len(content)))
        return
    offset, data = what
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset:offset + len(data)] = data


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.label = f"disk-{id(disk):x}"
        super().__init__(self.label, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:      # SQLite's name
        return _VfsFile(self.disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        path = Path(filename)
        self.disk._call("delete", path)
        super().xDelete(filename, syncdir)
        self.disk._deleted(path, syncdir)


class _VfsFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk = disk
        self.path: Path | None = None
        if name is not None:
            self.path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
            if flags[0] & apsw.SQLITE_OPEN_READWRITE:
                disk._opened(self.path)
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.path is not None:
            held = self.disk.dead
            try:
                self.disk._call("write", self.path, max(0, offset + len(data) - super().xFileSize()))
            finally:
                if self.disk.dead and not held:     # the power went while this was under way
                    self.disk._did(self.path, (offset, bytes(data)))
        super().xWrite(data, offset)
        if self.path is not None:
            self.disk._did(self.path, (offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        if self.path is not None:
            self.disk._call("truncate", self.path)
        super().xTruncate(size)
        if self.path is not None:
            self.disk._did(self.path, size)

    def xSync(self, flags: int) -> None:
        # The file below is not flushed for real: what is left of it is told by `lose_power` alone.
        if self.path is not None:
            try:
                self.disk._call("sync", self.path)
            except apsw.Error:
                self.disk._not_synced(self.path)
                raise
            self.disk._synced(self.path)


class Connection:
    """As much of aiosqlite's connection as `log.py` uses, on an SQLite above a `Disk`."""

    def __init__(self, disk: Disk, uri: str, timeout_s: float, isolation_level: str | None) -> None:
        assert disk._vfs is not None
        flags = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE
        with _as_python():
            self._db = apsw.Connection(uri, flags=flags, vfs=disk._vfs.label)
        self._db.set_busy_timeout(int(timeout_s * 1000))
        self._isolation_level = isolation_level

    async def execute(self, sql: str, parameters: Parameters = ()) -> SimpleNamespace:
        return self._many(sql, [parameters])

    async def executemany(self, sql: str, parameters: Iterable[Parameters]) -> SimpleNamespace:
        return self._many(sql, parameters)

    async def execute_fetchall(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        with _as_python():
            return list(self._db.execute(sql, tuple(parameters)))

    async def commit(self) -> None:
        self._end("COMMIT")

    async def rollback(self) -> None:
        self._end("ROLLBACK")

    async def close(self) -> None:
        with suppress(apsw.Error):      # as sqlite3_close has it: what the last checkpoint meets is nobody's error
            self._db.close()

    def _many(self, sql: str, parameters: Iterable[Parameters]) -> SimpleNamespace:
        with _as_python():
            if WRITES.match(sql) and self._isolation_level is not None and not self._db.in_transaction:
                self._db.execute(f"BEGIN {self._isolation_level}")
            before = self._db.total_changes()
            for each in parameters:
                for _ in self._db.execute(sql, tuple(each)):
                    pass
            return SimpleNamespace(rowcount=self._db.total_changes() - before)

    def _end(self, how: str) -> None:
        with _as_python():
            if self._db.in_transaction:
                self._db.execute(how)


@contextmanager
def _as_python() -> Iterator[None]:
    """Errors of APSW become those that Python's module raises."""
    try:
        yield
    except apsw.Error as error:
        code = int(getattr(error, "extendedresult", 0) or getattr(error, "result", 0))
        kind = sqlite3.IntegrityError if code & 0xFF == sqlite3.SQLITE_CONSTRAINT else sqlite3.OperationalError
        said = kind(str(error))
        said.sqlite_errorcode = code
        said.sqlite_errorname = str(apsw.mapping_result_codes.get(code & 0xFF, code))
        raise said from error
