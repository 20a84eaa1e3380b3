"""What is wrong, and what to do: every check looks at one thing that has kept somebody from working.

Nothing is changed: the round trips use a read, a write that must be refused because its study does
not exist, and the withdrawal of an ask that nobody made. None of them reaches the log.
"""

import asyncio
import contextlib
import ctypes
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bayesd import __version__, show
from bayesd.bus import BusError, Caller
from bayesd.call import Client, Reach, Refusal, read
from bayesd.config import read_runtime, state_directory

State = Literal["ok", "warn", "bad"]

WAIT_S = 2.5                 # a daemon answers within 2 s
SLOW_S = 0.025               # a turn of the broker on this machine; Nagle's algorithm makes it 40 ms and more
SPACE_BAD, SPACE_WARN = 100 * 2**20, 2**30
VERIFY_MAX_BYTES = 64 * 2**20
SQLITE_MIN = (3, 37, 0)      # STRICT tables
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do if it is not well."""

    check: str
    state: State
    finding: str
    advice: str = ""


async def examine(reach: Reach, log: Path | None = None) -> list[Finding]:
    """All checks, the machine first, then the broker and what is behind it."""
    found = [*_python(), *_packages(), *_sqlite(), *_clock(), *await asyncio.to_thread(lambda: [*_disk(log)]),
             *_embedded(), *_note()]
    found += [finding async for finding in _broker(reach)]
    return found


# --- This machine ------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]}, bayesd {__version__}")


def _packages() -> Iterator[Finding]:
    """Whether what we require is there, in the versions that we know."""
    try:
        required = importlib.metadata.requires("bayesd") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "warn", "bayesd runs from a source tree that is not installed", "pip install -e .")
        return
    wrong, missing = [], []
    for line in required:
        name, ranges = _requirement(line)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append((name, "extra" in line))
            continue
        if not _fits(version, ranges):
            wrong.append(f"{name} {version} is not {ranges}")
    if wrong or any(not extra for _, extra in missing):
        names = [*wrong, *(f"{name} is missing" for name, extra in missing if not extra)]
        yield Finding("packages", "bad", ", ".join(names), "pip install --upgrade bayesd, in a new virtual environment")
    if missing and any(extra for _, extra in missing):
        yield Finding("packages", "warn", f"a worker's install: {', '.join(name for name, _ in missing)} not there",
                      "to run the daemon here: pip install 'bayesd[daemon]'")
    elif not wrong:
        yield Finding("packages", "ok", f"{len(required)} of {len(required)} are there")


def _requirement(line: str) -> tuple[str, str]:
    found = re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)", line)
    assert found is not None
    return found[1], found[2].strip().strip("()")


def _fits(version: str, ranges: str) -> bool:
    """Enough of PEP 440 for our own requirements: >= and < with plain numbers."""
    have = _numbers(version)
    for sign, limit in re.findall(r"(>=|<)\s*([0-9.]+)", ranges):
        want = _numbers(limit)
        if (have < want) if sign == ">=" else (have >= want):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _sqlite() -> Iterator[Finding]:
    if sqlite3.sqlite_version_info >= SQLITE_MIN:
        yield Finding("sqlite", "ok", sqlite3.sqlite_version)
    else:
        yield Finding("sqlite", "bad", sqlite3.sqlite_version,
                      "install a Python whose SQLite is 3.37 or newer; the log needs its STRICT tables")


def _clock() -> Iterator[Finding]:
    """Leases run on a clock that only moves forward; this one is for the times that people read."""
    if time.time() < datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp():
        yield Finding("clock", "bad", f"it says {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
                      "set the clock: certificates and the times in the log depend on it")
    elif _synchronised() is False:
        yield Finding("clock", "warn", "nothing keeps it right",
                      "run a time service (systemd-timesyncd, chrony); leases are not affected, times in the log are")
    else:
        yield Finding("clock", "ok", f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC")


def _synchronised() -> bool | None:
    """What the kernel knows of a time service; None where it cannot be asked."""
    if not sys.platform.startswith("linux"):
        return None
    time_error, room_for_struct_timex = 5, 256
    with contextlib.suppress(OSError, AttributeError):
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(room_for_struct_timex))
        return None if state < 0 else state != time_error
    return None


# --- The log's place -------------------------------------------------------------------------------


def _disk(log: Path | None) -> Iterator[Finding]:
    note = read_runtime()
    path = log or (Path(note["log"]) if note is not None and note.get("log") else state_directory() / "log.db")
    there = path.parent
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        yield Finding("disk", "bad", f"{there} cannot be written", "name another place with --log, or change its owner")
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding("disk", "bad", f"{there}: {error.strerror}", "look at the disk")
        return
    state: State = "bad" if free < SPACE_BAD else "warn" if free < SPACE_WARN else "ok"
    yield Finding("disk", state, f"{show.size(free)} free at {there}",
                  "" if state == "ok" else "make room: a daemon on a full disk records nothing")
    if importlib.util.find_spec("aiosqlite") is None or importlib.util.find_spec("orjson") is None:
        return
    yield from _filesystem(there)
    if path.exists():
        yield from _log(path)


def _filesystem(there: Path) -> Iterator[Finding]:
    from bayesd import logfile
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    kind = logfile.filesystem(there.resolve(), mounts)
    if kind in logfile.NETWORK or kind.startswith("fuse"):
        yield Finding("file system", "bad", f"{there} is on {kind}, whose locks do not hold",
                      "put the log on a local disk with --log")
    else:
        yield Finding("file system", "ok", kind or "unknown")


def _log(path: Path) -> Iterator[Finding]:
    from bayesd import log
    if path.stat().st_size > VERIFY_MAX_BYTES:
        yield Finding("log", "ok", f"{path}: {show.size(path.stat().st_size)}", f"bayesd log verify {path} proves it")
        return
    try:
        report = log.verify(path)
    except log.LogError as error:
        yield Finding("log", "bad", str(error), "name the right file with --log")
        return
    if report.damage is not None:
        yield Finding("log", "bad", f"{path}: {report.damage}", f"bayesd log show {path} reads what is good")
        return
    yield Finding("log", "ok", f"{path}: {report.events} events verify")
    for _, body, _ in log.read_events(path, max(0, report.seq - 1)):
        ahead_s = (datetime.datetime.fromisoformat(json.loads(body)["time"])
                   - datetime.datetime.now(datetime.UTC)).total_seconds()
        if ahead_s > 60:
            yield Finding("clock", "bad", f"the last event of the log is {show.duration(ahead_s)} ahead of this clock",
                          "set the clock; it was ahead when the log was written, or is behind now")


# --- Brokers and daemons here ----------------------------------------------------------------------


def _embedded() -> Iterator[Finding]:
    from bayesd.broker import BrokerError, choose
    try:
        kind = choose("auto")
    except BrokerError as error:
        yield Finding("embedded broker", "warn", str(error), "only needed for `bayesd serve` without --broker")
        return
    if kind == "mosquitto":
        yield Finding("embedded broker", "ok", "mosquitto")
    else:
        yield Finding("embedded broker", "warn", "iotcore, which takes about 50 ms for each turn",
                      "install mosquitto: it takes 0.3 ms")


def _note() -> Iterator[Finding]:
    note = read_runtime()
    if note is None:
        yield Finding("daemon here", "ok", "none runs on this machine under this user")
    else:
        yield Finding("daemon here", "ok", f"pid {note.get('pid')}, log {note.get('log')}, at {note['broker']}")


# --- The broker, and what is behind it ---------------------------------------------------------------


async def _broker(reach: Reach) -> AsyncIterator[Finding]:
    topics = reach.topics
    try:
        async with reach.caller(topics.to(reach.client, "reply"), topics.daemon, topics.head) as caller:
            yield Finding("broker", "ok", f"{reach.address.url} takes us as {reach.address.username or reach.client}")
            yield await _latency(reach, caller)
            said = await _announced(caller, topics.daemon, topics.head)
    except BusError as error:
        yield Finding("broker", "bad", str(error), "`bayesd serve` brings a broker of its own on this machine")
        return
    daemon = said.get(topics.daemon)
    yield await _anonymous(reach)
    yield _daemon(reach, daemon)
    online = daemon is not None and daemon.get("state") == "online"
    if online:
        yield _head(reach, said.get(topics.head))
    worker = await _guarded("way of a worker", lambda: _as_worker(reach, online))
    operator = await _guarded("way of an operator", lambda: _as_operator(reach, online))
    if worker.state == "ok" and operator.state == "bad":
        operator = replace(operator, state="warn", advice=f"{operator.advice}; a worker does not need it")
    yield worker
    yield operator


async def _guarded(check: str, act: Callable[[], Awaitable[Finding]]) -> Finding:
    """A broker that hangs up when it is not allowed something has answered, too."""
    try:
        return await act()
    except BusError as error:
        return Finding(check, "bad", str(error), "look at the broker's access list")


async def _latency(reach: Reach, caller: Caller) -> Finding:
    """A turn of the broker alone: a subscription that we have already."""
    turns = []
    for _ in range(7):
        began = time.perf_counter()
        await caller.subscribe(reach.topics.to(reach.client, "reply"))
        turns.append(time.perf_counter() - began)
    turn_s = sorted(turns)[len(turns) // 2]
    words = f"{1000 * turn_s:.1f} ms a turn"
    if turn_s > SLOW_S and reach.address.host in LOOPBACK:
        return Finding("latency", "warn", words, "this is what TCP does without TCP_NODELAY: set_tcp_nodelay true in "
                                                 "mosquitto.conf")
    return Finding("latency", "ok", words)


async def _announced(caller: Caller, *topics: str) -> dict[str, dict[str, Any] | None]:
    """What the daemon keeps on the broker, by topic: it comes at once or not at all."""
    out: dict[str, dict[str, Any] | None] = {}
    async for message in caller.messages(1.0):
        if message.topic in topics:
            out[message.topic] = read(message)
            if len(out) == len(topics):
                break
    return out


async def _anonymous(reach: Reach) -> Finding:
    """Whether people without a login come in: fine on one machine, an open door on a network."""
    nobody = replace(reach, address=replace(reach.address, username=None, password_file=None, cert_file=None,
                                            key_file=None), client=f"doctor-{secrets.token_hex(4)}")
    try:
        async with nobody.caller():
            pass
    except BusError:
        return Finding("anonymous access", "ok", "the broker asks everybody for a login")
    if reach.address.host in LOOPBACK:
        return Finding("anonymous access", "ok", "the broker takes everybody on this machine")
    return Finding("anonymous access", "warn", f"{reach.address.url} takes everybody: whoever reaches it may change "
                   "studies and tell results", "allow_anonymous false and an access list in the broker")


def _daemon(reach: Reach, said: dict[str, Any] | None) -> Finding:
    if said is None:
        return Finding("daemon", "bad", f"none has ever been at {reach.address.url} under {reach.topics.prefix}",
                       f"bayesd serve --broker {reach.address.url}, or check --broker and --root")
    words = f"version {said.get('version')}, log {said.get('log')}, epoch {said.get('epoch')}"
    if said.get("state") == "online":
        return Finding("daemon", "ok", f"online, {words}")
    return Finding("daemon", "bad", f"offline; it was {words}", "start it again; workers keep their results meanwhile")


def _head(reach: Reach, said: dict[str, Any] | None) -> Finding:
    """Whether the signed head can be read: workers keep it, so that a log that went back is noticed."""
    if said is None:
        return Finding("signed head", "warn", f"nothing can be read at {reach.topics.head}", "let the broker's access "
                       "list grant the daemon to read and write it, and everybody else to read it")
    size = str(said.get("note", "")).split("\n")[1:2]
    return Finding("signed head", "ok", f"{size[0] if size else '?'} events, by the key {said.get('key')}")


async def _as_worker(reach: Reach, online: bool) -> Finding:
    """An ask that nobody made is withdrawn: the answer proves the way there and back, and nothing is recorded."""
    name = reach.client if reach.address.username else f"doctor-{secrets.token_hex(4)}"
    id = f"doctor.{secrets.token_hex(6)}"
    topics = reach.topics
    async with reach.caller(topics.to(name, "receipt"), name=name) as caller:
        await caller.publish(topics.sent(name, "ask"), json.dumps({"id": id, "run": "doctor", "n": 0}).encode())
        async for message in caller.messages(WAIT_S if online else 0.5):
            said = read(message)
            if said is not None and said.get("id") == id:
                return Finding("way of a worker", "ok", f"asks of {name} are answered")
    if not online:
        return Finding("way of a worker", "warn", "not known while no daemon is online")
    return Finding("way of a worker", "bad", f"no answer to {topics.sent(name, 'ask')}",
                   f"let the broker's access list grant {name} to write {topics.prefix}/from/{name}/# and to read "
                   f"{topics.prefix}/to/{name}/#")


async def _as_operator(reach: Reach, online: bool) -> Finding:
    """A write to a study that does not exist: refused for that reason, or because we may not write at all."""
    if not online:
        return Finding("way of an operator", "warn", "not known while no daemon is online")
    try:
        async with Client(replace(reach, timeout_s=WAIT_S)) as client:
            await client.request("study.pause", {"study": f"doctor-{secrets.token_hex(6)}"})
    except Refusal as refused:
        if refused.code == "not-allowed":
            return Finding("way of an operator", "warn", str(refused), "reads work; ask the daemon's owner for more")
        if refused.code == "name-in-use":
            return Finding("way of an operator", "warn", str(refused), "use another user, or --client")
        return Finding("way of an operator", "ok", f"requests of {reach.client} are answered, and may change studies")
    except BusError as error:
        return Finding("way of an operator", "bad", str(error),
                       f"let the broker's access list grant {reach.client} to write "
                       f"{reach.topics.request(reach.client)}")
    raise AssertionError("a study that does not exist was paused")
