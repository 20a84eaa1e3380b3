"""Reading, proving and replaying a log file with no daemon in sight."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell, daemon, study

from bayesd import call
from bayesd.bus import BrokerAddress
from bayesd.cli.hand import _ask, _tell
from bayesd.study.fold import KNOWN


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a study of ten trials, one of them with folds, one failed; its daemon is gone."""
    folder = tmp_path_factory.mktemp("kept")
    path = folder / "study.toml"
    path.write_text(study("kept", 10).replace('"sobol"', '"bayes"'))
    with daemon(folder) as running:
        asyncio.run(work(call.Reach(BrokerAddress.parse(running.broker), "tests"), path))
    return folder / "log.db"


async def work(reach: call.Reach, path: Path) -> None:
    from bayesd.files import read_study
    await call.once(reach, "study.create", {"spec": read_study(str(path)).data})
    for i in range(10):
        grant = await _ask(reach, "hand", "kept", 60.0)
        x = grant["params"]["x"]
        outcome: dict[str, Any] = {"state": "fail", "class": "oom", "error": "no room"} if i == 4 else \
            {"folds": [x * x, x * x + 0.1], "seconds": 2.0} if i == 5 else {"value": x * x, "seconds": 4.0}
        await _tell(reach, "hand", {"id": f"t.kept.{grant['trial']}.1", "study": "kept", "trial": grant["trial"],
                                    "fence": 1, **outcome})


