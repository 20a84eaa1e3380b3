"""A log's file: made, locked, looked at, and proved; and what can go wrong with it.

`verify` says up to which event a file is the one that was written, offline and without changing a
byte. Nothing here ever truncates or repairs. What is appended, and when it is durable, is `log.py`.
"""

import errno
import fcntl
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from bayesd.durable import put_in_place
from bayesd.evidence import Evidence, Head, Verdict
from bayesd.study.canonical import ZERO, leaf_hash
from bayesd.study.merkle import Tree
from bayesd.study.row import Fields
from bayesd.study.texts import reference
from bayesd_schemas.upcast import VERSIONS

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

TEXTS = """
-- Free text that bodies refer to by SHA-256 of salt and text. Rows may be deleted: that is what it is for.
CREATE TABLE IF NOT EXISTS text (
    ref    TEXT PRIMARY KEY,
    salt   BLOB NOT NULL,
    text   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""

READING = (
    "PRAGMA trusted_schema = OFF",      # a schema that was tampered with calls no functions
    "PRAGMA cell_size_check = ON",      # notice a broken page before its numbers are used
    "PRAGMA mmap_size = 0",             # an I/O error is then an error and not a SIGBUS
)
RESTORING = ".restore"          # beside a log: the copy that is being put in its place
READ_CHUNK = 1024               # events a read hands over at once
ROOM_BYTES = 2**20              # free space without which a log that found none is not written again
BUSY_S = 5.0                    # how long to wait for a stranger who holds SQLite's write lock
AnyPath: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int], None]
Look: TypeAlias = Callable[[dict[str, Any]], object]


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
    """The log does not verify from event `seq` on. Everything before `seq` does.

    What was changed lies in the events `first` to `last`: where a chain does not fit, either side may be the wrong one,
    and a note speaks of all events before it. `narrowed` is where that begins if notes in the file are believed, too.
    """

    exit_code = 65

    def __init__(self, seq: int, why: str, first: int | None = None, last: int | None = None,
                 narrowed: int | None = None, remedy: str | None = None) -> None:
        """`remedy` says what to do where a backup is not the first thing to think of."""
        self.seq, self.why, self.remedy = seq, why, remedy
        self.first, self.last = seq if first is None else first, seq if last is None else last
        self.narrowed = self.first if narrowed is None else narrowed
        if remedy is not None:
            super().__init__(f"the log is damaged at event {seq}: {why}. Nothing was changed. {remedy}")
            return
        if self.last == seq:
            super().__init__(
                f"the log is damaged at event {seq}: {why}. Events before it verify, nothing was changed. "
                f"Keep a copy of the file, then restore a backup; reading up to event {seq - 1} still works.")
            return
        hint = f". By the notes in the file it is between events {self.narrowed} and {self.last}, " \
            "unless somebody else has the key" if self.narrowed > self.first else ""
        super().__init__(
            f"the log is damaged between events {self.first} and {self.last}: {why}{hint}. Nothing was changed. Keep a "
            "copy of the file, then restore a backup: bayesd log verify BACKUP --head NOTE says whether it has them.")

    def __reduce__(self) -> tuple[type["Damaged"], tuple[int, str, int, int, int, str | None]]:
        return Damaged, (self.seq, self.why, self.first, self.last, self.narrowed, self.remedy)


class NoLog(Damaged):
    """Nothing in the file says that it ever was a log. If it was one, its very beginning is gone."""

    def __init__(self, path: AnyPath) -> None:
        super().__init__(1, "the file is not a SQLite database")
        self.path = path

    def __str__(self) -> str:
        return (f"{self.path} is not a log of bayesd: the file is not a SQLite database. If it was one, it is "
                "damaged at event 1: keep a copy of it and restore a backup. Otherwise name the right file")

    def __reduce__(self) -> tuple[type["NoLog"], tuple[AnyPath]]:     # type: ignore[override]
        return NoLog, (self.path,)


class LogBug(LogError, AssertionError):
    """We tried to write what may never be in a log. Nothing was written; report a bug."""

    exit_code = 70


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `seq` and `hash` are the last event that verifies (0 and zeros: none)."""

    events: int
    seq: int
    hash: bytes
    log: str | None
    epoch: int | None
    damage: Damaged | None
    is_whole: bool
    """The chain holds to the end of the file, whatever else is wrong."""
    tree: Tree
    """The Merkle tree over the events that verify."""
    verdict: Verdict
    """What the signed notes say."""


