"""`bayesd log backup` and `log restore`: nothing but a whole and proved log ever has the name."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from tests.edges.daemon import serving
from tests.edges.mosquitto import missing
from tests.edges.test_cli import Shell
from tests.edges.test_segments import SPACE, live

from bayesd import Study, backup
from bayesd.log import read_events, verify
from bayesd.logfile import CannotOpen, take_lock
from bayesd.notes import Signer
from bayesd.segments import Misused
from bayesd.study.merkle import root_of


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return live(tmp_path / "log.db", 10, log_notes=False)


def more(log: Path, trials: int = 1) -> None:
    """The log goes on."""
    with Study(SPACE, method="random", log=log) as study:
        for _ in range(trials):
            study.tell(study.ask(), 0.5)


def events(path: Path) -> list[bytes]:
    return [hash for _, _, hash in read_events(path)]


def leftovers(folder: Path, *expected: str) -> set[str]:
    """What is there beside that, and beside what SQLite makes when a log is read."""
    of_sqlite = {f"{name}{end}" for name in expected for end in ("-wal", "-shm", ".lock")}
    return {each.name for each in folder.iterdir()} - set(expected) - of_sqlite


def note_of(path: Path, size: int | None = None) -> str:
    """What a daemon of this log signs over its first events."""
    hashes = events(path)[:size]
    found = backup.end_of(path)
    assert found is not None
    return Signer(found.log, bytes(32)).sign(len(hashes), root_of(hashes))


# --- Backup --------------------------------------------------------------------------------------------


def test_a_copy_is_the_log_and_nothing_else_is_left(log: Path, sh: Shell, tmp_path: Path) -> None:
    there = tmp_path / "there"
    said = sh(f"log backup {log} -o {there}/copy.db -f json")
    copy = there / "copy.db"
    assert said.json["events"] == len(events(log))
    assert (events(copy), said.json["head"]) == (events(log), events(log)[-1].hex())
    assert "key" in said.err
    assert leftovers(there, "copy.db") == set()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sh(f"log verify {copy} -f json").json["state"] == said.json["state"]
    more(log)
    sh(f"log backup {log} -o {copy}")               # a newer copy of the same log takes its place
    assert events(copy) == events(log)
    named = Path(sh(f"log backup {log} -o {there} -f json").json["file"])
    assert named.name == f"{said.json['log']}-{len(events(log)):012}.db"
    assert events(named) == events(log)
    made = Path(sh(f"log backup {log} -o {tmp_path}/not/yet/ -f json").json["file"])    # a slash says: a folder
    assert made == tmp_path / "not" / "yet" / named.name
    assert "no folder" in sh(f"log backup {log} -o {copy}/", code=2).err


def test_without_a_name_it_is_the_log_of_this_user(sh: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "BAYESD_LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert "name the FILE" in sh(f"log backup -o {tmp_path}/copy.db", code=2).err
    (tmp_path / "bayesd").mkdir()
    log = live(tmp_path / "bayesd" / "log.db", 1, log_notes=False)
    sh(f"log backup -o {tmp_path}/copy.db")
    assert events(tmp_path / "copy.db") == events(log)


def test_what_stands_in_the_way_is_never_lost(log: Path, sh: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    sh(f"log backup {log} -o {log}", code=2)
    (tmp_path / "thesis.tex").write_text("no log")
    assert "move it away" in sh(f"log backup {log} -o {tmp_path}/thesis.tex", code=2).err
    assert (tmp_path / "thesis.tex").read_text() == "no log"
    other = live(tmp_path / "other.db", 1, log_notes=False)
    assert "copy of log" in sh(f"log backup {log} -o {other}", code=2).err
    sh(f"log backup {log} -o {copy}")
    older = shutil.copy(copy, tmp_path / "older.db")
    more(log)
    sh(f"log backup {log} -o {copy}")
    assert "newer one" in sh(f"log backup {older} -o {copy}", code=2).err
    guard = take_lock(copy)                         # a daemon serves the copy
    sh(f"log backup {log} -o {copy}", code=75)
    os.close(guard)
    assert events(copy) == events(log)
    sh(f"log backup {tmp_path}/nowhere.db -o {tmp_path}/new.db", code=78)
    assert not (tmp_path / "new.db").exists()


def test_a_damaged_log_makes_no_copy(log: Path, sh: Shell, tmp_path: Path) -> None:
    with closing(sqlite3.connect(log)) as db:
        db.execute("DROP TRIGGER event_is_never_changed")
        db.execute("UPDATE event SET hash = zeroblob(32) WHERE seq = 7")
        db.commit()
    assert "event 7" in sh(f"log backup {log} -o {tmp_path}/copy.db", code=65).err
    assert leftovers(tmp_path, "log.db") == set()


KILLED = """
import os, signal, sys
from bayesd import backup
from bayesd.cli import backups, run
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
backup.PAGES = 1
if sys.argv[1] == "pages":
    backup_of = backup._copy_pages
    backup._copy_pages = lambda log, part, told: backup_of(log, part, lambda done, total: die() if done > 5 else None)
