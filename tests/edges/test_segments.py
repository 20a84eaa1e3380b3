"""A log in pieces: written, checked alone and in a row, put together again; and what is wrong is named."""

import asyncio
import gzip
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edges.test_cli import Shell

from bayesd import Study, segments
from bayesd.log import CannotOpen, Damaged, SqliteLog, read_events, verify
from bayesd.notes import Signer
from bayesd.study.merkle import root_of

SPACE: Any = {"x": {"type": "float", "low": 0, "high": 1}}


def live(path: Path, trials: int, log_notes: bool = True) -> Path:
    with Study(SPACE, method="random", log=path) as study:
        for _ in range(trials):
            study.tell(study.ask(), 0.5)
    if log_notes:
        asyncio.run(_note(path))
    return path


async def _note(path: Path) -> None:
    """Heads, as a daemon signs them."""
    log = await SqliteLog.open(path)
    hashes = [hash for _, _, hash in read_events(path)]
    signer = Signer(json.loads(next(read_events(path))[1])["log"], bytes(32))
    for seq in (5, log.head()[0]):
        await log.save_note(seq, signer.sign(seq, root_of(hashes[:seq])).encode())
    await log.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return live(tmp_path / "log.db", 10)


@pytest.fixture
def pieces(log: Path) -> list[Path]:
    return [each.path for each in segments.archive(log, log.parent / "pieces", 10)]


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_log_goes_into_segments_and_comes_back_the_same(log: Path, sh: Shell, tmp_path: Path) -> None:
    made = sh(f"log archive {log} -o {tmp_path}/pieces --events 10 -f json").json
    whole = sh(f"log verify {log} -f json").json
    assert [(row["first"], row["last"]) for row in made] == [(1, 10), (11, 20), (21, 30), (31, whole["events"])]
    assert all(0 < row["ratio"] < 1 and row["size"] == Path(row["segment"]).stat().st_size for row in made)
    names = " ".join(row["segment"] for row in reversed(made))
    row = sh(f"log verify {names} -f json").json
    assert (row["head"], row["state"], row["first"], row["last"]) == (whole["head"], whole["state"], 1, whole["events"])
    back = sh(f"log import {names} -o {tmp_path}/back.db -f json").json
    assert (back["head"], back["state"]) == (whole["head"], whole["state"])
    again = sh(f"log verify {tmp_path}/back.db -f json").json
    assert {key: again[key] for key in ("head", "state", "events", "log", "damage")} == {
        key: whole[key] for key in ("head", "state", "events", "log", "damage")}
    assert segments.notes_of(tmp_path / "back.db") == segments.notes_of(log)
    assert not list(tmp_path.glob("*.import*"))
    with Study(SPACE, method="random", log=tmp_path / "back.db") as study:      # and it goes on
        study.tell(study.ask(), 0.5)
    assert verify(tmp_path / "back.db").events > whole["events"]


def test_a_segment_can_be_checked_with_plain_tools(log: Path, pieces: list[Path]) -> None:
    header = json.loads(pieces[1].with_name(pieces[1].name.replace(".jsonl.gz", ".json")).read_text())
    lines = subprocess.run(["gzip", "-dc", pieces[1]], capture_output=True, check=True).stdout
    assert hashlib.sha256(lines).hexdigest() == header["sha256"]
    prev = header["prev"]
    for body in lines.splitlines():
        assert json.loads(body)["prev"] == prev
        prev = hashlib.sha256(b"\0" + body).hexdigest()
    assert (prev, header["first"], header["last"]) == (header["hash"], 11, 20)
    first = json.loads(pieces[0].with_name(pieces[0].name.replace(".jsonl.gz", ".json")).read_text())
    assert [note.split("\n")[1] for note in first["notes"]] == ["5"]


def test_a_second_call_writes_only_what_is_new_and_what_was_broken_off_is_written_again(log: Path) -> None:
    folder = log.parent / "pieces"
    first = segments.archive(log, folder)
    assert segments.archive(log, folder) == []
    live(log, 2, log_notes=False)
    second = segments.archive(log, folder)
    assert second[0].header.first == first[-1].header.last + 1
    beside = second[0].path.with_name(second[0].path.name.replace(".jsonl.gz", ".json"))
    beside.unlink()
    (folder / (second[0].path.name + ".part")).write_bytes(b"half")
    assert segments.archive(log, folder) == second
    assert len(list(folder.iterdir())) == 4


