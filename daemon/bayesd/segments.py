"""Segments: a log's events as files that anybody can keep, check, and put together again.

A segment `<log id>-<first>-<last>.jsonl.gz` holds events first to last, the canonical bytes of each on a line, so
`zcat`, a JSON reader and SHA-256 are all that it takes to check one. Beside it, `<...>.json` says what the segment
is: log, range, the hash before its first and of its last event, and the signed notes of heads within it.

Nothing leaves the live log: its events are the state's only source, and a daemon that needs another file to start
has one more way not to. Segments are for keeping copies elsewhere, a piece at a time, and for rebuilding a log from
them. They hold no free text (see `texts.py`), so what is redacted in a log is not in its segments either.
"""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

import orjson

from bayesd.durable import flush_folder
from bayesd.logfile import (
    AnyPath,
    CannotOpen,
    Damaged,
    DiskFull,
    LockedOut,
    LogError,
    Look,
    Progress,
    create,
    has_texts,
    make_directory,
    read_events,
    reading,
    translated,
    true_name,
    verify,
)
from bayesd.study.canonical import ZERO, leaf_hash
from bayesd.study.row import Row
from bayesd.study.texts import reference

EVENTS = 1_000_000              # of a segment
CHUNK = 1000
SUFFIX = ".jsonl.gz"
Item: TypeAlias = tuple[int, bytes, bytes]


class Misused(CannotOpen):
    """What was named cannot be used so; nothing is wrong with it."""

    exit_code = 2


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Errors of the system while a file is made: DiskFull, else LogError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(no_space(place)) from error
        raise LogError(f"cannot write {error.filename or place}: {error.strerror or error}. Name another place with "
                       "-o") from error


def no_space(place: Path) -> str:
    """Words for a disk that was full."""
    return f"no space left to write {place}; what was begun does not count. Free some, or name another place with -o"


@dataclass(frozen=True, slots=True)
class Header:
    """What stands beside a segment."""

    log: str
    first: int
    last: int
    prev: str
    """Hash of the event before the first; zeros at the beginning of the log."""
    hash: str
    """Hash of the last event."""
    sha256: str
    """Of the lines, uncompressed."""
    bytes: int
    notes: list[str] = field(default_factory=list)
    """Signed notes of heads first to last, as the log has them."""
    format: int = 1


@dataclass(frozen=True, slots=True)
class Written:
    """A segment that was just closed."""

    path: Path
    header: Header
    size: int

    @property
    def ratio(self) -> float:
        return self.size / max(1, self.header.bytes)


# --- Write -------------------------------------------------------------------------------------


def archive(log: AnyPath, folder: Path, events: int = EVENTS, on_progress: Progress | None = None, *,
            whole: bool = False) -> list[Written]:
    """Write what no segment in `folder` holds yet, in segments of `events`, the last one as long as there is, or left
    for later if segments shall be `whole`.

    Reads only, so it may run beside a daemon. Every event is checked on the way, and so is the join with the
    segments that are there. Raises LockedOut when somebody else writes to `folder`.
    """
    report = verify(log, on_progress)
    if report.damage is not None:
        raise report.damage
    if report.log is None:
        return []
    with writing(folder):
        make_directory(folder)
    with _alone_in(folder):
        return _archive(log, report.log, report.seq, folder, events, whole)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with writing(folder):
        guard = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LockedOut(f"somebody else writes segments to {folder}; wait for them") from error
    finally:
        os.close(guard)


def last_in(folder: Path, log: str) -> int:
    """The last event of this log that a segment in `folder` holds; 0 when there is none."""
    done = _newest(folder, log)
    return done.last if done is not None else 0


def _archive(log: AnyPath, id: str, seq: int, folder: Path, events: int, whole: bool) -> list[Written]:
    with writing(folder):
        done = _newest(folder, id)
    after, prev = (done.last, done.hash) if done is not None else (0, ZERO)
    if after > seq:
        raise Misused(f"{folder} holds events of this log up to {after}, and {log} ends at {seq}: it is an "
                      "older copy. Nothing was written")
    with writing(folder):
        _clear(folder, id)
    out: list[Written] = []
    while after < seq and not (whole and after + events > seq):
        last = min(after + events, seq)
        out.append(_write(log, folder, id, after, last, prev))
        after, prev = last, out[-1].header.hash
    return out