elif sys.argv[1] == "prove":
    backups._proved = die
elif sys.argv[1] == "aside":
    backup._move_aside, move = lambda *given: (move(*given), die()), backup._move_aside
else:
    backup.put_in_place = die
run(sys.argv[2:])
"""


def killed(stage: str, *line: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, stage, *line], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("stage", ["pages", "prove", "rename"])
def test_a_backup_that_is_killed_leaves_the_last_one(log: Path, sh: Shell, tmp_path: Path, stage: str) -> None:
    there = tmp_path / "there"
    killed(stage, "log", "backup", str(log), "-o", f"{there}/first.db")
    assert not (there / "first.db").exists()
    sh(f"log backup {log} -o {there}/first.db")
    before = (there / "first.db").read_bytes()
    more(log)
    killed(stage, "log", "backup", str(log), "-o", f"{there}/first.db")
    assert (there / "first.db").read_bytes() == before
    sh(f"log backup {log} -o {there}/first.db")     # what the killed one left is taken over
    assert events(there / "first.db") == events(log)
    assert leftovers(there, "first.db") == set()


def test_two_backups_to_one_place_do_not_mix(log: Path, sh: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"

    def prove(part: Path) -> None:
        sh(f"log backup {log} -o {copy}", code=75)

    backup.copy(log, copy, prove)
    assert events(copy) == events(log)


def test_a_full_disk_is_said_and_leaves_nothing(log: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        missing("a mount namespace", "a small disk can only be made by root")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=40k tmpfs {small} && {sys.executable} -m bayesd.cli log "
         f"backup {log} -o {small}/copy.db; code=$?; ls -A {small}; exit $code"],
        capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (74, ""), done.stderr
    assert "no space left" in done.stderr


@pytest.mark.mosquitto
def test_a_daemon_at_work_is_copied_again_and_again(sh: Shell, tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1", budget={"trials": 1_000_000})
        enough = threading.Event()
        told = 0

        def work() -> None:
            nonlocal told
            worker = wire.worker("w1")
            while not enough.is_set():
                told += 1
                worker.ask(f"a{told}", study="s1")
                worker.tell(f"t{told}", worker.grant(f"a{told}"), value=0.5)
                worker.receipt(f"t{told}")

        busy = threading.Thread(target=work)
        busy.start()
        try:
            ends, tells = [], [0]
            for number in range(4):
                wire.until(lambda: told > tells[-1] + 10, "work goes on while copies are made")
                tells.append(told)
                ends.append(sh(f"log backup {daemon.log} -o {tmp_path}/copy-{number % 2}.db -f json").json["events"])
        finally:
            enough.set()
            busy.join()
        assert daemon.stop() == 0
    whole = events(daemon.log)
    assert ends == sorted(set(ends))
    for number in range(2):
        copied = events(tmp_path / f"copy-{number}.db")
        assert copied == whole[:len(copied)]
    assert verify(daemon.log).damage is None


# --- Restore -------------------------------------------------------------------------------------------


def test_a_copy_comes_back_and_nothing_is_overwritten(log: Path, sh: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    sh(f"log backup {log} -o {copy}")
    more(log, 3)
    newer = events(log)
    assert "--move-aside" in sh(f"log restore {copy} -o {log}", code=2).err
    assert events(log) == newer
    guard = take_lock(log)
    sh(f"log restore {copy} -o {log} --move-aside", code=75)
    os.close(guard)
    said = sh(f"log restore {copy} -o {log} --move-aside -f json")
    assert said.json["aside"] == f"{log}.before-1"
    assert f"at event {len(newer)}" in said.json["lacks"]
    assert "--accept-rollback" in said.err
    assert events(log) == events(copy)
    assert events(Path(f"{log}.before-1")) == newer
    assert sh(f"log restore {copy} -o {log} --move-aside -f json").json["aside"] == f"{log}.before-2"
    with pytest.raises(Misused, match="is a folder"):
        backup.put_back(copy, tmp_path, verify)
    fresh = tmp_path / "fresh" / "log.db"
    assert sh(f"log restore {copy} -o {fresh} -f json").json["lacks"] is None
    more(fresh)                                     # and it can be written


def test_the_wal_goes_aside_with_its_log(log: Path, sh: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    sh(f"log backup {log} -o {copy}")
    done = subprocess.run([sys.executable, "-c", f"""
