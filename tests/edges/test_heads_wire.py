"""Signed heads on the wire: the key, the notes, and a log file that an old copy was put over."""

import json
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from tests.edges.daemon import Broker, Daemon, Wire, Worker

from bayesd.notes import Signer, open_note, split

pytestmark = pytest.mark.mosquitto


def copy_log(source: Path, target: Path) -> None:
    """What `.backup` makes: one file, the WAL in it."""
    for leftover in (target, Path(f"{target}-wal"), Path(f"{target}-shm")):
        leftover.unlink(missing_ok=True)
    with sqlite3.connect(source) as db, sqlite3.connect(target) as copy:
        db.backup(copy)
    db.close()
    copy.close()


def work(worker: Worker, first: int, last: int) -> None:
    for number in range(first, last + 1):
        worker.told(f"t{number}", worker.lease("s", f"a{number}"), value=0.5)


def test_a_key_is_made_once_and_an_old_copy_is_refused_until_somebody_accepts(tmp_path: Path) -> None:
    log, heads = tmp_path / "log.db", tmp_path / "elsewhere" / "heads.txt"
    heads.parent.mkdir()
    with Broker(tmp_path) as broker, Wire(broker.url) as wire:
        with Daemon(tmp_path, broker.url, "--heads", str(heads)) as daemon:
            daemon.ready(wire)
            wire.create("s")
            worker = wire.worker("w1")
            worker.beat()
            work(worker, 1, 3)
            copy_log(log, tmp_path / "backup.db")
            work(worker, 4, 6)
            future = worker.lease("s", "a7")                # in the hands of w1 when the disk dies
            assert daemon.stop() == 0
        (started,) = [event for event in daemon.events() if event["type"] == "daemon.started"]
        vkey = started["data"]["key"]
        assert vkey == Signer.load(f"{log}.key", started["log"]).vkey
        assert stat.S_IMODE(os.stat(f"{log}.key").st_mode) == 0o600
        assert vkey in daemon.said()
        assert "Keep a copy" in daemon.said()
        notes = split(heads.read_text(encoding="utf-8"))
        assert open_note(notes[-1], vkey).size == len(daemon.events())
        wire.until(lambda: json.loads(wire.retained["head"])["note"] == notes[-1], "the last head is retained")

        committed = len(daemon.events())
        shutil.copy(tmp_path / "backup.db", log)
        Path(f"{log}-wal").unlink(missing_ok=True)
        old = len(daemon.events())
        # By the heads file: before a word is written, and the next start is refused as well.
        for flags in (["--heads", str(heads)], []):
            with Daemon(tmp_path, broker.url, *flags, name="refused") as refused:
                assert refused.wait() == 65
            assert f"{committed} events" in refused.said()
            assert f"{old} events" in refused.said()
            assert "--accept-rollback" in refused.said()
            assert len(refused.events()) == old
        assert vkey not in refused.said()                   # it is said once
        # The newest copy is right at once, and what was refused is forgotten.
        assert Path(f"{log}.refused").exists()

        with Daemon(tmp_path, broker.url, "--heads", str(heads), "--accept-rollback", "last night's backup") as again:
            again.ready(wire)
            assert not Path(f"{log}.refused").exists()
            (repair,) = [event for event in again.events() if event["type"] == "log.repaired"]
            assert repair["data"]["reason"] == "last night's backup"
            assert repair["data"]["accepted"] == notes[-1]
            worker = wire.worker("w1", run="r2")
            worker.beat()
            worker.ask("b1", study="s", seen=notes[-1])     # workers show the head of before for a while
            grant = worker.grant("b1")
            assert grant["trial"] < future["trial"]
            assert grant["fence"] == repair["data"]["fences_from"] + 1
            answer = worker.told("zombie", future, value=99.0)
            assert (answer["status"], answer["reason"]) == ("rejected", "unknown-trial")
            assert worker.told("t", grant, value=0.5)["status"] == "recorded"
            work(worker, 8, 11)
            assert again.stop() == 0
        assert 99.0 not in [value for event in again.events() for value in (event["data"].get("values") or {}).values()]
        with Daemon(tmp_path, broker.url, "--heads", str(heads)) as last:
            last.ready(wire)
            assert last.stop() == 0


def test_the_broker_remembers_for_a_daemon_without_a_heads_file(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    with Broker(tmp_path) as broker, Wire(broker.url) as wire:
        with Daemon(tmp_path, broker.url) as daemon:
            daemon.ready(wire)
            copy_log(log, tmp_path / "backup.db")
            wire.create("s")
            assert daemon.stop() == 0
        shutil.copy(tmp_path / "backup.db", log)
        with Daemon(tmp_path, broker.url, name="refused") as refused:
            assert refused.wait() == 65
        assert "the broker has" in refused.said()
        assert Path(f"{log}.refused").read_text(encoding="utf-8").startswith("bayesd/")


def test_a_key_of_another_log_or_one_that_is_gone_is_a_wrong_setting(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with Broker(tmp_path) as broker, Wire(broker.url) as wire:
        with Daemon(tmp_path, broker.url, "--key", str(key)) as daemon:
            daemon.ready(wire)
            assert daemon.stop() == 0
        assert not (tmp_path / "log.db.key").exists()
        key.rename(tmp_path / "away")
        with Daemon(tmp_path, broker.url, "--key", str(key), name="gone") as daemon:
            assert daemon.wait() == 78
        assert "put the key back" in daemon.said()
        Signer.generate("other").save(key)
        with Daemon(tmp_path, broker.url, "--key", str(key), name="other") as daemon:
            assert daemon.wait() == 78
        assert "is the key of bayesd/other" in daemon.said()