def _newest(folder: Path, log: str) -> Header | None:
    headers = [header_of(path) for path in sorted(folder.glob(f"{log}-*{SUFFIX}"))]
    return max((each for each in headers if each is not None), key=lambda each: each.last, default=None)


def _clear(folder: Path, log: str) -> None:
    """A segment is closed by the file beside it; what has none was broken off, and is written again."""
    for path in folder.glob(f"{log}-*"):
        if path.name.endswith(".part") or (path.name.endswith(SUFFIX) and header_of(path) is None):
            path.unlink()


def _write(log: AnyPath, folder: Path, id: str, after: int, last: int, prev: str) -> Written:
    first = after + 1
    path = folder / f"{id}-{first:012}-{last:012}{SUFFIX}"
    part = path.with_name(path.name + ".part")
    lines, size, head = hashlib.sha256(), 0, prev
    with writing(path), part.open("wb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
            for seq, body, hash in chained(read_events(log, after, last), str(log), after, prev):
                line = body + b"\n"
                packed.write(line)
                lines.update(line)
                size += len(line)
                after, head = seq, hash.hex()
        _settle(file)
    if after != last:
        raise CannotOpen(f"{log} ends at event {after} while event {last} was there a moment ago")
    header = Header(id, first, last, prev, head, lines.hexdigest(), size,
                    [note for seq, note in notes_of(log) if first <= seq <= last])
    with writing(path):
        part.rename(path)
        beside = _beside(path)
        with beside.with_name(beside.name + ".part").open("wb") as file:
            file.write(json.dumps(asdict(header), indent=1).encode() + b"\n")
            _settle(file)
        beside.with_name(beside.name + ".part").rename(beside)
        flush_folder(folder)
    return Written(path, header, path.stat().st_size)


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def notes_of(log: AnyPath) -> list[tuple[int, str]]:
    """The signed notes in a log file."""
    with reading(true_name(log)) as db, translated(0):
        return [(seq, note.decode("utf-8", "replace"))
                for seq, note in db.execute("SELECT seq, note FROM checkpoint ORDER BY seq")]


# --- Read --------------------------------------------------------------------------------------


def is_segment(path: Path) -> bool:
    """A segment, or what `log export` writes, as opposed to a live log."""
    with translated(0), path.open("rb") as file:
        return file.read(2) in (_GZIP, b'{"')


def is_log(path: Path) -> bool:
    """What is no segment is taken for a log, whose reader says what is wrong with it."""
    return not is_segment(path)


_GZIP = b"\x1f\x8b"
LEFT_OUT = b"left out by bayesd log import, up to event"
"""The salt of a text that no event refers to: up to the event that it names there never were texts in this file."""


def header_of(path: Path) -> Header | None:
    """What stands beside a segment; None when nothing does."""
    try:
        header = Header(**orjson.loads(_beside(path).read_bytes()))
        if not all(isinstance(each, int) for each in (header.first, header.last)) or \
                not all(_size_of(note) for note in header.notes):
            raise ValueError("first and last are numbers, notes are signed notes")
        return header
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CannotOpen(f"{_beside(path)} cannot be read ({error}); move it away, the segment can be checked "
                         "without it") from error


def _size_of(note: str) -> int:
    """How many events a note is of."""
    return int(note.split("\n")[1])


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + ".json")