import os
from bayesd import Study
study = Study({SPACE!r}, method="random", log={str(log)!r})
study.tell(study.ask(), 0.25)
os.kill(os.getpid(), 9)
"""], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    newer = events(log)
    assert Path(f"{log}-wal").stat().st_size > 0
    assert len(newer) > len(events(copy))
    sh(f"log restore {copy} -o {log} --move-aside")
    assert events(log) == events(copy)              # the old WAL is not read as part of the copy
    assert events(Path(f"{log}.before-1")) == newer


@pytest.mark.parametrize("stage", ["pages", "prove", "aside", "rename"])
def test_a_restore_that_is_killed_never_gives_a_new_log(log: Path, sh: Shell, tmp_path: Path, stage: str) -> None:
    copy = tmp_path / "copy.db"
    sh(f"log backup {log} -o {copy}")
    more(log)
    newer = events(log)
    killed(stage, "log", "restore", str(copy), "-o", str(log), "--move-aside")
    if log.exists():
        assert events(log) == newer
    else:
        assert events(Path(f"{log}.before-1")) == newer
        with pytest.raises(CannotOpen, match="restore that was broken off"):
            more(log)
    sh(f"log restore {copy} -o {log} --move-aside")
    assert events(log) == events(copy)
    assert not Path(f"{log}.restore").exists()


def test_a_damaged_copy_is_not_put_back(log: Path, sh: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    sh(f"log backup {log} -o {copy}")
    data = bytearray(copy.read_bytes())
    at = data.rindex(b'"type":"trial.')
    data[at + 9] ^= 1
    copy.write_bytes(data)
    before = log.read_bytes()
    sh(f"log restore {copy} -o {log} --move-aside", code=65)
    assert log.read_bytes() == before
    assert leftovers(tmp_path, "log.db", "copy.db") == set()


def test_heads_from_outside_say_what_a_copy_lacks(log: Path, tmp_path: Path, sh: Shell) -> None:
    copy, heads = tmp_path / "copy.db", tmp_path / "heads.txt"
    sh(f"log backup {log} -o {copy}")
    more(log, 2)
    heads.write_text(note_of(log, len(events(copy))))
    assert sh(f"log restore {copy} -o {tmp_path}/1.db --head {heads} -f json").json["lacks"] is None
    heads.write_text(note_of(log))
    said = sh(f"log restore {copy} -o {tmp_path}/2.db --head {heads} -f json")
    assert f"signed over {len(events(log))}" in said.json["lacks"]
    assert "--accept-rollback" in said.err
    # The head that ended the last life stands beside the log.
    Path(f"{tmp_path}/3.db.refused").write_text(note_of(log))
    assert "3.db.refused" in sh(f"log restore {copy} -o {tmp_path}/3.db -f json").json["lacks"]


def test_what_root_puts_back_belongs_to_the_daemon(log: Path, sh: Shell, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("root", "only root can give files away")
    copy, state = tmp_path / "copy.db", tmp_path / "state"
    sh(f"log backup {log} -o {copy}")
    state.mkdir()
    os.chown(state, 61234, 61234)
    sh(f"log restore {copy} -o {state}/log.db")
    sh(f"log restore {copy} -o {state}/log.db --move-aside")
    owners = {each.name: each.stat().st_uid for each in state.iterdir()}
    assert {"log.db", "log.db.lock", "log.db.before-1"} <= owners.keys()
    assert set(owners.values()) == {61234}
