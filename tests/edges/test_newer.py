"""A log of a newer release: an older one refuses it and leaves every byte, and the folder, as they were."""

import asyncio
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from bayesd import Study
from bayesd.cli import offline
from bayesd.evidence import Head
from bayesd.log import CannotOpen, SqliteLog, read_events
from bayesd.notes import Signer
from bayesd.study.fold import UnknownEvent, refuse_newer
from bayesd.study.row import Row

SPACE: Any = {"x": {"type": "float", "low": 0, "high": 1}}


def made(path: Path) -> Path:
    with Study(SPACE, method="random", log=path) as study:
        for _ in range(3):
            study.tell(study.ask(), 0.5)
    return path


async def _append(path: Path, *, leave_wal: Path | None = None, **more: Any) -> None:
    seq, body, hash = list(read_events(path))[-1]
    log = await SqliteLog.open(path)
    await log.append([Row.of({**orjson.loads(body), "epoch": log.epoch, "seq": seq + 1, "prev": hash.hex(), **more})])
    if leave_wal is not None:      # as a kill leaves it: what was committed is not in the file yet
        for end in ("", "-wal"):
            shutil.copyfile(f"{path}{end}", f"{leave_wal}{end}")
    await log.close()


def unknown_type(path: Path) -> None:
    asyncio.run(_append(path, type="study.danced", data={"steps": 7}))


def later_version(path: Path) -> None:
    asyncio.run(_append(path, tv=9))


def in_the_wal(path: Path) -> None:
    killed = path.with_suffix(".killed")
    asyncio.run(_append(path, type="study.danced", data={}, leave_wal=killed))
    for end in ("", "-wal"):
        shutil.move(f"{killed}{end}", f"{path}{end}")


def next_format(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")


def look_at(folder: Path) -> dict[str, str]:
    """What is in the folder, but for the lock and the index that SQLite makes of a WAL that is there."""
    wal = any(each.name.endswith("-wal") and each.stat().st_size for each in folder.iterdir())
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()
            if not each.name.endswith(".lock") and not (wal and each.name.endswith("-shm"))}


NEWER: list[Callable[[Path], None]] = [unknown_type, later_version, in_the_wal, next_format]


@pytest.mark.parametrize("become_newer", NEWER)
def test_a_newer_log_is_refused_and_left_untouched(tmp_path: Path, become_newer: Callable[[Path], None]) -> None:
    path = made(tmp_path / "log.db")
    become_newer(path)
    before = look_at(tmp_path)
    assert set(before) == ({"log.db", "log.db-wal"} if become_newer is in_the_wal else {"log.db"})
    refused = CannotOpen if become_newer is next_format else UnknownEvent

    async def open_it() -> None:
        await SqliteLog.open(path, look=refuse_newer)
    with pytest.raises(refused, match="newer"):
        asyncio.run(open_it())
    assert look_at(tmp_path) == before
    with pytest.raises(refused):
        Study(SPACE, log=path)
    assert look_at(tmp_path) == before


def test_the_daemon_ends_with_78_and_says_what_to_do(tmp_path: Path) -> None:
    path = made(tmp_path / "log.db")
    unknown_type(path)
    before = look_at(tmp_path)
    done = subprocess.run([sys.executable, "-m", "bayesd.cli", "serve", "--log", path], capture_output=True, text=True,
                          timeout=60, check=False)
    assert (done.returncode, look_at(tmp_path)) == (78, before)
    assert "study.danced" in done.stderr
    assert "newer" in done.stderr


def test_a_newer_event_that_may_be_passed_over_stops_nobody(tmp_path: Path) -> None:
    path = made(tmp_path / "log.db")
    asyncio.run(_append(path, type="study.danced", crit=False, data={}))
    with Study(SPACE, method="random", log=path) as study:
        assert len(study.trials) == 3


def test_a_newer_event_is_no_damage_and_hides_none(tmp_path: Path) -> None:
    path = made(tmp_path / "log.db")
    head = len(list(read_events(path)))
    later_version(path)
    with pytest.raises(UnknownEvent):
        offline.examine(path)
    other = Signer(json.loads(next(read_events(path))[1])["log"], bytes(32))
    wrong = Head("a note from outside", other.sign(head, bytes(32)))
    found = offline.examine(path, keys=[other.vkey], heads=[wrong])
    assert found.damage is not None
    assert found.damage.last == head