# --- Trust: the way to open a file, and the proof of a chain -----------------------------------

def verify(path: AnyPath, on_progress: Progress | None = None, look: Look | None = None, *, alone: bool = False,
           keys: Sequence[str] = (), heads: Sequence[Head] = (),
           on_events: Callable[[list[Fields]], None] | None = None) -> Report:
    """Check every byte of every event and every signed note, offline and read-only.

    Raises only CannotOpen, I/O errors, BadKey, BadNote for a head that is no note or not signed by the `keys`, and
    what `look` raises, which sees the envelopes of events of types that it does not know. Without keys the notes are
    checked with those that the log itself names, which a forger can name as well. `heads` are notes from elsewhere
    that the log must go on from. `on_events` is given what verifies, in order, while it is read.

    Works on a file and a directory that cannot be written, and beside a running daemon. Who is `alone` with the
    file, under its lock, leaves no trace beside it either.
    """
    path = true_name(path)
    seq, last_hash, last_body, log, epoch = 0, bytes(32), b"", None, None
    damage: Damaged | None = None
    evidence, is_whole = Evidence((), heads, keys), False
    try:
        _look_at_header(path)
        with reading(path, alone=alone) as db:
            # Before the events, or a daemon that is at work could add a note of an event that is not read.
            evidence = Evidence(_notes(db), heads, keys)
            for chunk in _verified(db, 0, upper(None), look):
                if seq == 0:
                    name = orjson.loads(chunk[0][1]).get("log")
                    log = name if isinstance(name, str) else None
                seq, last_body, last_hash = chunk[-1][:3]
                evidence.take(chunk)
                if on_events is not None:
                    on_events(chunk)
                if on_progress is not None:
                    on_progress(seq)
            is_whole = True
            with translated(seq):
                epoch = _look_round(db, seq, last_body)
    except Damaged as found:
        damage = found
    verdict = evidence.verdict(log, is_whole)
    finding = verdict.finding
    if finding is not None and (damage is None or is_whole or finding.last < damage.seq):
        damage = Damaged(finding.first, finding.why, finding.first, finding.last, finding.narrowed)
    return Report(seq, seq, last_hash, log, epoch, damage, is_whole, evidence.tree, verdict)


def true_name(path: AnyPath) -> Path:
    """`path` without links, so that two names of one file share its lock and its WAL."""
    return Path(os.path.realpath(path))