def chained(items: Iterable[Item], name: str, after: int, prev: str, look: Look | None = None) -> Iterator[Item]:
    """Events that follow event `after` with hash `prev`, each checked. Raises Damaged at the first that does not."""
    for seq, body, hash in items:
        try:
            envelope = orjson.loads(body)
            said = envelope["seq"], envelope["prev"]
            envelope["type"], envelope["actor"], envelope["data"], envelope["log"], envelope["epoch"]
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(after + 1, f"what {name} has in its place is no event") from error
        if (seq, seq) != (after + 1, said[0]):
            raise Damaged(after + 1, f"{name} has event {said[0]} in its place")
        if said[1] != prev:
            raise Damaged(seq, f"in {name} it does not follow the event before it: prev is another hash")
        if look is not None:
            look(envelope)
        yield seq, body, hash
        after, prev = seq, hash.hex()


def _items(path: Path, after: int) -> Iterator[Item]:
    """Events of a file behind `after`, as they stand there."""
    if is_log(path):
        yield from read_events(path, after)
        return
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        lines: Iterable[bytes] = io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file
        seq = 0
        try:
            for line in lines:
                body = line.rstrip(b"\n")
                said = orjson.loads(body)["seq"]
                if type(said) is not int:
                    raise ValueError(f"{said!r} is not the number of an event")
                seq = said
                if seq > after:
                    yield seq, body, leaf_hash(body)
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(max(seq, after) + 1, f"{path} cannot be read there ({error})") from error


@dataclass(slots=True)
class Joined:
    """What a row of files proved, as far as it was read."""

    first: int = 0
    seq: int = 0
    hash: str = ZERO
    log: str | None = None
    epoch: int = 0
    notes: list[tuple[int, str]] = field(default_factory=list)


def join(paths: Sequence[Path], joined: Joined, look: Look | None = None) -> Iterator[Item]:
    """The events of segments, in any order, and of a live log behind them: one chain without a gap.

    A live log may hold what segments hold, too; it must then be the same. `joined` says how far the proof came.
    """
    _must_be_files(paths)
    for path in _in_order(paths):
        header = None if is_log(path) else header_of(path)
        if not joined.seq:
            first = next(_items(path, 0), None)
            if first is None:
                continue
            joined.first, joined.seq = first[0], first[0] - 1
            joined.hash = orjson.loads(first[1]).get("prev") if joined.seq else ZERO
        if header is not None and (header.first, header.prev) != (joined.seq + 1, joined.hash):
            raise Damaged(joined.seq + 1, _gap(path, header, joined))
        if is_log(path):
            _same_history(path, joined)
        lines, begin, body = hashlib.sha256(), joined.seq, b""
        for seq, body, hash in chained(_items(path, joined.seq), str(path), joined.seq, joined.hash, look):
            if joined.seq == begin:
                joined.log = _same_log(path, joined, body)
            lines.update(body + b"\n")
            joined.seq, joined.hash = seq, hash.hex()
            yield seq, body, hash
        if body:
            joined.epoch = orjson.loads(body)["epoch"]
        if header is not None and (header.last, header.hash, header.sha256) != (
                joined.seq, joined.hash, lines.hexdigest()):
            raise Damaged(min(joined.seq, header.last) + 1, f"{path} ends at event {joined.seq} and not as "
                                                            f"{_beside(path).name} says")
        joined.notes += notes_of(path) if is_log(path) else _noted(path, header)


def _noted(path: Path, header: Header | None) -> list[tuple[int, str]]:
    """The notes beside a segment, by the number of events of which they speak."""
    try:
        return [(_size_of(note), note) for note in (header.notes if header is not None else [])]
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise CannotOpen(f"{_beside(path)} has a note that is none ({error}); move it away, the segment can be checked "
                         "without it") from error


def _must_be_files(paths: Iterable[Path]) -> None:
    """What is no log and no segment, to look at, was named by mistake or has lost its beginning."""
    for path in paths:
        with translated(0):
            if path.is_dir():
                raise Misused(f"{path} is a directory: name the segments in it, {path}/*{SUFFIX}")
            if path.stat().st_size == 0:
                raise Misused(f"{path} is empty: it is no segment and no log. Leave it out, or fetch another copy")


