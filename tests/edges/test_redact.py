"""Free text lies beside the events: it can go for ever, and the chain never notices."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell
from tests.study.story import Story, receipt

from bayesd import Study
from bayesd.log import MemoryDisk, MemoryLog, SqliteLog, verify
from bayesd.logfile import read_texts
from bayesd.replay import event_of
from bayesd.study import rules, texts
from bayesd.study.desk import Desk
from bayesd.study.fold import replay
from bayesd.study.row import Row
from bayesd.study.rules import answers
from bayesd_schemas.messages import validate

SPACE: Any = {"x": {"type": "float", "low": 0, "high": 1}}
SECRET = "FileNotFoundError: /home/jane.doe/salary.csv"     # somebody's, not ours


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"
    with Study(SPACE, method="random", log=path, name="s") as study:
        for i in range(4):
            study.tell(study.ask(), state="fail", error=f"{SECRET} {i}")
        study.tell(study.ask(), 0.5)
    return path


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def raw(path: Path) -> bytes:
    """Every byte on disk: the file, and its WAL if there is one."""
    return b"".join(each.read_bytes() for each in path.parent.glob(path.name + "*"))


def bodies(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        return b"\n".join(body for (body,) in db.execute("SELECT body FROM event"))


def test_a_redacted_text_is_gone_from_the_disk_and_the_log_verifies(log: Path, sh: Shell) -> None:
    assert (SECRET.encode() in raw(log), SECRET.encode() in bodies(log)) == (True, False)
    before = sh(f"log verify {log} -f json").json
    assert before["texts"] == {"kept": 4, "redacted": 0, "missing": 0}
    assert sh(f"log show {log} --type trial.failed -f value").out.count(SECRET) == 4
    said = sh(f"log redact {log} --study s --trial 2 --reason 'a name' -f json").json
    assert [(each["type"], each["where"]) for each in said] == [("trial.failed", "s #2")]
    assert f"{SECRET} 1".encode() not in raw(log)
    assert f"{SECRET} 0".encode() in raw(log)
    after = sh(f"log verify {log} -f json").json
    assert (after["damage"], after["texts"]) == (None, {"kept": 3, "redacted": 1, "missing": 0})
    assert sh(f"log replay {log} --at {before['events']} -f json").json["digest"] == before["state"]
    shown = sh(f"log show {log} --trial 2 --type trial.failed").out
    assert (texts.REDACTED in shown, SECRET in shown) == (True, False)
    assert "1 texts: a name" in sh(f"log show {log} --type text.redacted").out
    sh(f"log redact {log} --worker inprocess --reason 'all of them'")
    assert SECRET.encode() not in raw(log)
    assert sh(f"log verify {log} -f json").json["texts"] == {"kept": 0, "redacted": 4, "missing": 0}
    assert "no such text" in sh(f"log redact {log} --worker inprocess --reason again").err


def test_a_text_is_named_by_the_beginning_of_its_reference(log: Path, sh: Shell) -> None:
    ref = sorted(read_texts(log))[0]
    assert [each["ref"] for each in sh(f"log redact {log} {ref[:12]} --reason so -f json").json] == [ref]
    sh(f"log redact {log} xyz --reason so", code=2)
    sh(f"log redact {log} --trial 1 --reason so", code=2)
    sh(f"log redact {log} --reason so", code=2)


def test_nothing_of_many_texts_is_left_behind(tmp_path: Path, sh: Shell) -> None:
    path = tmp_path / "log.db"
    with Study(SPACE, method="random", log=path, name="s") as study:
        for i in range(120):                    # short and long: pages split, and some go over into others
            study.tell(study.ask(), state="fail", error=f"secret{i:04}" * (3 if i % 4 else 380))
    sh(f"log redact {path} --study s --trial 60 --reason so")
    assert b"secret0059" not in raw(path)
    sh(f"log redact {path} --worker inprocess --reason so")
    assert b"secret0" not in raw(path)
    assert verify(path).damage is None


def test_a_text_that_was_changed_is_damage(log: Path, sh: Shell) -> None:
    with closing(sqlite3.connect(log)) as db:
        db.execute("UPDATE text SET text = 'all went well'")
        db.commit()
    assert "is not the one that was told" in sh(f"log verify {log}", code=65).err


def test_a_text_that_came_or_went_without_an_event_is_damage(log: Path, sh: Shell) -> None:
    with closing(sqlite3.connect(log)) as db:
        salt, words = b"x", "never said"
        db.execute("INSERT INTO text VALUES (?, ?, ?)", (texts.reference(salt, words), salt, words))
        db.commit()
        assert "1 of its texts belong to no event" in sh(f"log verify {log}", code=65).err
        db.execute("DELETE FROM text WHERE salt = ?", (salt,))
        db.commit()
        sh(f"log verify {log}")
        db.execute("DELETE FROM text WHERE ref = (SELECT min(ref) FROM text)")
        db.commit()
    said = sh(f"log verify {log}", code=65).err
    assert ("1 of its texts are not there" in said, "log import" in said) == (True, True)


def test_a_log_of_an_earlier_release_is_read_and_goes_on(log: Path, tmp_path: Path, sh: Shell) -> None:
    old = tmp_path / "old.db"
    shutil.copy(log, old)
    with closing(sqlite3.connect(old)) as db:
        db.execute("DROP TABLE text")
        db.commit()
    assert "4 of its texts are not there" in sh(f"log verify {old}", code=65).err

    async def inline() -> None:
        opened = await SqliteLog.open(old)
        seq, hash = opened.head()
        await opened.append([Row.of({
            "v": 1, "tv": 1, "seq": seq + 1, "log": verify(old).log, "epoch": 1, "type": "outcome.voided", "crit": True,
            "time": "2026-01-01T00:00:00Z", "actor": "operator/ann", "study": "s", "trial": 1,
            "data": {"reason": "inline words"}, "prev": hash.hex()})])
        await opened.close()
    asyncio.run(inline())
    assert "inline words" in sh(f"log show {old}").out
    with Study(SPACE, method="random", log=old, name="s") as study:
        study.tell(study.ask(), state="fail", error="new words")
    assert "new words" in sh(f"log show {old}").out


def test_export_and_segments_hold_no_free_text_and_import_takes_it_from_the_log(log: Path, sh: Shell) -> None:
    assert SECRET not in sh(f"log export {log}").out
    made = sh(f"log archive {log} -o {log.parent}/pieces -f json").json[0]["segment"]
    back = log.parent / "back.db"
    sh(f"log import {made} -o {back}")
    assert sh(f"log verify {back} -f json").json["texts"] == {"kept": 0, "redacted": 0, "missing": 4}
    sh(f"log import {made} {log} -o {log.parent}/both.db")
    assert sh(f"log verify {log.parent}/both.db -f json").json["texts"]["kept"] == 4


def test_a_log_that_stays_open_cuts_its_wal_and_waits_for_readers_without_holding_results_up(tmp_path: Path) -> None:
    async def go() -> None:
        path = tmp_path / "log.db"
        log = await SqliteLog.open(path)
        desk, rows = failing()
        await log.append(rows)
        ref = texts.of(b"salt", SECRET).ref
        desk.record("text.redacted", {"refs": [ref], "reason": "so"}, actor="operator/ann", redacts=(ref,))
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM event").fetchone()
            await log.append(desk.take_rows())
            assert log.checkpoint_due
            await log.checkpoint()
            assert log.checkpoint_due                       # the reader still sees the text
        await log.checkpoint()
        assert not log.checkpoint_due
        assert SECRET.encode() not in raw(path)
        await log.close()
    asyncio.run(go())


def failing() -> tuple[Desk, list[Row]]:
    desk = Desk(new_salt=lambda: b"salt")
    desk.record("log.opened", {"log": "x", "format": 1, "version": "0"})
    desk.record("daemon.started", {"epoch": 1, "version": "0"})
    desk.record("worker.revoked", {"worker": "w", "reason": SECRET}, actor="operator/ann")
    return desk, desk.take_rows()


def test_a_log_in_memory_keeps_and_drops_texts_with_their_events() -> None:
    async def go() -> None:
        disk = MemoryDisk()
        log = await MemoryLog.open(disk)
        desk, rows = failing()
        ref = texts.of(b"salt", SECRET).ref
        assert json.loads(rows[-1].body)["data"] == {"worker": "w", "reason_ref": ref}
        await log.append(rows)
        assert await log.texts([ref]) == {ref: SECRET}
        desk.record("text.redacted", {"refs": [ref], "reason": "so"}, actor="operator/ann", redacts=(ref,))
        await log.append(desk.take_rows())
        assert await log.texts([ref]) == {}
    asyncio.run(go())


def test_a_replay_does_not_depend_on_what_is_redacted() -> None:
    desk, rows = failing()
    state = replay(event_of(row.body, row.hash) for row in rows)
    assert state.workers["w"].revoked == desk.state.workers["w"].revoked == "event 3"


def test_the_digest_of_a_tell_gives_no_way_to_guess_its_error_and_old_copies_are_still_copies() -> None:
    story = Story()
    story.ask("w1", n=2)
    story.tell("w1", 1, state="fail", error="one")
    assert story.tell("w1", 1, state="fail", error="two")[1] == [
        receipt("w1", "t.s.1.1", "duplicate", seq="trial.failed")]
    tell = validate("tell", {"id": "t", "study": "s", "trial": 2, "fence": 1, "state": "fail", "error": "old"})
    old = answers._digest_of(tell, "old")
    assert old != rules.digest_of(tell)
    study = story.desk.state.studies["s"]
    story.desk.record("trial.failed", {"fence": 1, "message": old.hex(), "class": "crash", "error": "old"},
                      actor="worker/w1", study=study, trial=2)
    story.desk.deadlines.clear()         # as the rule would have done
    story.said()
    assert story.tell("w1", 2, state="fail", error="old")[1][0][2]["status"] == "duplicate"