def read_events(path: AnyPath, after: int = 0, until: int | None = None) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (seq, body, hash) with after < seq <= until, offline; each is checked before it is yielded.

    Raises Damaged after the last event that verifies.
    """
    path = true_name(path)
    _look_at_header(path)
    with reading(path) as db:
        for chunk in _verified(db, after, upper(until)):
            for fields in chunk:
                yield fields[0], fields[1], fields[2]


def _notes(db: sqlite3.Connection) -> list[tuple[int, bytes]]:
    try:
        return db.execute("SELECT seq, note FROM checkpoint").fetchall()
    except _SQLITE_ERRORS as error:
        _damage(error, 0)       # raises what is no damage; and damage beside the events is found after them
        return []


def _verified(db: sqlite3.Connection, after: int, until: int, look: Look | None = None) -> Iterator[list[Fields]]:
    """Chunks of verified events; then Damaged, if there is damage.

    What is good in a chunk is handed over before the damage is raised, so that a reader sees
    everything that can be trusted.
    """
    seq, prev, known = after, ZERO, set[str]()
    if after:
        with translated(after - 1):
            found = db.execute("SELECT hash FROM event WHERE seq = ?", (after,)).fetchone()
        if found is None:
            return          # nothing follows an event that is not there yet
        prev = found[0].hex()
    while seq < until:
        rows: list[Fields] = []
        damage: Damaged | None = None
        try:
            with closing(db.execute("""
                SELECT seq, body, hash, type, study, trial, actor, cmd FROM event
                WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?
                """, (seq if seq else -2**63, until, READ_CHUNK))) as found_here:   # none before event 1 either
                rows.extend(found_here)     # keeps what came before an error
        except _SQLITE_ERRORS as error:
            damage = _damage(error, seq + len(rows))
        good, why = _chained(rows, seq, prev, look, known)
        seq += good
        if why is not None:
            damage = Damaged(seq + 1, why, first=seq if seq and why in _EITHER else None)
        if good:
            prev = rows[good - 1][2].hex()
            yield rows[:good]
        if damage is not None:
            raise damage
        if good < READ_CHUNK:
            return


def _chained(rows: list[Fields], after: int, prev: str, look: Look | None,
             known: set[str]) -> tuple[int, str | None]:
    """How many of these rows verify behind event `after` with the hash `prev`, and why the next one does not.

    A million events go through this loop, so it parses no body. Canonical JSON has its keys in order: the body of an
    event begins with actor and cmd and ends with what is flat, from "prev" to "v". Those bytes are put together from
    the row and compared. Nothing nested can stand in for them, since the last bracket is that of the object itself.
    What does not look so is left to `fault`, which parses. One thing is not seen here: whether the middle is JSON at
    all; whoever folds the events sees it. Parsed are only the first event of each type, and all of those that `look`
    does not know or that are about the notes: the types in `known` are done.
    """
    begins: dict[str, bytes] = {}
    versions = VERSIONS.get     # events in an older shape are parsed
    for good, row in enumerate(rows):
        seq, body, hash_, type_, study, trial, actor, cmd = row
        try:
            mine = _leaf()
            mine.update(body)
            at = body.rfind(b'"time":"') + 8
            time, tv = body[at:at + _TIME_BYTES].decode("ascii"), versions(type_, 1)
            if study is None and trial is None:
                end = f',"prev":"{prev}","seq":{seq},"time":"{time}","tv":{tv},"type":"{type_}","v":1}}'
            elif trial is None:
                end = (f',"prev":"{prev}","seq":{seq},"study":"{study}","time":"{time}","tv":{tv},"type":"{type_}",'
                       '"v":1}')
            else:
                end = (f',"prev":"{prev}","seq":{seq},"study":"{study}","time":"{time}","trial":{trial:d},"tv":{tv},'
                       f'"type":"{type_}","v":1}}')
            if cmd is not None:
                begin = f'{{"actor":"{actor}","cmd":"{cmd}","crit":'.encode()
            elif (begin := begins.get(actor, b"")) == b"":
                begin = begins[actor] = f'{{"actor":"{actor}","crit":'.encode()
            fits = (seq == after + good + 1 and mine.digest() == hash_ and body.endswith(end.encode())
                    and body.startswith(begin)
                    # A copy must not reach over the end of its string, and what is escaped has two spellings.
                    and b"\\" not in body and '"' not in time and '"' not in type_ and '"' not in actor
                    and (trial is None if study is None else '"' not in study) and (cmd is None or '"' not in cmd))
        except (TypeError, AttributeError, ValueError):     # bytes for text, text that is none: the table was made anew
            fits = False
        if not fits:
            why = fault(row, after + good + 1, prev)
            if why is not None:
                return good, why
        if not fits or type_ not in known:
            try:
                envelope = orjson.loads(body)
                if (look is None or not look(envelope)) and type_ not in _HEARD:
                    known.add(type_)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                return good, f"its body is not the JSON of an event ({type(error).__name__}: {error})"
        prev = hash_.hex()
    return len(rows), None


_leaf = sha256(b"\0").copy         # a copied state is cheaper than a new one
_TIME_BYTES = len("2026-01-01T00:00:00.000000Z")
_UNCHAINED = "its prev is not the hash of the event before it, so one of the two was changed"
_TWICE = "its body says that it is the event before it, which is there, too: one of the two was put in"
_EITHER = (_UNCHAINED, _TWICE)
_HEARD = frozenset(("daemon.started", "log.repaired"))      # what `Evidence` parses: few, so each is parsed here first


def fault(fields: Fields, expected: int, prev: str) -> str | None:
    """Why this row cannot be event `expected` after the event with hash `prev`; None when it can."""
    seq, body, hash_, type_, study, trial, actor, cmd = fields
    if seq != expected:
        return "it is missing" if seq > expected else f"event {seq} stands in its place"
    if type(body) is not bytes:
        return "its body is not bytes"
    if leaf_hash(body) != hash_:
        return "its hash is not that of its body"
    try:
        event = orjson.loads(body)
        told = event.get
    except (orjson.JSONDecodeError, AttributeError):
        return "its body is not a JSON object"
    if told("seq") != seq or type(told("seq")) is not int:
        return _TWICE if told("seq") == seq - 1 > 0 else f"its body says that it is event {told('seq')!r}"
    if told("prev") != prev:
        return _UNCHAINED
    if told("type") != type_ or told("study") != study or told("trial") != trial \
            or type(told("trial")) is not type(trial) or told("actor") != actor or told("cmd") != cmd \
            or type_ is None or actor is None:
        return "type, study, trial, actor or cmd beside its body are not those in its body"
    return None


def refuse_bad_rows(rows: list[Fields], head: tuple[int, bytes]) -> None:
    """The same proof before a row is written (about 2 µs): a broken chain would be for ever."""
    seq, prev = head[0], head[1].hex()
    for fields in rows:
        why = fault(fields, seq + 1, prev)
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
    _refuse_other_schema(db, seq)
    for ref, salt, text in db.execute("SELECT ref, salt, text FROM text") if has_texts(db) else ():
        if reference(salt, text) != ref:
            raise Damaged(seq + 1, f"all events verify but text {ref} is not the one that was told")
    row = db.execute("SELECT epoch FROM writer WHERE one = 1").fetchone()
    epoch = row[0] if row is not None else None
    try:
        written_in = orjson.loads(last_body).get("epoch") if last_body else None
    except (ValueError, AttributeError) as error:
        raise Damaged(seq, "its body is not a JSON object") from error
    if type(epoch) is not int or (type(written_in) is int and epoch < written_in):
        raise Damaged(seq + 1, f"all events verify but the writer epoch ({epoch}) is older than the last of them")
    return epoch


def _refuse_other_schema(db: sqlite3.Connection, seq: int) -> None:
    """The tables and triggers are ours and there are no others: a trigger more could change what is written, and a
    view in the place of a table what is read. What SQLite makes for itself (statistics) is none of our business."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        must = _schema(fresh)
        fresh.executescript(TEXTS)
        may = _schema(fresh)
    found = _schema(db)
    for kind, name, _ in sorted(found - may):
        if kind in ("table", "index") and name.startswith("sqlite_"):
            continue
        if (kind, name) in {(each[0], each[1]) for each in may}:
            break       # ours, but changed: no DROP mends that
        quoted = '"' + name.replace('"', '""') + '"'
        where = name.replace("'", "''")
        raise Damaged(seq + 1, f"all events verify but there is a {kind} {name!r} beside them that bayesd did not make",
                      remedy="Look at it: sqlite3 FILE \"SELECT sql FROM sqlite_schema WHERE name = "   # noqa: S608
                             f"'{where}'\". If "
                             "it is yours, stop the daemon and keep a copy of the file, then drop it: sqlite3 FILE "
                             f"'DROP {kind.upper()} {quoted}'. If it is not, somebody else writes to this file: "
                             "compare it with a backup first")
    if not must <= found or not found <= may | {each for each in found if each[1].startswith("sqlite_")}:
        raise Damaged(seq + 1, "all events verify but tables or triggers around them were changed")