@pytest.fixture
def log(kept: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    for part in kept.parent.glob("log.db*"):
        shutil.copy(part, tmp_path / part.name)
    return tmp_path / "log.db"


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def spoil(log: Path, seq: int, old: bytes, new: bytes, mend: bool = False) -> None:
    """Change an event behind the back of the log; `mend` also makes its own hash right again."""
    with contextlib.closing(sqlite3.connect(log)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        body = db.execute("SELECT body FROM event WHERE seq = ?", (seq,)).fetchone()[0]
        assert old in body
        body = body.replace(old, new)
        db.execute("UPDATE event SET body = ? WHERE seq = ?", (body, seq))
        if mend:
            db.execute("UPDATE event SET hash = ? WHERE seq = ?", (sha256(b"\0" + body).digest(), seq))
        for _, sql in triggers:
            db.execute(sql)
        db.commit()


def find(log: Path, type: str, n: int = 0) -> int:
    with contextlib.closing(sqlite3.connect(log)) as db:
        return int(db.execute("SELECT seq FROM event WHERE type = ? ORDER BY seq", (type,)).fetchall()[n][0])


# --- Whole -------------------------------------------------------------------------------------------


def test_verify_says_what_it_proved(log: Path, sh: Shell) -> None:
    proof = sh(f"log verify {log} -f json").json
    assert proof["chain"] == "intact"
    assert proof["damage"] is None
    assert len(proof["head"]) == len(proof["state"]) == 64
    assert sh(f"log verify {log} -f value").out.split("\t")[0] == "verified"
    assert proof["head"] in sh(f"log verify {log}").out


def test_a_file_answers_like_its_daemon(log: Path, sh: Shell) -> None:
    assert sh(f"study list --log {log} -f json").json[0]["closed_by"] == "trials"
    page = sh(f"study show kept --log {log} -f json").json
    assert (page["trials"]["complete"], page["trials"]["fail"]) == (9, 1)
    assert "9" in sh(f"study show kept --log {log}").out
    best = sh(f"study best kept --log {log} -f json").json
    assert best["value"] == page["best"]["value"]
    for rule in ("mean", "one-se"):
        assert sh(f"study best kept --rule {rule} --log {log} -f json").json["rule"] == rule
    assert len(sh(f"study export kept --log {log}").out.splitlines()) == 11
    assert [row["trial"] for row in sh(f"trial list kept --log {log} -f json").json] == list(range(1, 11))
    shown = sh(f"trial show kept 5 --log {log} -f json").json
    assert (shown["class"], shown["error"]) == ("oom", "no room")
    assert "no trial 99" in sh(f"trial show kept 99 --log {log}", code=1).err
    assert "no study 'other'" in sh(f"study show other --log {log}", code=1).err


def test_replay_to_any_moment(log: Path, sh: Shell) -> None:
    end = sh(f"log replay {log} -f json").json
    whole = sh(f"log verify {log} -f json").json
    assert end["digest"] == whole["state"]
    assert end["studies"][0]["fit"]["n"] > 0
    assert end["studies"][0]["posterior"]["sd"] > 0

    third = find(log, "trial.completed", 2)
    then = sh(f"log replay {log} --at {third} -f json").json
    assert (then["seq"], then["studies"][0]["trials"]["complete"]) == (third, 3)
    before = sh(f"log replay {log} --at {third - 1} -f json").json
    assert before["studies"][0]["trials"]["complete"] == 2
    assert before["digest"] != then["digest"]
    by_time = sh(f"log replay {log} --at {then['time']} -f json").json
    assert by_time == then
    assert "posterior" in sh(f"log replay {log}").out

    for line in ("study list", "study show kept", "study best kept", "study export kept", "trial list kept"):
        assert sh(f"{line} --log {log} --at {third}").out != sh(f"{line} --log {log}").out or "best" in line
        assert f"as of event {third}" in sh(f"{line} --log {log} --at {third}").err or "show" in line
        assert "the log ends at event" in sh(f"{line} --log {log} --at 99999", code=2).err
    assert "the log ends at event" in sh(f"log replay {log} --at 99999", code=2).err
    assert "there is nothing before it" in sh(f"log replay {log} --at 0", code=2).err
    assert "the log begins after" in sh(f"log replay {log} --at 2020-01-01", code=2).err
    assert "neither a seq nor a time" in sh(f"log replay {log} --at yesterday", code=2).err
    assert sh(f"log replay {log} --at 2999-01-01T00:00:00+01:00 -f json").json["digest"] == end["digest"]


def test_show_in_words(log: Path, sh: Shell) -> None:
    said = sh(f"log show {log}").out
    assert "study.created" in said
    assert "oom" in said
    assert "bayes over x" in said
    only = sh(f"log show {log} --study kept --trial 3").out.splitlines()
    assert [line.split()[3] for line in only[1:]] == ["trial.proposed", "trial.leased", "trial.completed"]
    rows = sh(f"log show {log} --type trial.completed --limit 2 -f json").json
    assert [row["type"] for row in rows] == ["trial.completed"] * 2
    assert len(sh(f"log show {log} --after 5 -f value").out.splitlines()) == len(said.splitlines()) - 1 - 5
    assert {line.split("\t")[2] for line in sh(f"log show {log} -f value").out.splitlines()} <= KNOWN


def test_export_is_byte_for_byte(log: Path, sh: Shell, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    sh(f"log export {log} -o {target}")
    lines = target.read_bytes().splitlines()
    hashes = [sha256(b"\0" + line).hexdigest() for line in lines]
    assert [json.loads(line)["prev"] for line in lines[1:]] == hashes[:-1]
    assert hashes[-1] == sh(f"log verify {log} -f json").json["head"]


def test_reading_changes_nothing(log: Path, sh: Shell) -> None:
    before = sha256(log.read_bytes()).digest()
    for line in ("log verify", "log replay", "log show", "study list --log"):
        sh(f"{line} {log}")
    assert sha256(log.read_bytes()).digest() == before


# --- Damaged -----------------------------------------------------------------------------------------


READS = ("log verify {log}", "log show {log}", "log replay {log}", "log export {log} -o {out}",
         "study list --log {log}", "study show kept --log {log}", "study best kept --log {log}",
         "study export kept --log {log}")


@pytest.mark.parametrize("line", READS)
def test_damage_is_named_after_what_is_good_is_shown(log: Path, sh: Shell, line: str, tmp_path: Path) -> None:
    seq = find(log, "trial.completed", 5)
    spoil(log, seq, b'"trial.completed"', b'"trial.completee"')
    said = sh(line.format(log=log, out=tmp_path / "out"), code=65)
    assert f"damaged at event {seq}:" in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out or "export {log} -o" in line


def test_a_forged_event_breaks_the_chain_behind_it(log: Path, sh: Shell) -> None:
    seq = find(log, "trial.completed", 5)
    spoil(log, seq, b'"trial.completed"', b'"trial.completed"', mend=True)
    sh(f"log verify {log}")      # nothing was changed: a control of the forger
    spoil(log, seq, b'"seconds":4', b'"seconds":9', mend=True)
    said = sh(f"log verify {log} -f json", code=65)
    assert said.json["damaged_seq"] == seq + 1


def test_a_damage_after_the_moment_does_not_matter(log: Path, sh: Shell) -> None:
    seq = find(log, "trial.completed", 5)
    spoil(log, seq, b'"trial.completed"', b'"trial.completee"')
    sh(f"log replay {log} --at {seq - 1}")
    sh(f"log replay {log} --at {seq}", code=65)


def test_a_snapshot_that_lies_is_damage(log: Path, sh: Shell) -> None:
    """A daemon would start from it, although the chain is intact."""
    from bayesd.study import snapshot
    from bayesd.study.state import State
    digest, blob = snapshot.dump(State())
    with contextlib.closing(sqlite3.connect(log)) as db:
        db.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?)", (5, snapshot.CODEC, digest, blob))
        db.commit()
    said = sh(f"log verify {log} -f json", code=65)
    assert said.json["damaged_seq"] == 5
    assert "snapshot" in said.err


def test_what_is_no_log(tmp_path: Path, sh: Shell) -> None:
    for line in ("log verify", "log replay", "log show", "study list --log"):
        assert "No such file" in sh(f"{line} {tmp_path}/nothing.db", code=78).err
    (tmp_path / "text.db").write_text("not a log\n" * 100)
    for line in ("log verify", "log verify -f json", "log audit"):
        said = sh(f"{line} {tmp_path}/text.db", code=65)
        assert ("is not a log of bayesd" in said.err, "event 1" in said.err, said.out) == (True, True, "")
    for line in ("log verify", "log audit"):
        (tmp_path / "empty.db").touch()
        said = sh(f"{line} {tmp_path}/empty.db", code=78)
        assert ("is empty" in said.err, said.out) == (True, "")
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE x (y)")
    assert "not a log of bayesd" in sh(f"log verify {tmp_path}/other.db", code=78).err
