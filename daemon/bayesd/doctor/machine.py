"""This machine: Python and packages, clock, disk, the log's file, brokers and daemons here."""

import contextlib
import ctypes
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bayesd import __version__, show
from bayesd.config import read_runtime, state_directory
from bayesd.doctor.finding import Finding, State

SPACE_BAD, SPACE_WARN = 100 * 2**20, 2**30
VERIFY_MAX_BYTES = 64 * 2**20
SQLITE_MIN = (3, 37, 0)      # STRICT tables


def examine(log: Path | None) -> list[Finding]:
    """All of it. Blocks for as long as the log takes to verify."""
    return [*_python(), *_packages(), *_sqlite(), *_clock(), *_disk(log), *_embedded(), *_note()]


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
    wrong, missing, count = [], [], 0
    for line in required:
        name, ranges = _requirement(line)
        extra = _extra(line)
        if extra not in (None, "daemon"):
            continue            # peers to measure ourselves against: nobody needs them to run anything
        count += 1
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append((name, extra is not None))
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
        yield Finding("packages", "ok", f"{count} of {count} are there")


def _extra(line: str) -> str | None:
    """The extra that a requirement belongs to: `h11<1; extra == "daemon"`."""
    found = re.search(r"""extra\s*==\s*['"]([^'"]+)""", line)
    return None if found is None else found[1]


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


def log_id_of(path: Path) -> str | None:
    """The identity of a log file; None where there is none, or it cannot be read here."""
    if not path.exists() or importlib.util.find_spec("aiosqlite") is None or importlib.util.find_spec("orjson") is None:
        return None
    from bayesd import log
    with contextlib.suppress(log.LogError):
        for _, body, _ in log.read_events(path, 0):
            return str(json.loads(body)["log"])
    return None


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