def has_texts(db: sqlite3.Connection) -> bool:
    """Logs that only earlier releases wrote have no table of texts."""
    return db.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'text'").fetchone() is not None


def read_texts(path: AnyPath) -> dict[str, str]:
    """The free text in a log file by its reference; what is redacted is not there."""
    path = true_name(path)
    _look_at_header(path)
    with reading(path) as db, translated(0):
        return dict(db.execute("SELECT ref, text FROM text")) if has_texts(db) else {}


def _schema(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    # SQLite keeps comments and white space of the text that made a table, and those may change
    # between releases of ours.
    return {(kind, name, " ".join(re.sub(r"--[^\n]*", "", str(sql)).split()))
            for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_schema")}


def prepare(path: Path, on_progress: Progress | None, look: Look | None = None) -> Report:
    """Under the lock: create the file if there is none, and let nobody write to one that is damaged, or of which
    `look` says so. Until this returns an existing file is as it was, to the byte."""
    with translated(0):
        if not path.exists() or path.stat().st_size == 0:
            create(path)
    report = verify(path, on_progress, look, alone=True)
    if report.damage is not None:
        # Unless a daemon whose lock was stolen is at work: then we were not alone, and what was read that way is no
        # picture of one moment.
        report = verify(path, on_progress, look)
    if report.damage is not None:
        raise report.damage
    return report


def create(path: Path) -> None:
    """Make an empty log beside its place, then put it there whole: no crash leaves half a log."""
    stale = Path(f"{path}-wal")
    if stale.exists() and stale.stat().st_size > 0:
        # SQLite would take the pages of that WAL for pages of the new file.
        raise CannotOpen(f"{path} is missing or empty, but {stale.name} beside it holds events of a log: "
                         "put the log back, or move both away")
    if Path(f"{path}{RESTORING}").exists():
        raise CannotOpen(f"{path} is missing or empty, and {path.name}{RESTORING} beside it is a restore that was "
                         "broken off: do it again (bayesd log restore), or move that file away to begin a new log")
    new = Path(f"{path}.new")
    for leftover in (new, Path(f"{new}-journal"), Path(f"{new}-wal"), Path(f"{new}-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(f"{new.as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.executescript("BEGIN;" + SCHEMA + TEXTS + "COMMIT;")
        db.execute("PRAGMA journal_mode = WAL")
    put_in_place(new, path)


WRITTEN_HERE: list[tuple[int, int]] = []
"""The files, as (device, inode), that this process has open to write. Any other handle of this process on one of them
would take SQLite's locks along when it is closed, since locks of POSIX belong to the process; and without them the next
program that leaves the file takes its WAL away under the writer, with every event that follows."""


def _look_at_header(path: Path) -> None:
    """Decide from the first 100 bytes whether this is a log we may open, before SQLite touches it."""
    with suppress(OSError):
        status = path.stat()
        if (status.st_dev, status.st_ino) in WRITTEN_HERE:
            return              # it was looked at when it was opened
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise CannotOpen(f"cannot read {path}: {error.strerror}") from error
    if not header:
        raise CannotOpen(f"{path} is empty: no daemon has written to it yet")
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise NoLog(path)
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
def reading(path: Path, *, alone: bool = False) -> Iterator[sqlite3.Connection]:
    """A read-only connection, also where the directory cannot be written."""
    wal = Path(f"{path}-wal")
    # SQLite makes an empty WAL and an index of it even to read. Who is alone and has no WAL needs neither.
    still = "&immutable=1" if alone and not (wal.exists() and wal.stat().st_size > 0) else ""
    with translated(0):
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro{still}", uri=True, timeout=BUSY_S, isolation_level=None)
    copy: tempfile.TemporaryDirectory[str] | None = None
    try:
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except _SQLITE_ERRORS as error:
            if sqlite_code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise _damage(error, 0) from error
            # To read a WAL needs a file beside it. Without a WAL the file can be read as one that
            # never changes; with one, a copy of both is read, since the WAL may hold events.
            db.close()
            with translated(0):
                if wal.exists() and wal.stat().st_size > 0:
                    copy = tempfile.TemporaryDirectory(prefix="bayesd-verify-")
                    shutil.copyfile(path, Path(copy.name, "log.db"))
                    shutil.copyfile(wal, Path(copy.name, "log.db-wal"))
                    uri = f"{Path(copy.name, 'log.db').as_uri()}?mode=ro"
                else:
                    uri = f"{path.as_uri()}?mode=ro&immutable=1"
                db = sqlite3.connect(uri, uri=True, isolation_level=None)
        with translated(0):
            for pragma in READING:
                db.execute(pragma)
        yield db
    finally:
        db.close()
        if copy is not None:
            copy.cleanup()


def make_directory(directory: Path) -> None:
    # os.makedirs gives the mode to the last directory only.
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def refuse_no_room(path: Path) -> None:
    """Raise DiskFull unless there is space for `ROOM_BYTES` beside the log: tried with a file, since a quota or a limit
    shows in no figure."""
    scratch = Path(f"{path}.room")
    try:
        try:
            with scratch.open("wb", buffering=0) as file:
                fits = sum(file.write(bytes(2**16)) for _ in range(ROOM_BYTES // 2**16)) == ROOM_BYTES
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise LogError(f"cannot see whether there is space for {path}: {error.strerror}") from error
        fits = False
    if not fits:
        raise DiskFull(f"no space left for {path}; nothing was written. Free {ROOM_BYTES // 2**20} MiB or more, the "
                       "daemon goes on by itself")


NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs",
                     "gpfs", "ncpfs", "coda", "beegfs", "pvfs2"})


def refuse_network(directory: Path, allowed: bool) -> None:
    if allowed or not sys.platform.startswith("linux"):
        return
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return      # without /proc there is no telling; the epoch still keeps writers apart
    kind = filesystem(directory, mounts.splitlines())
    if kind in NETWORK or kind == "fuse" or kind.startswith("fuse."):
        raise CannotOpen(f"{directory} is on {kind}: SQLite's locks and shared memory do not hold on a network file "
                         "system. Put the log on a local disk, or force it if you know that this mount is one")


def filesystem(directory: Path, mounts: Iterable[str]) -> str:
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


def take_lock(path: Path) -> int:
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


def sqlite_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF     # the low byte is the primary code


def says(error: Exception) -> str:
    return f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"


def _damage(error: Exception, seq: int) -> Damaged:
    """Damage after the good event `seq`; raises instead when the error speaks of something else.

    What SQLite says of a file with a few wrong bytes is of many kinds (malformed, no such table,
    text that is not UTF-8, a blob too big), so everything counts that is not known to be harmless.
    """
    code = sqlite_code(error)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        raise CannotOpen(f"cannot open the log ({says(error)}); check the path and who may read it") from error
    if code == sqlite3.SQLITE_FULL or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:
        raise DiskFull("no space left to open the log; nothing was written. Free some space") from error
    if code in _NOT_DAMAGE:
        raise LogError(f"cannot read the log ({says(error)}). Look at the disk and try again") from error
    return Damaged(seq + 1, says(error))


@contextmanager
def translated(seq: int) -> Iterator[None]:
    """Errors of SQLite and of the system become ours; `seq` is the last event known to be good."""
    try:
        yield
    except _SQLITE_ERRORS as error:
        raise _damage(error, seq) from error
    except OSError as error:
        kind = DiskFull if error.errno == errno.ENOSPC else CannotOpen
        raise kind(f"cannot open the log: {error.strerror} ({error.filename})") from error


def upper(until: int | None) -> int:
    return 2**63 - 1 if until is None else until
