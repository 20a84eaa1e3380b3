"""What has a name is on the disk: each file is flushed before it gets its name, and the folder after it.

No test can cut the power of this machine, so these watch the order of the calls. What SQLite flushes is not seen from
here: of its connections the settings are asked for that make it flush.
"""

import asyncio
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_segments import live

from bayesd import backup, certificates, segments
from bayesd.durable import write_private
from bayesd.log import SqliteLog, verify
from bayesd.logfile import create
from bayesd.notes import Signer
from bayesd.outside import HeadFiles


class Watch:
    """The calls that write, flush and name, by inode: a file keeps its inode when it gets its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        self.wrong: list[str] = []
        self.named = 0
        self._unflushed: dict[int, str] = {}
        """Folders with a new name in them."""
        self._flush, self._rename, self._write = os.fsync, os.rename, os.write
        monkeypatch.setattr(os, "fsync", self.flush)
        monkeypatch.setattr(os, "rename", self.rename)
        monkeypatch.setattr(os, "write", self.write)

    def flush(self, file: int) -> None:
        self._flush(file)
        inode = os.fstat(file).st_ino
        self.calls.append(("flush", inode))
        self._unflushed.pop(inode, None)

    def write(self, file: int, data: Any) -> int:
        self.calls.append(("write", os.fstat(file).st_ino))
        return self._write(file, data)

    def rename(self, old: Any, new: Any) -> None:
        self.named += 1
        inode = os.stat(old).st_ino
        if [what for what, where in self.calls if where == inode][-1:] != ["flush"]:
            self.wrong.append(f"{Path(new).name} is named before it is flushed")
        self._rename(old, new)
        self._unflushed[os.stat(Path(new).parent).st_ino] = Path(new).name

    def check(self, names: int) -> None:
        """So many files got their name, each as it must."""
        assert self.wrong == []
        assert list(self._unflushed.values()) == [], "the folder is not flushed after this name"
        assert self.named == names


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return live(tmp_path / "log.db", 10)


def _private(log: Path, there: Path) -> None:
    write_private(there / "keys", b"k")


def _key(log: Path, there: Path) -> None:
    Signer("story", bytes(32)).save(there / "key")


def _certificate(log: Path, there: Path) -> None:
    certificates.write_file(there / "ca.crt", b"c", 0o644)


def _refused(log: Path, there: Path) -> None:
    HeadFiles(there / "log.db", None).remember("note")


def _backup(log: Path, there: Path) -> None:
    copy, _ = backup.copy(log, there / "copy.db", verify)
    backup.put_back(copy, there / "log.db", verify)
    backup.put_back(copy, there / "log.db", verify, move_aside=True)


def _segment(log: Path, there: Path) -> None:
    assert len(segments.archive(log, there, 1000)) == 1


@pytest.mark.parametrize(("names", "make"), [
    (1, _private), (1, _key), (1, _certificate), (1, _refused), (3, _backup), (2, _segment)])
def test_a_file_is_flushed_before_it_has_its_name_and_its_folder_after(
        log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: int,
        make: Callable[[Path, Path], None]) -> None:
    there = tmp_path / "there"
    there.mkdir()
    watch = Watch(monkeypatch)
    make(log, there)
    watch.check(names)


def test_a_log_made_of_segments_is_flushed_before_it_has_its_name(
        log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [each.path for each in segments.archive(log, tmp_path / "there", 1000)]
    create(tmp_path / "empty.db")         # SQLite flushes this one, see below
    monkeypatch.setattr(segments, "create", lambda part: shutil.copy(tmp_path / "empty.db", part))
    watch = Watch(monkeypatch)
    segments.assemble(made, tmp_path / "again.db")
    watch.check(1)


def test_a_head_that_is_kept_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = tmp_path / "heads"
    files, signer = HeadFiles(tmp_path / "log.db", heads), Signer("story", bytes(32))
    watch = Watch(monkeypatch)
    for size in (1, 2):
        files.keep(signer.sign(size, bytes(32)))
        inode = heads.stat().st_ino
        assert watch.calls == [("write", inode), ("flush", inode)] * size


def test_the_writer_of_a_log_flushes_every_commit(tmp_path: Path) -> None:
    async def settings() -> dict[str, Any]:
        log = await SqliteLog.open(tmp_path / "log.db")
        try:
            return {name: next(iter(await log._writer.execute_fetchall(f"PRAGMA {name}")))[0] for name in (
                "journal_mode", "synchronous", "fullfsync", "checkpoint_fullfsync", "wal_autocheckpoint",
                "secure_delete", "trusted_schema", "cell_size_check")}
        finally:
            await log.close()

    assert asyncio.run(settings()) == {
        "journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "checkpoint_fullfsync": 1, "wal_autocheckpoint": 0,
        "secure_delete": 1, "trusted_schema": 0, "cell_size_check": 1}


def test_a_new_log_is_made_by_a_connection_that_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    class Connection(sqlite3.Connection):
        def close(self) -> None:
            seen.append((self.execute("PRAGMA synchronous").fetchone()[0],
                         self.execute("PRAGMA fullfsync").fetchone()[0]))
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *what, **how: connect(*what, factory=Connection, **how))
    create(tmp_path / "log.db")
    assert seen == [(2, 1)]


def test_a_private_file_keeps_who_may_read_it_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_private(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o4640)
    if os.geteuid() == 0:
        os.chown(path, 4321, 4322)
        path.chmod(0o4640)         # a change of owner takes the bit away
    before = path.stat()
    write_private(path, b"two")
    after = path.stat()
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_private_file_that_cannot_be_written_is_what_it_was_and_nothing_is_left(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    write_private(path, b"old")
    flushed: list[int] = []

    def fails(file: int) -> None:
        flushed.append(os.fstat(file).st_size)
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="input/output"):
            write_private(path, b"newer")
    assert flushed == [5]           # all of it, before it gets the name
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]