def _in_order(paths: Sequence[Path]) -> list[Path]:
    """By first event; live logs last."""
    def key(path: Path) -> tuple[bool, int]:
        if is_log(path):
            return True, 0
        first = next(_items(path, 0), None)
        return False, first[0] if first is not None else 0
    return sorted(paths, key=key)


def _gap(path: Path, header: Header, joined: Joined) -> str:
    if header.first > joined.seq + 1:
        return f"no file given holds events {joined.seq + 1} to {header.first - 1}; name the segment that does"
    if header.first <= joined.seq:
        return f"{path} begins at event {header.first}, which another file holds already; give each event once"
    return f"{path} does not follow the event before it: it was written of another log, or of another copy"


def _same_log(path: Path, joined: Joined, body: bytes) -> str:
    log: str = orjson.loads(body)["log"]
    if joined.log not in (None, log):
        raise Damaged(joined.seq, f"{path} is of log {log}, the files before it of {joined.log}")
    return log


def _same_history(path: Path, joined: Joined) -> None:
    """A live log that holds the last event of the segments must hold that very event."""
    if joined.seq:
        found = next(read_events(path, joined.seq - 1, joined.seq), None)
        if found is not None and found[2].hex() != joined.hash:
            raise Damaged(joined.seq, f"{path} has another event there than the segments: one of the two was rewritten")


# --- Put together ------------------------------------------------------------------------------


def assemble(paths: Sequence[Path], out: Path, look: Look | None = None,
             on_progress: Progress | None = None) -> Joined:
    """A whole log out of segments from event 1 on: same events, same hashes, same head; and the free text of
    a live log among them."""
    out = true_name(out)
    if out.exists():
        raise Misused(f"{out} is there already; name another file, nothing is overwritten")
    part = Path(f"{out}.import")
    joined = Joined()
    _must_be_files(paths)
    with translated(0), writing(out):
        make_directory(out.parent)
        part.unlink(missing_ok=True)
        create(part)
    try:
        with closing(sqlite3.connect(f"{part.as_uri()}?mode=rw", uri=True)) as db:
            db.execute("PRAGMA synchronous = OFF")       # the file has its name only once it is whole and on disk
            for rows in _rows(join(paths, joined, look)):
                if joined.first != 1:
                    break
                with translated(rows[0].seq - 1):
                    db.executemany("""INSERT INTO event (seq, body, hash, type, study, trial, actor, cmd)
                                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)""", [row[:8] for row in rows])
                if on_progress is not None:
                    on_progress(rows[-1].seq)
            if joined.first != 1:
                raise Misused(f"the files begin at event {joined.first}: a log needs all events from 1 on. Name the "
                              f"segments of events 1 to {joined.first - 1}, too" if joined.first else
                              "the files hold no event: name segments, or what log export wrote")
            db.execute("UPDATE writer SET epoch = ? WHERE one = 1", (joined.epoch,))
            db.executemany("INSERT OR REPLACE INTO checkpoint (seq, note) VALUES (?, ?)",
                           [(seq, note.encode()) for seq, note in joined.notes])
            for path in filter(is_log, paths):
                with reading(true_name(path)) as live:
                    db.executemany("INSERT OR IGNORE INTO text (ref, salt, text) VALUES (?, ?, ?)", live.execute(
                        "SELECT ref, salt, text FROM text").fetchall() if has_texts(live) else ())
            if not any(map(is_log, paths)):
                said = str(joined.seq)
                db.execute("INSERT INTO text (ref, salt, text) VALUES (?, ?, ?)",
                           (reference(LEFT_OUT, said), LEFT_OUT, said))
            db.commit()
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with writing(out):
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.rename(part, out)
            flush_folder(out.parent)
    finally:
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{part}{end}").unlink()
    return joined


def _rows(items: Iterable[Item]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    for seq, body, hash in items:
        said = orjson.loads(body).get
        rows.append(Row(seq, body, hash, said("type"), said("study"), said("trial"), said("actor"), said("cmd")))
        if len(rows) == CHUNK:
            yield rows
            rows = []
    if rows:
        yield rows
