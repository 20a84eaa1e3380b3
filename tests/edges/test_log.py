"""One suite for every log, then what only a file can suffer: damage, two writers, full disks, kills."""

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.promises.disk import Call, Disk, full

import bayesd.log
import bayesd.logfile
from bayesd.log import (
    CannotOpen,
    CommitFailed,
    Damaged,
    DiskFull,
    Fenced,
    LockedOut,
    Log,
    LogBug,
    LogError,
    MemoryDisk,
    MemoryLog,
    Note,
    Row,
    Snapshot,
    SqliteLog,
    read_events,
    verify,
)
from bayesd.logfile import READ_CHUNK
from bayesd.study.canonical import ZERO, canonical, leaf_hash
from bayesd.study.merkle import root_of
from bayesd.study.row import Fields

# --- Events to write, and two kinds of place to write them to ------------------------------------


def event(seq: int, prev: str, **other: Any) -> dict[str, Any]:
    return {"v": 1, "seq": seq, "prev": prev, "log": "0a1b", "epoch": 1, "type": "trial.completed",
            "study": "digits", "trial": seq, "actor": "worker/w1", "cmd": f"t.digits.{seq}.1",
            "data": {"value": 0.25 + seq, "params": {"lr": 1e-7, "depth": 3}}, **other}


def following(head: tuple[int, bytes], count: int, **other: Any) -> list[Row]:
    """`count` good rows after `head`."""
    seq, hash_ = head
    rows = []
    for number in range(seq + 1, seq + 1 + count):
        rows.append(Row.of(event(number, hash_.hex(), **other)))
        hash_ = rows[-1].hash
    return rows


async def everything(log: Log, after: int = 0, until: int | None = None) -> list[Row]:
    """What is there; head and tree, which are kept beside it, must say the same."""
    rows = [row async for chunk in log.read(after, until) for row in chunk]
    if (after, until) == (0, None):
        hashes = [row.hash for row in rows]
        assert (log.tree.size, log.tree.root()) == (len(rows), root_of(hashes))
        assert log.head() == (len(rows), hashes[-1] if rows else bytes(32))
    return rows


class Place(Protocol):
    """Where a log lives between two daemons."""

    async def open(self) -> Log: ...
    def steal_lock(self) -> None: ...
    def spoil(self, row: Row) -> None: ...
    def fill(self, log: Log, full: bool) -> Awaitable[None]: ...


class OnDisk:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "log.db"

    async def open(self) -> Log:
        return await SqliteLog.open(self.path)

    def steal_lock(self) -> None:
        os.unlink(f"{self.path}.lock")

    def spoil(self, row: Row) -> None:
        edit(self.path, "UPDATE event SET body = ?, hash = ? WHERE seq = ?", (row.body, row.hash, row.seq))

    async def fill(self, log: Log, full: bool) -> None:
        assert isinstance(log, SqliteLog)
        pages = next(iter(await log._writer.execute_fetchall("PRAGMA page_count")))[0]
        await log._writer.execute(f"PRAGMA max_page_count = {pages + 1 if full else 1_000_000}")


class InMemory:
    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.full = False

    async def open(self) -> Log:
        return await MemoryLog.open(self.disk, before_commit=self._before)

    async def _before(self, rows: Sequence[Row]) -> None:
        if self.full:
            raise DiskFull("no space")

    def steal_lock(self) -> None:
        self.disk.steal_lock()

    def spoil(self, row: Row) -> None:
        self.disk.rows[row.seq - 1] = row

    async def fill(self, log: Log, full: bool) -> None:
        self.full = full


