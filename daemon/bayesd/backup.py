"""A copy of a log that is proved before it gets its name, and the way back.

`copy` takes one moment of a log, with what waits in its WAL, through SQLite's backup interface: a daemon that is at
work goes on, and neither waits for the other. The copy is made under another name beside its place, flushed, proved
by whoever calls, and only then renamed; so a file with the right name is a whole and proved log, whatever died when.

`put_back` makes such a copy the log that a daemon will serve. What stood there is moved aside and never deleted. The
key that signs heads is in neither: who has a backup should not be able to sign.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import orjson

from bayesd.durable import flush_folder, put_in_place
from bayesd.logfile import (
    RESTORING,
    AnyPath,
    CannotOpen,
    DiskFull,
    LockedOut,
    LogError,
    make_directory,
    read_events,
    reading,
    sqlite_code,
    take_lock,
    translated,
    true_name,
)
from bayesd.segments import Misused, is_segment, no_space, writing

PAGES = 256             # of 4 KiB that are copied at a time: between two of these a bar moves
PART = ".part"
Pages: TypeAlias = Callable[[int, int], None]
"""Called with the number of pages that are copied, and of all."""
Proof = TypeVar("Proof")


@dataclass(frozen=True, slots=True)
class End:
    """Which log it is, and its last event."""

    log: str
    seq: int
    hash: bytes


def end_of(path: AnyPath) -> End | None:
    """The last event of a log file; None when it has none. Raises LogError for what is no log."""
    with reading(true_name(path)) as db, translated(0):
        last = db.execute("SELECT max(seq) FROM event").fetchone()[0]
    if last is None:
        return None
    for seq, body, hash in read_events(path, last - 1, last):
        return End(str(orjson.loads(body)["log"]), seq, hash)
    return None


# --- Out -----------------------------------------------------------------------------------------------


def copy(log: AnyPath, out: Path, prove: Callable[[Path], Proof], on_pages: Pages | None = None, *,
         is_folder: bool = False) -> tuple[Path, Proof]:
    """Copy a log, prove the copy, give it the name `out`; in a folder, the name of its log and last event.

    With `is_folder` the folder is made where it is missing. An older copy of the same log is replaced. Returns where
    the copy is, and what `prove` said of it; what `prove` raises ends the copying, and nothing has the name then.
    Raises Misused when something else is in its place, LockedOut when somebody else is at it, DiskFull,
    or another LogError.
    """
    log = true_name(log)
    _must_be_a_log(log)
    if is_folder:
        if out.exists() and not out.is_dir():
            raise Misused(f"{out} is there and no folder: leave the slash out to put the copy in its place")
        with writing(out):
            make_directory(out)
    folder = out if out.is_dir() else None
    out = true_name(out)
    if out == log:
        raise Misused(f"{out} is the log itself: name another file with -o, best on another disk")
    if folder is None:
        _must_be_replaceable(out)
    with _part(out / log.name if folder is not None else out, PART) as part:
        _copy_pages(log, part, on_pages)
        proof = prove(part)
        end = end_of(part)
        if folder is not None:
            if end is None:
                raise Misused(f"{log} has no event yet, so its copy has no name: name a file with -o")
            out = out / f"{end.log}-{end.seq:012}.db"
            _must_be_replaceable(out)
        _must_go_on(out, end)
        _drop_beside(part)
        with writing(out):
            put_in_place(part, out)
    return out, proof


def _must_be_a_log(path: Path) -> None:
    """Before a file is made: what is wrong with the source is not said of the copy."""
    try:
        if path.is_file() and path.stat().st_size > 0 and is_segment(path):
            raise Misused(f"{path} is a segment: put a log together from its segments with log import")
    except PermissionError as error:
        raise CannotOpen(f"cannot read {path}: {error.strerror}") from error
    next(read_events(path, 0, 1), None)


def _must_be_replaceable(out: Path) -> None:
    wal = Path(f"{out}-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise Misused(f"{wal.name} beside {out} holds events of what stood there: name another file with -o")
    if Path(f"{out}.lock").exists() and out.exists():
        os.close(take_lock(out))        # a daemon serves it: no place for a copy


def _must_go_on(out: Path, end: End | None) -> None:
    """Only what the new copy holds as well is replaced."""
    if not out.exists():
        return
    try:
        there = end_of(out)
    except LogError as error:
        raise Misused(f"{out} is there already and is no log that verifies: name another file with -o, or move it "
                      f"away ({error})") from error
    if there is None:
        return
    if end is None or there.log != end.log:
        raise Misused(f"{out} is a copy of log {there.log}, this is log {end.log if end else 'without an event'}: "
                      "name another file with -o")
    if there.seq > end.seq:
        raise Misused(f"{out} ends at event {there.seq}, this log at event {end.seq}: the copy that is there is the "
                      "newer one, and it was not touched. Name another file with -o")


def _copy_pages(log: Path, part: Path, on_pages: Pages | None) -> None:
    """One moment of the log, page by page, flushed."""
    def told(status: int, remaining: int, total: int) -> None:
        if on_pages is not None:
            on_pages(total - remaining, total)

    with writing(part):
        try:
            with reading(log) as source, closing(sqlite3.connect(f"{part.as_uri()}?mode=rw", uri=True)) as target:
                # The file has its name only once it is flushed and proved, so SQLite need not be careful on the way.
                target.execute("PRAGMA synchronous = OFF")
                target.execute("PRAGMA journal_mode = OFF")
                # Within one read transaction it is one moment; else each commit of the daemon would begin it anew.
                source.execute("BEGIN")
                source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                source.backup(target, pages=PAGES, progress=told, sleep=0.05)
        except sqlite3.Error as error:
            if sqlite_code(error) == sqlite3.SQLITE_FULL:
                raise DiskFull(no_space(part)) from error
            raise LogError(f"copying {log} to {part} failed ({error}). Look at both disks and try again") from error
        file = os.open(part, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextmanager
def _part(out: Path, end: str) -> Iterator[Path]:
    """A file beside `out` that is ours alone and is gone afterwards, unless it got its name."""
    part = Path(f"{out}{end}")
    with writing(part):
        make_directory(part.parent)
        guard = _alone_with(part)
    try:
        _drop_beside(part)
        yield part
    finally:
        # Who waits for the name sees that the file is another one, or none: see _alone_with.
        with suppress(OSError):
            if os.path.samestat(os.fstat(guard), part.stat()):
                part.unlink()
        _drop_beside(part)
        os.close(guard)


def _alone_with(part: Path) -> int:
    """Make the file, or take over what a crash left; the descriptor holds it."""
    while True:
        guard = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(guard), part.stat()):
                os.ftruncate(guard, 0)
                return guard
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(guard)
            raise LockedOut(f"{part} is being written by somebody else; wait for them") from error
        os.close(guard)         # it got its name between our two looks


def _drop_beside(part: Path) -> None:
    """What SQLite makes beside a file that it reads."""
    for end in ("-wal", "-shm", "-journal"):
        with suppress(OSError):
            Path(f"{part}{end}").unlink()


# --- Back ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored(Generic[Proof]):
    """What was put back, and what stood there."""

    path: Path
    proof: Proof
    aside: Path | None
    before: End | None
    """The end of the log that was moved aside, as far as it can be read."""


def put_back(copy: AnyPath, out: Path, prove: Callable[[Path], Proof], on_pages: Pages | None = None, *,
             move_aside: bool = False) -> Restored[Proof]:
    """Make a copy the log at `out`, proved before it gets that name.

    A log that is there is refused (Misused) unless it may be moved aside. Raises LockedOut while a daemon has it, what
    `prove` raises, DiskFull, or another LogError; the log that is there is then as it was.
    """
    copy, out = true_name(copy), true_name(out)
    if copy == out:
        raise Misused(f"{out} is the copy itself: name the log's place with -o")
    _must_be_a_log(copy)
    if out.is_dir():
        raise Misused(f"{out} is a folder: name the log's file with -o")
    with writing(out):
        make_directory(out.parent)
    held = [each for each in (out, Path(f"{out}-wal")) if each.exists() and each.stat().st_size > 0]
    if held and not move_aside:
        raise Misused(f"{' and '.join(map(str, held))} {'are' if len(held) > 1 else 'is'} there already. To keep what "
                      "is there under another name and put the copy in its place, say --move-aside")
    with writing(out):
        owner = (out if out.exists() else out.parent).stat()
        guard = take_lock(out)
    try:
        with _part(out, RESTORING) as part:
            _copy_pages(copy, part, on_pages)
            proof = prove(part)
            _drop_beside(part)
            before = _end_if_any(out)
            with writing(out):
                for each in (part, Path(f"{out}.lock")):
                    if os.geteuid() == 0:           # what root puts back, the daemon's user must be able to open
                        os.chown(each, owner.st_uid, owner.st_gid)
                aside = _move_aside(out, held) if held else None
                put_in_place(part, out)
        return Restored(out, proof, aside, before)
    finally:
        os.close(guard)


def _end_if_any(path: Path) -> End | None:
    try:
        return end_of(path) if path.exists() else None
    except LogError:
        return None


def _move_aside(out: Path, held: list[Path]) -> Path:
    """Give the old log, with its WAL, another name.

    A log without its WAL is a shorter one, and a WAL beside another log would be read as part of it. So the log's name
    goes first; while it is missing, the file of the restore keeps a daemon from beginning a new one.
    """
    number = 1
    while any(Path(f"{out}.before-{number}{end}").exists() for end in ("", "-wal")):
        number += 1
    aside = Path(f"{out}.before-{number}")
    for path in held:
        os.link(path, Path(f"{aside}{path.name.removeprefix(out.name)}"))
    flush_folder(out.parent)
    for path in (out, Path(f"{out}-wal"), Path(f"{out}-shm")):
        path.unlink(missing_ok=True)
        flush_folder(out.parent)
    return aside