def test_an_older_copy_of_the_log_adds_nothing_to_newer_segments(log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(log.read_bytes())
    live(log, 2, log_notes=False)
    segments.archive(log, tmp_path / "pieces")
    with pytest.raises(CannotOpen, match="older copy"):
        segments.archive(copy, tmp_path / "pieces")
    live(copy, 9, log_notes=False)                               # went on by itself: another history
    with pytest.raises(Damaged, match="it does not follow"):
        segments.archive(copy, tmp_path / "pieces")


def test_one_segment_and_any_row_of_them_and_the_live_log_verify(log: Path, pieces: list[Path], sh: Shell) -> None:
    assert sh(f"log verify {pieces[1]} -f json").json["state"] is None
    row = sh(f"log verify {pieces[2]} {pieces[1]} -f json").json
    assert (row["first"], row["last"]) == (11, 30)
    head = sh(f"log verify {log} -f json").json["head"]
    assert sh(f"log verify {log} {pieces[0]} -f json").json["head"] == head
    assert "intact" in sh(f"log verify {' '.join(map(str, pieces))} {log}").out
    plain = log.parent / "plain.jsonl"
    sh(f"log export {log} -o {plain}")
    assert sh(f"log verify {plain} -f json").json["head"] == head
    assert sh(f"log import {plain} -o {log.parent}/p.db -f json").json["head"] == head


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    with gzip.open(path) as file:
        lines = file.read().splitlines()
    with gzip.open(path, "wb") as file:
        file.write(b"".join(line + b"\n" for line in change(lines)))


@pytest.mark.parametrize(("change", "seq"), [
    (lambda lines: [*lines[:4], lines[4].replace(b'"v":1', b'"v":2'), *lines[5:]], 16),      # noticed by the next
    (lambda lines: lines[:4] + lines[5:], 15), (lambda lines: lines[:-1], 20),
    (lambda lines: [*lines[:-1], lines[-1].replace(b'"v":1', b'"v":2')], 21),                # by the file beside it
    (lambda lines: [*lines[:4], b"{", *lines[5:]], 15)])
def test_damage_is_named_by_its_event(pieces: list[Path], sh: Shell, change: Any, seq: int) -> None:
    rewrite(pieces[1], change)
    said = sh(f"log verify {pieces[1]} -f json", code=65)
    assert said.json["damaged_seq"] == seq
    out = pieces[0].parent / "out.db"
    sh(f"log import {pieces[0]} {pieces[1]} -o {out}", code=65)
    assert not out.exists()


def test_a_cut_file_a_gap_and_another_log_are_told_apart(log: Path, pieces: list[Path], sh: Shell) -> None:
    other = live(log.parent / "other.db", 10)
    theirs = segments.archive(other, log.parent / "theirs", 10)
    said = sh(f"log verify {pieces[0]} {pieces[2]}", code=65).err
    assert "no file given holds events 11 to 20" in said
    assert "of another log" in sh(f"log verify {pieces[0]} {theirs[1].path}", code=65).err
    said = sh(f"log verify {theirs[0].path} {log}", code=65).err
    assert "another event there" in said
    assert "events 1 to 10" in sh(f"log import {pieces[1]} -o {log.parent}/x.db", code=2).err
    assert "is there already" in sh(f"log import {pieces[0]} -o {log}", code=2).err
    pieces[0].write_bytes(pieces[0].read_bytes()[:-30])
    assert sh(f"log verify {pieces[0]} -f json", code=65).json["chain"] == "broken"


def test_a_log_and_its_older_segments_make_the_whole(log: Path, pieces: list[Path], sh: Shell) -> None:
    live(log, 3, log_notes=False)
    head = sh(f"log verify {log} -f json").json["head"]
    back = sh(f"log import {' '.join(map(str, pieces))} {log} -o {log.parent}/whole.db -f json").json
    assert back["head"] == head


def by_itself(line: str) -> "subprocess.CompletedProcess[str]":
    """As it is typed: a process of its own, in which only what the verb needs is imported."""
    return subprocess.run([sys.executable, "-m", "bayesd.cli", *shlex.split(line)], capture_output=True, text=True,
                          timeout=60, check=False)


@pytest.mark.parametrize(("line", "code", "words"), [
    ("log import {a} -o {log}", 2, "is there already"),
    ("log import {b} -o {dir}/new.db", 2, "events 1 to 10"),
    ("log import {dir} -o {dir}/new.db", 2, "directory"),
    ("log import {dir}/empty -o {dir}/new.db", 2, "is empty"),
    ("log import {dir}/text -o {dir}/new.db", 65, "is not a log of bayesd"),
    ("log import {dir}/odd.jsonl -o {dir}/new.db", 65, "cannot be read there"),
    ("log import {dir}/half.jsonl -o {dir}/new.db", 65, "is no event"),
    ("log import {a} -o {dir}/text/new.db", 74, "Not a directory"),
    ("log archive {dir}/nothing.db", 78, "No such file"),
    ("log archive {dir}/text", 65, "is not a log of bayesd"),
    ("log archive {log} -o {dir}/text", 74, "cannot write"),
    ("log verify {dir}/pieces", 2, "directory"),
    ("log export {log} -o {dir}/text/out", 74, "Not a directory")])
def test_what_a_user_gets_wrong_is_no_bug(log: Path, pieces: list[Path], line: str, code: int, words: str) -> None:
    folder = log.parent
    (folder / "empty").touch()
    (folder / "text").write_text("just a few words\n")
    (folder / "odd.jsonl").write_text('{"seq": "one"}\n')
    (folder / "half.jsonl").write_text('{"seq": 2}\n')
    said = by_itself(line.format(log=log, dir=folder, a=pieces[0], b=pieces[1]))
    assert (said.returncode, words in said.stderr, "bug" in said.stderr) == (code, True, False), said.stderr
    assert said.stderr.startswith("error: ") or "\nerror: " in said.stderr
    assert not list(folder.glob("new.db*"))


@pytest.mark.parametrize("note", ["", "one line", "a\nb\nc"])
def test_a_note_beside_a_segment_that_is_none_is_a_clean_error(tmp_path: Path, note: str) -> None:
    header = segments.Header("l", 1, 1, "0" * 64, "0" * 64, "0" * 64, 1, [note])
    with pytest.raises(CannotOpen, match="move it away"):
        segments._noted(tmp_path / "l-1-1.jsonl.gz", header)