@pytest.fixture(params=["sqlite", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return OnDisk(tmp_path) if request.param == "sqlite" else InMemory()


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Log]:
    log = await place.open()
    try:
        yield log
    finally:
        await log.close()


async def open_and_close(place: Place) -> int:
    """The seq of the head; for stories of a refusal, which leave nothing open when there is none."""
    async with opened(place) as log:
        return log.head()[0]


def told(story: Callable[[], Awaitable[None]]) -> None:
    """Run a story in a loop of its own."""
    async def whole() -> None:
        await story()
    asyncio.run(whole())


# --- One suite for every log ---------------------------------------------------------------------

def test_a_new_log_is_empty_and_its_first_writer_has_epoch_1(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            assert log.head() == (0, bytes(32))
            assert log.head()[1].hex() == ZERO
            assert log.epoch == 1
            assert await everything(log) == []
            await log.append([])
            assert log.head() == (0, bytes(32))
    told(story)


def test_what_was_appended_is_there_after_a_restart(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            first = following(log.head(), 3)
            await log.append(first)
            second = following(log.head(), 2)
            await log.append(second)
            assert log.head() == (5, second[-1].hash)
            assert await everything(log) == first + second
        async with opened(place) as log:
            assert log.epoch == 2
            assert log.head() == (5, second[-1].hash)
            assert await everything(log) == first + second
    told(story)


def test_reads_come_in_chunks_and_within_bounds(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            rows = following(log.head(), 2 * READ_CHUNK + 10)
            await log.append(rows)
            assert [len(chunk) async for chunk in log.read()] == [READ_CHUNK, READ_CHUNK, 10]
            assert await everything(log, after=1990) == rows[1990:]
            assert await everything(log, after=5, until=1500) == rows[5:1500]
            assert await everything(log, until=2 * READ_CHUNK) == rows[:2 * READ_CHUNK]
            assert await everything(log, after=len(rows)) == []
            assert await everything(log, after=7, until=7) == []
            assert await everything(log, after=10**6) == []
    told(story)


def test_events_without_study_trial_or_command_are_good(place: Place) -> None:
    async def story() -> None:
        envelope = event(1, ZERO)
        for name in ("study", "trial", "cmd"):
            del envelope[name]
        async with opened(place) as log:
            await log.append([Row.of(envelope)])
            assert await everything(log) == [Row.of(envelope)]
    told(story)


BAD_BATCHES: dict[str, Callable[[tuple[int, bytes]], list[Row]]] = {
    "a gap": lambda head: following(head, 2)[1:],
    "a gap inside": lambda head: [row for row in following(head, 3) if row.seq != head[0] + 2],
    "an old event again": lambda head: [Row.of(event(1, ZERO))],
    "another prev": lambda head: [Row.of(event(head[0] + 1, "ab" * 32))],
    "no prev": lambda head: [Row.of({k: v for k, v in event(head[0] + 1, "").items() if k != "prev"})],
    "a wrong hash": lambda head: [following(head, 1)[0]._replace(hash=bytes(32))],
    "another seq in the body": lambda head: [Row.of(event(9, head[1].hex()))._replace(seq=head[0] + 1)],
    "another type beside the body": lambda head: [following(head, 1)[0]._replace(type="trial.failed")],
    "another study beside the body": lambda head: [following(head, 1)[0]._replace(study=None)],
    "another trial beside the body": lambda head: [following(head, 1)[0]._replace(trial=77)],
    "another actor beside the body": lambda head: [following(head, 1)[0]._replace(actor="daemon")],
    "another command beside the body": lambda head: [following(head, 1)[0]._replace(cmd=None)],
    "no JSON": lambda head: [following(head, 1)[0]._replace(body=b"{", hash=leaf_hash(b"{"))],
    "no object": lambda head: [following(head, 1)[0]._replace(body=b"7", hash=leaf_hash(b"7"))],
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_would_break_the_chain_is_our_bug_and_nothing_is_written(place: Place, name: str) -> None:
    async def story() -> None:
        async with opened(place) as log:
            good = following(log.head(), 2)
            await log.append(good)
            with pytest.raises(LogBug) as caught:
                await log.append(BAD_BATCHES[name](log.head()))
            assert isinstance(caught.value, AssertionError)
            assert await everything(log) == good
            await log.append(following(log.head(), 1))
            assert log.head()[0] == 3
    told(story)


def test_a_second_daemon_is_locked_out(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            await log.append(following(log.head(), 1))
            with pytest.raises(LockedOut) as caught:
                await open_and_close(place)
            assert caught.value.exit_code == 75
            assert log.epoch == 1
            await log.append(following(log.head(), 1))
        async with opened(place) as log:
            assert log.head()[0] == 2
            assert log.epoch == 2      # the one that was refused raised nothing
    told(story)


def test_a_daemon_whose_lock_was_stolen_is_fenced_before_its_next_event(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as zombie:
            await zombie.append(following(zombie.head(), 2))
            place.steal_lock()
            async with opened(place) as log:
                assert log.epoch == zombie.epoch + 1
                for _ in range(3):      # it is refused before the new daemon writes, and after
                    with pytest.raises(Fenced) as caught:
                        await zombie.append(following(zombie.head(), 1, type="written.by.a.zombie"))
                    assert caught.value.exit_code == 76
                    await log.append(following(log.head(), 1))
                with pytest.raises(Fenced):
                    await zombie.save_snapshot(1, "c", b"", b"")
                with pytest.raises(Fenced):
                    await zombie.save_note(1, b"")
                assert await log.load_snapshot() is None
                assert [row.type for row in await everything(log)] == ["trial.completed"] * 5
    told(story)


def test_a_full_disk_writes_nothing_and_goes_on_when_there_is_space(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            await log.append(following(log.head(), 3))
            await place.fill(log, True)
            batch = following(log.head(), 200)
            for _ in range(5):
                with pytest.raises(DiskFull):
                    await log.append(batch)
                assert log.head()[0] == 3
                assert len(await everything(log)) == 3
            await place.fill(log, False)
            await log.append(batch)
            assert log.head() == (203, batch[-1].hash)
        async with opened(place) as log:
            assert (await everything(log))[3:] == batch
    told(story)


def test_snapshots_are_a_cache_of_the_last_two(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            assert await log.load_snapshot() is None
            await log.append(following(log.head(), 9))
            for seq in (3, 5, 9):
                await log.save_snapshot(seq, "state-1", bytes([seq]), b"blob")
            await log.save_snapshot(9, "state-2", b"newer", b"blob")
            with pytest.raises(LogBug):
                await log.save_snapshot(10, "state-1", b"", b"")
        async with opened(place) as log:
            assert await log.load_snapshot() == Snapshot(9, "state-2", b"newer", b"blob")
            assert await log.load_snapshot(until=8) == Snapshot(5, "state-1", b"\x05", b"blob")
            assert await log.load_snapshot(until=4) is None
    told(story)


def test_the_newest_note_of_the_head_is_kept(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            assert await log.load_note() is None
            await log.append(following(log.head(), 4))
            await log.save_note(2, b"two")
            await log.save_note(4, b"four")
            await log.save_note(3, b"three")
            with pytest.raises(LogBug):
                await log.save_note(5, b"five")
            assert await log.load_note() == Note(4, b"four")
    told(story)


def test_a_closed_log_takes_nothing_and_closes_twice(place: Place) -> None:
    async def story() -> None:
        log = await place.open()
        await log.close()
        await log.close()
        with pytest.raises(LogBug):
            await log.append(following(log.head(), 1))
        async with opened(place) as log:
            assert log.head()[0] == 0
    told(story)


def test_a_spoilt_event_is_named_when_the_log_is_opened(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            await log.append(following(log.head(), 5))
            rows = await everything(log)
        place.spoil(Row.of(event(3, rows[1].hash.hex(), actor="worker/w1", data={"value": 9.0})))
        with pytest.raises(Damaged) as caught:
            await open_and_close(place)
        assert caught.value.seq == 4    # 3 was sealed again, so it is 4 that does not follow it
        assert caught.value.exit_code == 65
    told(story)


def test_checkpoints_change_no_event(place: Place) -> None:
    async def story() -> None:
        async with opened(place) as log:
            for _ in range(3):
                await log.append(following(log.head(), 10))
                await log.checkpoint()
                await log.checkpoint()
            assert len(await everything(log)) == 30
            assert not log.checkpoint_due
    told(story)


# --- In memory: what the simulation rests on -----------------------------------------------------

def test_a_daemon_killed_before_its_commit_has_written_nothing_and_one_after_it_everything() -> None:
    async def story() -> None:
        disk = MemoryDisk()

        async def killed(rows: Sequence[Row]) -> None:
            disk.kill()

        log = await MemoryLog.open(disk, before_commit=killed)
        with pytest.raises(CommitFailed):
            await log.append(following(log.head(), 1))
        assert disk.rows == []

        log = await MemoryLog.open(disk, after_commit=killed)
        with pytest.raises(CommitFailed):
            await log.append(following(log.head(), 2))
        log = await MemoryLog.open(disk)
        assert log.head()[0] == 2
        assert log.epoch == 3
    told(story)


def test_a_commit_waits_for_its_injected_latency_and_the_next_waits_behind_it() -> None:
    async def story() -> None:
        gate = asyncio.Event()

        async def slow(rows: Sequence[Row]) -> None:
            await gate.wait()

        log = await MemoryLog.open(before_commit=slow)
        rows = following(log.head(), 2)
        first = asyncio.create_task(log.append(rows[:1]))
        second = asyncio.create_task(log.append(rows[1:]))
        await asyncio.sleep(0)
        assert log.head()[0] == 0
        gate.set()
        await first
        await second
        assert log.disk.rows == rows
    told(story)


def test_after_an_injected_failure_no_append_follows() -> None:
    async def story() -> None:
        async def fails(rows: Sequence[Row]) -> None:
            raise CommitFailed("the cable came out")

        log = await MemoryLog.open(after_commit=fails)
        rows = following(log.head(), 2)
        for _ in range(2):
            with pytest.raises(CommitFailed, match="cable"):
                await log.append(rows[:1])
        assert log.disk.rows == rows[:1]
    told(story)


# --- The file: how it is made and what is refused ------------------------------------------------

def edit(path: Path, sql: str, values: tuple[object, ...] = ()) -> None:
    """Change the file as somebody with a SQLite shell would, past the triggers, which stay as they were."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute(sql, values)
        for _, made in triggers:
            db.execute(made)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(path: Path, count: int, **other: Any) -> list[Row]:
    """A log with `count` events, closed; returns its rows."""
    async def story() -> list[Row]:
        log = await SqliteLog.open(path)
        try:
            rows = following(log.head(), count, **other)
            await log.append(rows)
            return rows
        finally:
            await log.close()
    return asyncio.run(story())


def reopen(path: Path, **how: Any) -> int:
    async def story() -> int:
        log = await SqliteLog.open(path, **how)
        await log.close()
        return log.head()[0]
    return asyncio.run(story())


def test_a_log_is_made_for_its_owner_only_with_the_directories_above_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "bayesd" / "log.db"
    written(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{path}.lock").stat().st_mode) == 0o600
    assert [stat.S_IMODE(directory.stat().st_mode) for directory in (path.parent, path.parent.parent)] == [0o700] * 2
    assert sorted(file.name for file in path.parent.iterdir()) == ["log.db", "log.db.lock"]


def test_an_empty_file_becomes_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.touch()
    assert reopen(path) == 0
    assert verify(path).damage is None


def test_a_crash_while_a_log_is_made_leaves_nothing_in_its_place(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.db"

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", power_cut)
        with pytest.raises(KeyboardInterrupt):
            bayesd.logfile.create(path)
    assert not path.exists()
    assert len(written(path, 2)) == 2
    assert not Path(f"{path}.new").exists()


def test_a_wal_without_its_log_is_not_taken_for_part_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    Path(f"{path}-wal").write_bytes(b"pages of events")
    with pytest.raises(CannotOpen, match="put the log back") as caught:
        reopen(path)
    assert caught.value.exit_code == 78
    assert not path.exists()


def test_a_log_of_a_newer_release_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    written(path, 3)
    edit(path, "PRAGMA user_version = 2")
    before = digest(path)
    for look in (reopen, verify, lambda path: list(read_events(path))):
        with pytest.raises(CannotOpen, match="newer"):
            look(path)
    assert digest(path) == before


def test_a_database_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE event (seq INTEGER PRIMARY KEY)")
    before = digest(path)
    with pytest.raises(CannotOpen, match="not a log of bayesd"):
        reopen(path)
    assert digest(path) == before


def test_what_is_not_there_or_no_file_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "empty"):
        with pytest.raises(CannotOpen):
            verify(path)
        with pytest.raises(CannotOpen):
            list(read_events(path))


def test_network_file_systems_are_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.db"
    monkeypatch.setattr(bayesd.logfile, "filesystem", lambda *_: "nfs4")
    if sys.platform.startswith("linux"):
        with pytest.raises(CannotOpen, match="nfs4"):
            reopen(path)
        assert not path.exists()
    assert reopen(path, allow_network=True) == 0


@pytest.mark.parametrize(("directory", "kind"), [
    ("/var/lib/bayesd", "ext4"), ("/home/ann/state", "nfs4"), ("/home/ann/with space/x", "fuse.sshfs"),
    ("/home/annabel", "ext4"), ("/twice", "xfs"),
])
def test_the_file_system_is_that_of_the_nearest_mount(directory: str, kind: str) -> None:
    mounts = [
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        "22 21 0:40 / /home/ann rw shared:2 master:1 - nfs4 server:/ann rw,vers=4.2",
        r"23 22 0:41 / /home/ann/with\040space rw - fuse.sshfs far: rw",
        "24 21 0:42 / /twice rw - cifs //server/share rw",
        "25 24 8:2 / /twice rw - xfs /dev/sdb1 rw",
    ]
    assert bayesd.logfile.filesystem(Path(directory), mounts) == kind


def test_two_names_of_one_log_share_its_lock(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "log.db")
        async with opened(OnDisk(tmp_path)):
            with pytest.raises(LockedOut, match=str(os.getpid())):
                await (await SqliteLog.open(tmp_path / "link.db")).close()
    told(story)


@pytest.mark.parametrize("statement", [
    "UPDATE event SET actor = 'somebody' WHERE seq = 2",
    "DELETE FROM event WHERE seq = 3",
    "INSERT OR REPLACE INTO event SELECT 2, body, hash, type, study, trial, actor, cmd FROM event WHERE seq = 3",
    "INSERT INTO event SELECT 9, body, hash, type, study, trial, actor, cmd FROM event WHERE seq = 3",
    "INSERT INTO event SELECT 4, body, x'00', type, study, trial, actor, cmd FROM event WHERE seq = 3",
    "INSERT INTO event SELECT 4, 'text', hash, type, study, trial, actor, cmd FROM event WHERE seq = 3",
])
def test_a_slip_in_a_sqlite_shell_is_stopped(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "log.db"
    written(path, 3)
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    assert verify(path).damage is None


# --- Verification and damage ---------------------------------------------------------------------

def test_verify_reports_the_head_and_the_name_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    rows = written(path, READ_CHUNK + 5)
    seen: list[int] = []
    report = verify(path, seen.append)
    assert (report.events, report.seq, report.hash) == (READ_CHUNK + 5, READ_CHUNK + 5, rows[-1].hash)
    assert (report.log, report.epoch, report.damage) == ("0a1b", 1, None)
    assert seen == [READ_CHUNK, READ_CHUNK + 5]
    assert list(read_events(path)) == [(row.seq, row.body, row.hash) for row in rows]
    assert [seq for seq, _, _ in read_events(path, after=998, until=1003)] == [999, 1000, 1001, 1002, 1003]
    assert list(read_events(path, after=5000)) == []


def test_verify_and_read_beside_a_running_daemon(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(OnDisk(tmp_path)) as log:
            for count in (1, 5, 9):
                await log.append(following(log.head(), count))
                report = verify(tmp_path / "log.db")
                assert (report.seq, report.hash, report.damage) == (*log.head(), None)
            half = read_events(tmp_path / "log.db")
            next(half)
            await log.append(following(log.head(), 1))      # a slow reader holds nobody up
            await log.checkpoint()
            half.close()        # type: ignore[attr-defined]  # it is a generator
    told(story)


STRUCTURAL: dict[str, tuple[str, int]] = {
    "an event deleted": ("DELETE FROM event WHERE seq = 7", 7),
    "the first deleted": ("DELETE FROM event WHERE seq = 1", 1),
    "all after it moved up": ("UPDATE event SET seq = seq + 1000 WHERE seq >= 7", 7),
    "an event before the first": (
        "INSERT INTO event SELECT 0, body, hash, type, study, trial, actor, cmd FROM event WHERE seq = 1", 0),
    "an event added": (
        "INSERT INTO event SELECT 13, body, hash, type, study, trial, actor, cmd FROM event WHERE seq = 12", 13),
    "two events swapped": (
        "UPDATE event SET (body, hash, type, study, trial, actor, cmd) = (SELECT body, hash, type, study, trial, "
        "actor, cmd FROM event AS other WHERE other.seq = 15 - event.seq) WHERE seq IN (7, 8)", 7),
    "a body changed": ("UPDATE event SET body = replace(body, '0.25', '0.75') || x'' WHERE seq = 7", 7),
    "a body emptied": ("UPDATE event SET body = x'' WHERE seq = 7", 7),
    "a hash changed": ("UPDATE event SET hash = zeroblob(32) WHERE seq = 7", 7),
    "a type changed": ("UPDATE event SET type = 'trial.failed' WHERE seq = 7", 7),
    "a study changed": ("UPDATE event SET study = NULL WHERE seq = 7", 7),
    "a trial changed": ("UPDATE event SET trial = 70 WHERE seq = 7", 7),
    "an actor changed": ("UPDATE event SET actor = 'worker/w2' WHERE seq = 7", 7),
    "a command changed": ("UPDATE event SET cmd = '' WHERE seq = 7", 7),
    "text that is no text": ("UPDATE event SET actor = CAST(x'ff61' AS TEXT) WHERE seq = 7", 7),
    "a trigger gone": ("DROP TRIGGER IF EXISTS event_is_never_deleted", 0),
    "the epoch set back": ("UPDATE writer SET epoch = 0", 13),
    "the epoch gone": ("DELETE FROM writer", 13),
}


@pytest.mark.parametrize("name", [name for name in STRUCTURAL if name != "a trigger gone"])
def test_a_changed_log_is_damaged_at_the_right_event_and_stays_as_it_is(tmp_path: Path, name: str) -> None:
    sql, seq = STRUCTURAL[name]
    path = tmp_path / "log.db"
    rows = written(path, 12)
    if name == "a body changed":
        body = rows[6].body.replace(b"7.25", b"7.75")
        edit(path, "UPDATE event SET body = ? WHERE seq = 7", (body,))
    else:
        edit(path, sql)
    before = digest(path)
    seq = max(seq, 1)
    report = verify(path)
    assert report.damage is not None
    assert (report.damage.seq, report.events) == (seq, seq - 1), report.damage
    with pytest.raises(Damaged) as caught:
        reopen(path)
    assert caught.value.seq == seq
    assert digest(path) == before


@pytest.mark.parametrize("column", ["type", "study", "trial", "actor", "cmd"])
@pytest.mark.parametrize("has", [(), ("study",), ("study", "trial"), ("study", "trial", "cmd")])
def test_a_column_that_says_more_or_less_than_its_body_is_noticed(tmp_path: Path, column: str,
                                                                  has: tuple[str, ...]) -> None:
    path = tmp_path / "log.db"
    rows = written(path, 3)
    more = {name: value for name, value in (("study", "s"), ("trial", 7), ("cmd", "c")) if name in has}
    row = Row.of({"actor": "daemon", "crit": True, "data": {}, "epoch": 1, "log": "0a1b", "seq": 4,
                  "prev": rows[2].hash.hex(), "time": "2026-01-01T00:00:00.000000Z", "tv": 1, "type": "t", "v": 1,
                  **more})
    edit(path, "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row.fields)
    assert verify(path).damage is None
    others = {9 if column == "trial" else "x", None if column not in ("type", "actor") else "y"}
    for other in others - {getattr(row, column)}:
        edit(path, f"UPDATE event SET {column} = ? WHERE seq = 4", (other,))
        damage = verify(path).damage
        assert damage is not None
        assert damage.seq == 4


WORDS = st.sampled_from(["s", "t", "u", "w", "", "é", "a\\b", "a\\\\b", 'a"b', 's","time":"x', 'x","crit":true', "null",
                         "None"])
PARTS = st.fixed_dictionaries({}, optional={"study": WORDS, "trial": st.integers(0, 3), "cmd": WORDS})


@settings(deadline=None, max_examples=1000)
@given(PARTS, st.sampled_from(["type", "study", "trial", "actor", "cmd", None]), WORDS | st.none(), WORDS, WORDS,
       st.sampled_from([2, 2, 2, 1, 3]), st.dictionaries(WORDS, WORDS, max_size=2),
       st.sampled_from([*["2026-01-01T00:00:00.000000Z"] * 4, "x", 'q"' * 13]))
def test_the_loop_that_parses_nothing_finds_what_parsing_finds(
        parts: dict[str, Any], column: str | None, other: str | None, actor: str, type: str, seq: int,
        data: dict[str, str], time: str) -> None:
    row = Row.of({"actor": actor, "crit": True, "data": data, "epoch": 1, "log": "l", "prev": ZERO, "seq": seq,
                  "time": time, "tv": 1, "type": type, "v": 1, **parts})
    changed: dict[str, Any] = {} if column is None else {column: seq if column == "trial" else other}
    told: Fields = row._replace(**{"seq": 2, **changed}).fields
    why = bayesd.logfile.fault(told, 2, ZERO)
    assert bayesd.logfile._chained([told], 1, ZERO, None, set()) == ((1, None) if why is None else (0, why))


@pytest.mark.parametrize(("actor", "cmd", "column", "told"), [
    ("daemon", None, "actor", 'daemon","crit":true,"data":{"a":"x'),        # as far as the next "crit" of the body
    ("worker/w", "c", "cmd", 'c","crit":true,"data":{"a":"x'),
    ("worker/w", "a\\b", "cmd", r"a\\b"),                                   # as it is spelled, not as it is meant
    ("worker/w", 'a"b', "cmd", r"a\"b")])
def test_a_column_that_looks_like_the_bytes_of_the_body_is_still_noticed(
        tmp_path: Path, actor: str, cmd: str | None, column: str, told: str) -> None:
    """The loop compares bytes and parses none; a copy must not be able to lean on what stands behind it."""
    path = tmp_path / "log.db"
    rows = written(path, 3)
    envelope = {"actor": actor, "crit": True, "data": {"a": "x", "crit": 5}, "epoch": 1, "log": "0a1b", "seq": 4,
                "prev": rows[2].hash.hex(), "time": "2026-01-01T00:00:00.000000Z", "tv": 1, "type": "t", "v": 1}
    row = Row.of(envelope if cmd is None else {**envelope, "cmd": cmd})
    edit(path, "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row.fields)
    assert verify(path).damage is None
    edit(path, f"UPDATE event SET {column} = ? WHERE seq = 4", (told,))
    damage = verify(path).damage
    assert damage is not None
    assert damage.seq == 4


def test_a_missing_trigger_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    written(path, 3)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TRIGGER event_is_never_deleted")
    with pytest.raises(Damaged, match="triggers") as caught:
        reopen(path)
    assert caught.value.seq == 4        # all three events are as they were


@pytest.mark.parametrize(("sql", "kind", "name"), [
    ("CREATE INDEX by_study ON event (study, trial)", "INDEX", "by_study"),
    ("CREATE TRIGGER a BEFORE INSERT ON text BEGIN SELECT RAISE(IGNORE); END", "TRIGGER", "a"),
    ("CREATE TRIGGER a AFTER INSERT ON checkpoint BEGIN DELETE FROM checkpoint; END", "TRIGGER", "a"),
    ("CREATE TABLE \"o'neil\" (x)", "TABLE", "o'neil"),
    ("DROP TABLE text; CREATE VIEW text AS SELECT '' AS ref, x'' AS salt, '' AS text", "VIEW", "text")])
def test_what_somebody_added_to_the_tables_is_named_and_can_be_dropped(
        tmp_path: Path, sql: str, kind: str, name: str) -> None:
    """A trigger more could change what a daemon writes, a view what it reads."""
    path = tmp_path / "log.db"
    written(path, 3)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(sql)
    found = verify(path).damage
    assert found is not None
    assert (found.seq, name in found.why, f'DROP {kind} "{name}"' in str(found)) == (4, True, True)
    with pytest.raises(Damaged, match="did not make"):
        reopen(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f'DROP {kind} "{name}"')
    assert reopen(path) == 3


def test_statistics_of_sqlite_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    written(path, 3)
    with closing(sqlite3.connect(path)) as db:
        db.execute("ANALYZE")
    assert reopen(path) == 3


def test_a_changed_table_is_not_said_to_be_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    written(path, 3)
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE text; CREATE TABLE text (ref, salt, text)")
    found = verify(path).damage
    assert found is not None
    assert "were changed" in found.why


def test_what_is_before_the_damage_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    rows = written(path, READ_CHUNK + 50)
    edit(path, "UPDATE event SET hash = zeroblob(32) WHERE seq = ?", (READ_CHUNK + 20,))
    seen: list[tuple[int, bytes, bytes]] = []
    with pytest.raises(Damaged, match=str(READ_CHUNK + 20)):
        seen.extend(read_events(path))      # extend keeps what came before the error
    assert [seq for seq, _, _ in seen] == [row.seq for row in rows[:READ_CHUNK + 19]]


def test_no_flipped_bit_changes_an_event_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    rows = written(path, 40)
    whole = path.read_bytes()
    original = [(row.seq, row.body, row.hash) for row in rows]
    # Where SQLite happens to keep each body and hash: damage there must be named exactly.
    owner = {}
    for row in rows:
        for part in (row.body, row.hash):
            start = whole.index(part)
            owner.update(dict.fromkeys(range(start, start + len(part)), row.seq))
    dice = random.Random(8)
    header = [(offset, bit) for offset in range(100) for bit in (0, 7)]
    places = header + [(dice.randrange(len(whole)), dice.randrange(8)) for _ in range(500)]
    places += [(dice.choice(sorted(owner)), dice.randrange(8)) for _ in range(200)]
    noticed = 0
    for offset, bit in places:
        changed = bytearray(whole)
        changed[offset] ^= 1 << bit
        path.write_bytes(changed)
        events: list[tuple[int, bytes, bytes]] = []
        try:
            damage = verify(path).damage
            events.extend(read_events(path))
        except CannotOpen:
            assert 60 <= offset < 72    # the header says that it is not ours, or of a newer release
            continue
        except Damaged:
            pass
        if damage is None:
            assert events == original, (offset, bit)
        else:
            noticed += 1
            assert events == original[:len(events)], (offset, bit)
            assert damage.seq == len(events) + 1, (offset, bit)
        if offset in owner:
            assert damage is not None, (offset, bit)
            assert damage.seq == owner[offset], (offset, bit)
    assert noticed > 200


@pytest.mark.parametrize("kept", [1, 50, 100, 4096, 4097, 12288, 0.5, 0.9])
def test_a_file_cut_short_is_damaged(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "log.db"
    written(path, 200)
    os.truncate(path, int(kept if kept >= 1 else kept * path.stat().st_size))
    before = digest(path)
    with pytest.raises(Damaged) as caught:
        reopen(path)
    assert 1 <= caught.value.seq <= 200
    assert digest(path) == before


def test_a_file_of_something_else_is_damaged_at_event_1(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_text("not a database at all\n" * 20)
    with pytest.raises(Damaged, match="not a SQLite database") as caught:
        reopen(path)
    assert caught.value.seq == 1
    assert verify(path).events == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that another user can reach, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        os.chmod(name, 0o755)


@pytest.mark.parametrize("with_wal", [False, True])
def test_verify_needs_no_right_to_write(tmp_path: Path, public: Path, with_wal: bool) -> None:
    async def story() -> None:
        log = await SqliteLog.open(tmp_path / "log.db")
        await log.append(following(log.head(), 20))
        if not with_wal:
            await log.close()
        try:
            for suffix in ("", "-wal") if with_wal else ("",):
                copy = public / f"log.db{suffix}"
                copy.write_bytes(Path(f"{tmp_path}/log.db{suffix}").read_bytes())
                copy.chmod(0o444)
        finally:
            await log.close()
    told(story)
    public.chmod(0o555)
    before = sorted(file.name for file in public.iterdir())
    root = os.geteuid() == 0        # whom no permission stops
    if root:
        os.seteuid(65534)
    try:
        report = verify(public / "log.db")
        events = list(read_events(public / "log.db"))
    finally:
        if root:
            os.seteuid(0)
    assert (report.seq, report.damage, len(events)) == (20, None, 20)
    assert sorted(file.name for file in public.iterdir()) == before


def test_a_copy_made_by_vacuum_into_is_a_good_log(tmp_path: Path) -> None:
    written(tmp_path / "log.db", 20)
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
    assert verify(tmp_path / "backup.db").seq == 20
    assert reopen(tmp_path / "backup.db") == 20


# --- Commits that fail, and the WAL --------------------------------------------------------------

def test_an_error_at_commit_ends_the_log_and_the_outcome_is_read_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(OnDisk(tmp_path)) as log:
            await fails_after_its_commit(log)
        assert verify(tmp_path / "log.db").seq == 5

    async def fails_after_its_commit(log: Log) -> None:
        assert isinstance(log, SqliteLog)
        await log.append(following(log.head(), 2))
        commit = log._writer.commit

        async def fails() -> None:
            await commit()      # the worst case: it was written, and the error came after
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        log._writer.commit = fails      # type: ignore[method-assign]  # the fault that is injected
        rows = following(log.head(), 3)
        for _ in range(2):
            with pytest.raises(CommitFailed) as caught:
                await log.append(rows)
            assert caught.value.exit_code == 74
        assert log.head()[0] == 2
    told(story)


def test_a_cancelled_append_is_whole_and_the_log_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(OnDisk(tmp_path)) as log:
            for turns in range(12):     # broken off at each step on its way
                task = asyncio.create_task(log.append(following(log.head(), 3)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                before = log.head()[0]
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert log.head()[0] in (before, before + 3)
                assert len(await everything(log)) == log.head()[0]
            await log.append(following(log.head(), 1))
    told(story)


@pytest.mark.parametrize("gone", [True, False])
def test_a_daemon_does_not_write_to_a_log_that_was_taken_from_under_it(tmp_path: Path, gone: bool) -> None:
    async def story() -> None:
        path = tmp_path / "log.db"
        async with opened(OnDisk(tmp_path)) as log:
            await log.append(following(log.head(), 1))
            os.rename(path, tmp_path / "moved.db")
            if not gone:
                path.write_bytes((tmp_path / "moved.db").read_bytes())
            with pytest.raises(CommitFailed, match="gone" if gone else "replaced"):
                await log.append(following(log.head(), 1))
    told(story)


async def until_due(log: SqliteLog) -> None:
    for _ in range(100):
        if log.checkpoint_due:
            return
        await log.append(following(log.head(), 50))
    raise AssertionError("a checkpoint never became due")


def test_the_wal_grows_until_a_checkpoint_and_is_cut_past_its_bound(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(bayesd.log, "WAL_MAX_BYTES", 200_000)
        log = await SqliteLog.open(tmp_path / "log.db")
        try:
            assert not log.checkpoint_due
            await log.append(following(log.head(), 100))
            small = log.wal_bytes
            await log.checkpoint()
            assert log.wal_bytes == small       # kept, to be written over
            await log.append(following(log.head(), 2))
            assert log.wal_bytes == small
            file = (tmp_path / "log.db").stat().st_size
            await until_due(log)
            assert (tmp_path / "log.db").stat().st_size == file     # no checkpoint inside a commit
            # A reader in a transaction keeps the WAL from being cut, and nobody waits for it.
            with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT max(seq) FROM event").fetchone()
                await log.append(following(log.head(), 1))
                await log.checkpoint()
                assert log.wal_bytes > 200_000
                assert not log.checkpoint_due       # not again before it has grown by some more
            await until_due(log)
            await log.checkpoint()
            assert log.wal_bytes == 0
            assert len(await everything(log)) == log.head()[0]
        finally:
            await log.close()
        assert verify(tmp_path / "log.db").seq == log.head()[0]
    told(story)


# --- Processes that die --------------------------------------------------------------------------

CHILD = """
import asyncio, os, random, resource, sys
from bayesd.log import LogError, Row, SqliteLog

async def main(path, seed, limit_bytes):
    dice = random.Random(seed)
    os.write(1, b"opening\\n")
    log = await SqliteLog.open(path)
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    for _ in range(2000):       # far more than any story needs, so that a broken one ends too
        rows, (seq, hash_) = [], log.head()
        for seq in range(seq + 1, seq + 1 + dice.randint(1, 8)):
            rows.append(Row.of({"seq": seq, "prev": hash_.hex(), "type": "t", "actor": "a", "fill": "x" * 300}))
            hash_ = rows[-1].hash
        await log.append(rows)
        os.write(1, b"%d %s\\n" % (seq, hash_.hex().encode()))
        if dice.random() < 0.1:
            await log.save_snapshot(seq, "c", b"", b"state")
        if dice.random() < 0.2:
            await log.checkpoint()

try:
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
except LogError as error:
    os.write(2, repr(error).encode())
    os._exit(error.exit_code)
"""


def child(path: Path, seed: int, limit_bytes: int = 0) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(seed), str(limit_bytes)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_every_acknowledged_event_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    acknowledged: dict[int, str] = {}
    dice = random.Random(20)
    for life in range(20):
        with child(path, life) as daemon:
            assert daemon.stdout is not None
            # Some die while they open, the others after so many acknowledged batches.
            for _ in range(1 if life % 5 == 0 else dice.randint(2, 60)):
                line = daemon.stdout.readline().split()
                if len(line) == 2:
                    acknowledged[int(line[0])] = line[1].decode()
            daemon.send_signal(signal.SIGKILL)
            for left in daemon.stdout.read().splitlines():
                if len(left.split()) == 2:      # acknowledged before it died, unread until now
                    acknowledged[int(left.split()[0])] = left.split()[1].decode()
            assert daemon.wait() == -signal.SIGKILL
        if path.exists():
            assert verify(path).damage is None
    kept = {seq: hash_.hex() for seq, _, hash_ in read_events(path)}
    assert len(acknowledged) > 100
    assert {seq: kept.get(seq) for seq in acknowledged} == acknowledged
    assert reopen(path) == len(kept)


def test_an_io_error_ends_the_process_with_74_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with child(path, 1, limit_bytes=400_000) as daemon:
        out, talk = daemon.communicate()
    assert daemon.returncode == 74, talk
    assert b"CommitFailed" in talk
    last = int(out.splitlines()[-1].split()[0])
    report = verify(path)
    assert report.damage is None
    assert report.seq >= last > 0


def test_a_second_process_is_locked_out_with_75(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(OnDisk(tmp_path)) as log:
            await log.append(following(log.head(), 1))
            with child(tmp_path / "log.db", 0) as second:
                _, talk = second.communicate()
            assert second.returncode == 75
            assert str(os.getpid()).encode() in talk
    told(story)


def test_every_error_says_how_the_process_ends() -> None:
    codes = {kind: kind.exit_code for kind in (LogError, DiskFull, CommitFailed, LockedOut, Fenced, CannotOpen,
                                               Damaged, LogBug)}
    assert codes == {LogError: 74, DiskFull: 74, CommitFailed: 74, LockedOut: 75, Fenced: 76, CannotOpen: 78,
                     Damaged: 65, LogBug: 70}


def test_a_row_holds_the_canonical_bytes_of_its_envelope() -> None:
    envelope = event(1, ZERO)
    row = Row.of(envelope)
    assert row.body == canonical(envelope)
    assert row.hash == hashlib.sha256(b"\0" + row.body).digest()
    assert orjson.loads(row.body) == envelope


def test_to_verify_in_the_process_of_the_writer_leaves_its_locks(tmp_path: Path) -> None:
    # A handle that this process opens and closes would take SQLite's locks along, and then whoever leaves the file next
    # takes the WAL away under the writer.
    path = tmp_path / "log.db"
    stranger = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
                "db.execute('SELECT count(*) FROM event').fetchall(); db.close()")

    async def live() -> None:
        log = await SqliteLog.open(path)
        try:
            await log.append(following(log.head(), 3))
            assert verify(path).seq == 3
            subprocess.run([sys.executable, "-c", stranger, str(path)], check=True)
            assert Path(f"{path}-wal").exists()
            await log.append(following(log.head(), 2))
            said = subprocess.run([sys.executable, "-c", stranger.replace("fetchall()", "fetchall(); print('read')"),
                                   str(path)], check=True, capture_output=True)
            assert said.stdout == b"read\n"
        finally:
            await log.close()
    asyncio.run(live())
    assert verify(path).seq == 5


def test_what_a_stolen_lock_lets_one_misread_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Alone under the lock the file is read without locks. A daemon whose lock was stolen may write meanwhile.
    path = tmp_path / "log.db"

    async def live() -> None:
        log = await SqliteLog.open(path)
        await log.append(following(log.head(), 3))
        await log.close()
    asyncio.run(live())
    plain = bayesd.logfile.verify

    def misread(*arguments: Any, alone: bool = False, **named: Any) -> Any:
        report = plain(*arguments, alone=alone, **named)
        return replace(report, damage=Damaged(2, "torn")) if alone else report
    monkeypatch.setattr(bayesd.logfile, "verify", misread)
    assert bayesd.logfile.prepare(path, None).seq == 3


async def _full_until(path: Path) -> tuple[list[str], int]:
    """What appends say on a disk that is full, then has place for small writes only, then is free."""
    is_full, has_room, said = False, True, []

    def fail(call: Call) -> None:
        if is_full and call.kind == "write":
            raise full()

    def no_room(_: Path) -> None:
        if not has_room:
            raise DiskFull("no room (a simulated disk)")

    with Disk(fail).under_the_log(), mock.patch.object(bayesd.log, "refuse_no_room", no_room):
        log = await SqliteLog.open(path)
        for now in ((True, False), (False, False), (False, True)):
            is_full, has_room = now
            try:
                await log.append(following(log.head(), 1))
            except DiskFull as error:
                said.append(str(error).split(" for ")[0].split(" (")[0])
            else:
                said.append("done")
        is_full = True
        log._wal_bound_bytes = 0
        with pytest.raises(DiskFull, match="move the WAL"):
            await log.checkpoint()
        is_full = False
        timeout_ms = next(iter(await log._writer.execute_fetchall("PRAGMA busy_timeout")))[0]
        await log.close()
    return said, timeout_ms


def test_a_log_that_found_no_space_asks_for_more_than_a_small_write_takes(tmp_path: Path) -> None:
    said, timeout_ms = asyncio.run(_full_until(tmp_path / "log.db"))
    assert said == ["no space left", "no room", "done"]
    assert timeout_ms == 5000       # a checkpoint that failed gives the patience back


def test_room_is_tried_with_a_file_that_does_not_stay(tmp_path: Path) -> None:
    bayesd.logfile.refuse_no_room(tmp_path / "log.db")
    assert list(tmp_path.iterdir()) == []


def test_no_space_for_the_index_of_the_wal_is_a_full_disk() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    with pytest.raises(DiskFull), bayesd.logfile.translated(0):
        raise error
@pytest.mark.parametrize("due", [False, True])
def test_a_checkpoint_that_finds_no_space_can_be_tried_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, due: bool) -> None:
    async def story() -> None:
        log = await SqliteLog.open(tmp_path / "log.db")
        await log.append(following(log.head(), 3))
        if due:
            monkeypatch.setattr(log, "_wal_bound_bytes", 0)
        real = log._writer.execute_fetchall

        async def full(sql: str, *more: Any) -> Any:
            if "wal_checkpoint" in sql:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return await real(sql, *more)

        with monkeypatch.context() as patch:
            patch.setattr(log._writer, "execute_fetchall", full)
            for _ in range(2):
                with pytest.raises(DiskFull):
                    await log.checkpoint()
        assert next(iter(await real("PRAGMA busy_timeout")))[0] > 0
        await log.append(following(log.head(), 2))
        await log.checkpoint()
        assert len(await everything(log)) == 5
        await log.close()

    asyncio.run(story())
    assert verify(tmp_path / "log.db").seq == 5
