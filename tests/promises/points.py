"""Named points in the life of a daemon, and how to make a process die at one of them.

A point is reached by wrapping what is called there, in a child of the zygote: the product has no switch and pays
nothing. Death is SIGKILL, at the n-th passage: no handler, no flush, no `finally`.
"""

import functools
import importlib
import inspect
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """A place to die."""

    name: str
    scene: str
    """What must go on for it to be passed: failpoints.py plays it."""
    place: str
    """`module:function`, or `sql:` and how a statement of the writer begins."""
    after: bool = False
    fits: Callable[..., bool] = lambda *arguments, **named: True
    """Which calls count."""
    passages_max: int = 1
    """The passage is drawn from 1 to this."""


def _goes_to(*kinds: str) -> Callable[..., bool]:
    return lambda bus, topic, *rest, **named: any(topic.endswith(f"/{kind}") for kind in kinds)


def _of_type(type: str) -> Callable[..., bool]:
    return lambda log, rows: any(row.type == type for row in rows)


def _named(ending: str) -> Callable[..., bool]:
    return lambda new, path: str(path).endswith(ending)


def _renames(ending: str) -> Callable[..., bool]:
    return lambda path, target: str(target).endswith(ending)


def _folder(ending: str) -> Callable[..., bool]:
    return lambda folder: folder.name.endswith(ending)


LOG, SERVICE, OUTSIDE = "bayesd.log:SqliteLog", "bayesd.service:Service", "bayesd.outside:HeadFiles"

POINTS: tuple[Point, ...] = (
    # An archive.
    Point("before a segment has its name", "archive", "pathlib:Path.rename", fits=_renames(".jsonl.gz"),
          passages_max=2),
    Point("a segment before the file beside it", "archive", "pathlib:Path.rename", after=True,
          fits=_renames(".jsonl.gz"), passages_max=2),
    Point("before the file beside a segment has its name", "archive", "pathlib:Path.rename", fits=_renames(".json"),
          passages_max=2),
    Point("after the file beside a segment has its name", "archive", "pathlib:Path.rename", after=True,
          fits=_renames(".json"), passages_max=2),
    # An old copy that was put back: a start that is refused, and one that accepts.
    Point("before the refused head is remembered", "refused", f"{OUTSIDE}.remember"),
    Point("the refused head before it has its name", "refused", "bayesd.outside:put_in_place"),
    Point("after the refused head is remembered", "refused", f"{OUTSIDE}.remember", after=True),
    Point("before a repair is recorded", "accept", f"{LOG}.append", fits=_of_type("log.repaired")),
    Point("after a repair is recorded", "accept", f"{LOG}.append", after=True, fits=_of_type("log.repaired")),
    Point("before what was refused is forgotten", "accept", f"{OUTSIDE}.forget"),
    Point("after what was refused is forgotten", "accept", f"{OUTSIDE}.forget", after=True),
    Point("what was given up before it is in the heads file", "accept", f"{OUTSIDE}.keep"),
    Point("what was given up in the heads file, the next head not", "accept", f"{OUTSIDE}.keep", after=True),
    # A log that is not there yet.
    Point("before the lock", "new", "bayesd.log:take_lock"),
    Point("after the lock", "new", "bayesd.log:take_lock", after=True),
    Point("before the tables of a new log", "new", "bayesd.logfile:closing"),
    Point("a new log before it has its name", "new", "bayesd.logfile:put_in_place"),
    Point("a new log's name before its folder is flushed", "new", "bayesd.durable:flush_folder"),
    Point("a new log in its place", "new", "bayesd.logfile:put_in_place", after=True),
    Point("before the epoch of a new log", "new", "bayesd.log:_raise_epoch"),
    Point("a new log with an epoch and no event", "new", "bayesd.log:_raise_epoch", after=True),
    Point("before the key is saved", "new", "bayesd.notes:Signer.save"),
    Point("after the key is saved", "new", "bayesd.notes:Signer.save", after=True),
    Point("before the first event", "new", f"{LOG}.append", fits=_of_type("log.opened")),
    Point("after the first event", "new", f"{LOG}.append", after=True, fits=_of_type("log.opened")),
    # A start on a log that has events.
    Point("after the verification", "start", "bayesd.log:prepare", after=True),
    Point("before the epoch", "start", "sql:UPDATE writer"),
    Point("the epoch before its commit", "start", "sql:COMMIT"),
    Point("after the epoch", "start", "bayesd.log:_raise_epoch", after=True),
    Point("before the fold", "start", "bayesd.replay:fold"),
    Point("after the fold", "start", "bayesd.replay:fold", after=True),
    Point("before daemon.started", "start", f"{LOG}.append", fits=_of_type("daemon.started")),
    Point("after daemon.started", "start", f"{LOG}.append", after=True, fits=_of_type("daemon.started")),
    Point("before the daemon is announced", "start", f"{SERVICE}._announce"),
    Point("after the daemon is announced", "start", f"{SERVICE}._announce", after=True),
    # Commits, and what goes out behind them.
    Point("before BEGIN", "serve", "sql:BEGIN", passages_max=40),
    Point("before an INSERT of an event", "serve", "sql:INSERT INTO event", passages_max=100),
    Point("before the INSERT of a text", "serve", "sql:INSERT OR IGNORE INTO text"),
    Point("before COMMIT", "serve", "sql:COMMIT", passages_max=40),
    Point("after COMMIT", "serve", "aiosqlite:Connection.commit", after=True, passages_max=40),
    Point("after an append", "serve", f"{LOG}.append", after=True, passages_max=40),
    Point("before a receipt or grant", "serve", "bayesd.bus:MqttBus.publish", fits=_goes_to("receipt", "grant"),
          passages_max=60),
    Point("after a receipt or grant", "serve", "bayesd.bus:MqttBus.publish", after=True,
          fits=_goes_to("receipt", "grant"), passages_max=60),
    Point("before a study's state is shown", "serve", "bayesd.bus:MqttBus.publish",
          fits=lambda bus, topic, *rest, **named: "/study/" in topic),
    # Heads.
    Point("before a head is signed", "serve", "bayesd.heads:Heads.sign", passages_max=5),
    Point("a head before it is saved", "serve", "sql:INSERT OR REPLACE INTO checkpoint", passages_max=5),
    Point("a head before it is published", "serve", f"{SERVICE}._publish_head", passages_max=5),
    Point("a head before it is in the heads file", "serve", f"{OUTSIDE}.keep", passages_max=5),
    Point("half of a head in the heads file", "serve", "bayesd.outside:os.write", passages_max=5),
    Point("after a head is in the heads file", "serve", f"{OUTSIDE}.keep", after=True, passages_max=5),
    # The WAL.
    Point("before a checkpoint of an idle moment", "serve", "sql:PRAGMA wal_checkpoint(PASSIVE)"),
    Point("before the WAL is cut", "serve", "sql:PRAGMA wal_checkpoint(TRUNCATE)", passages_max=2),
    Point("after a checkpoint", "serve", f"{LOG}.checkpoint", after=True, passages_max=2),
    # The stop.
    Point("at the stop", "stop", f"{SERVICE}._drain"),
    Point("before the snapshot is made", "stop", f"{SERVICE}._snapshot"),
    Point("before daemon.stopped", "stop", f"{LOG}.append", fits=_of_type("daemon.stopped")),
    Point("after daemon.stopped", "stop", f"{LOG}.append", after=True, fits=_of_type("daemon.stopped")),
    Point("before the last head", "stop", f"{SERVICE}._sign_head", fits=lambda service: service._stopped),
    Point("before the bus says goodbye", "stop", "bayesd.bus:MqttBus.close"),
    Point("before the INSERT of the snapshot", "stop", "sql:INSERT OR REPLACE INTO snapshot"),
    Point("before older snapshots go", "stop", "sql:DELETE FROM snapshot"),
    Point("after the snapshot", "stop", f"{LOG}.save_snapshot", after=True),
    Point("before the log is closed", "stop", f"{LOG}.close"),
    Point("after the log is closed", "stop", f"{LOG}.close", after=True),
)


def plant(name: str, passage: int) -> None:
    """Make this process die at the `passage`-th time that it passes the point."""
    point = next(point for point in POINTS if point.name == name)
    module, _, place = point.place.partition(":")
    if module == "sql":
        _plant_in_sql(place, passage)
        return
    *path, attribute = place.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        if part == "os":           # that module's view of it alone
            owner.os = _View(owner.os)
        owner = getattr(owner, part)
    if name.startswith("half of"):
        setattr(owner, attribute, _half(getattr(owner, attribute), passage))
    else:
        setattr(owner, attribute, _deadly(getattr(owner, attribute), point, passage))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()                  # another thread may have it a moment later


def _deadly(function: Callable[..., Any], point: Point, passage: int) -> Callable[..., Any]:
    passed = 0

    def passing(*arguments: Any, **named: Any) -> bool:
        nonlocal passed
        passed += point.fits(*arguments, **named)
        return passed == passage and point.fits(*arguments, **named)

    if inspect.iscoroutinefunction(function):
        @functools.wraps(function)
        async def waiting(*arguments: Any, **named: Any) -> Any:
            ends = passing(*arguments, **named)
            if ends and not point.after:
                die()
            out = await function(*arguments, **named)
            if ends:
                die()
            return out
        return waiting

    @functools.wraps(function)
    def calling(*arguments: Any, **named: Any) -> Any:
        ends = passing(*arguments, **named)
        if ends and not point.after:
            die()
        out = function(*arguments, **named)
        if ends:
            die()
        return out
    return calling


def _half(write: Callable[[int, bytes], int], passage: int) -> Callable[[int, bytes], int]:
    """Die after half of the bytes."""
    passed = 0

    def half(file: int, data: bytes) -> int:
        nonlocal passed
        passed += 1
        if passed == passage:
            write(file, data[:len(data) // 2])
            die()
        return write(file, data)
    return half


class _View:
    """A module as one other module sees it."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _plant_in_sql(beginning: str, passage: int) -> None:
    """Die before a statement of the writing connection. The trace of SQLite names each as it begins, every row of
    an `executemany` too."""
    from bayesd import log
    passed = 0

    def trace(statement: str) -> None:
        nonlocal passed
        passed += " ".join(statement.split()).startswith(beginning)
        if passed == passage:
            die()

    plain = log._set_up_writer

    async def traced(db: Any) -> None:
        await plain(db)
        connection: sqlite3.Connection = db._conn
        await db._execute(connection.set_trace_callback, trace)     # in the thread that owns it

    log._set_up_writer = traced
