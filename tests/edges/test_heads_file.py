"""The heads file: notes and nothing else, whatever a crash or a person did to it. And the key beside a new log."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from bayesd.config import ConfigError
from bayesd.log import MemoryDisk, MemoryLog, Note
from bayesd.notes import Signer, is_cut, join, split
from bayesd.outside import HeadFiles, signer_of

SIGNER = Signer("0123456789abcdef", bytes(32))
NOTES = [SIGNER.sign(size, bytes([size]) * 32) for size in (1, 2, 3)]
WHOLE = join(NOTES).encode()
LAST = len(join(NOTES[:2]).encode())


def files(path: Path, text: bytes) -> HeadFiles:
    path.write_bytes(text)
    return HeadFiles(path.with_name("log.db"), path)


def test_a_crash_at_any_byte_leaves_a_file_that_the_next_note_makes_whole(tmp_path: Path) -> None:
    path = tmp_path / "heads.txt"
    for end in range(LAST, len(WHOLE) + 1):
        kept = files(path, WHOLE[:end])
        ((_, found),) = kept.read()
        assert list(found) in (NOTES[:2], NOTES), end
        kept.keep(SIGNER.sign(4, bytes(32)))
        said = path.read_text(encoding="utf-8")
        assert said == join([*found, SIGNER.sign(4, bytes(32))]), end
        assert split(said) == [*found, SIGNER.sign(4, bytes(32))]


def test_in_a_file_that_can_only_grow_the_piece_stays_and_is_left_out(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refused(file: int, size: int) -> None:
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "ftruncate", refused)
    path = tmp_path / "heads.txt"
    for end in range(LAST + 1, len(WHOLE) - 2):
        kept = files(path, WHOLE[:end])
        kept.keep(NOTES[2])
        texts = split(path.read_text(encoding="utf-8", errors="replace"))
        assert [text for text in texts if not is_cut(text)] == NOTES, end
        assert list(kept.read()[0][1]) == NOTES
    with caplog.at_level(logging.WARNING):
        kept.read()
    assert "line 13: a note that a crash cut short" in caplog.text


@pytest.mark.parametrize(("text", "line"), [
    (b"this is no note\n", 1), (b"\x00\xff\xfe", 1), (WHOLE + b"# a comment\n", 19),
    (b"2026-11-23 all is well\n\n" + WHOLE, 1), (WHOLE[:LAST] + b"bayesd/x\nmany\n", 13), (b'{"log": "x"}', 1)])
def test_what_is_not_notes_is_refused_with_its_line(tmp_path: Path, text: bytes, line: int) -> None:
    with pytest.raises(ConfigError, match=f"heads.txt, line {line}: .*--heads"):
        files(tmp_path / "heads.txt", text).read()


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    kept = files(tmp_path / "heads.txt", b"")
    assert list(kept.read()[0][1]) == []
    kept.keep(NOTES[0])
    assert (tmp_path / "heads.txt").read_text(encoding="utf-8") == join(NOTES[:1])


def test_a_new_key_is_saved_when_the_log_has_a_name_and_not_before(tmp_path: Path) -> None:
    # A first start that is killed before its first event leaves a log without a name. The next start gives it
    # another one, and a key of the name before would be refused for ever.
    async def lives() -> None:
        log = await MemoryLog.open()
        for log_id in ("name-of-a-life-that-was-killed", "name-of-the-next-life"):
            signer, save = await signer_of(log, log_id, tmp_path / "log.db", None, None)
            assert not (tmp_path / "log.db.key").exists()
        save()
        again, _ = await signer_of(log, log_id, tmp_path / "log.db", None, None)
        assert again.vkey == signer.vkey
    asyncio.run(lives())


def test_heads_that_cannot_be_read_are_said_and_what_is_not_there_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        HeadFiles(tmp_path / "log.db", tmp_path / "heads").read()
    files = HeadFiles(tmp_path / "log.db", None)
    files.remember(NOTES[0])
    assert [list(notes) for _, notes in files.read()] == [[NOTES[0]]]
    for _ in range(2):
        files.forget()
        assert files.read() == []


# ---------------------------------------------------------------- the key of a log


async def _signer(log: MemoryLog, folder: Path, given: Path | None = None, credential: Path | None = None) -> Signer:
    signer, save = await signer_of(log, "0123456789abcdef", folder / "log.db", given,
                                   None if credential is None else str(credential))
    save()
    return signer


def test_a_log_makes_its_key_once_and_takes_it_from_where_it_was_put(tmp_path: Path) -> None:
    async def story() -> None:
        log = await MemoryLog.open(MemoryDisk())
        made = await _signer(log, tmp_path)
        assert (tmp_path / "log.db.key").stat().st_mode & 0o777 == 0o600
        assert (await _signer(log, tmp_path)).vkey == made.vkey
        for where in ("given", "credential"):
            SIGNER.save(tmp_path / where)
            assert (await _signer(log, tmp_path, **{where: tmp_path / where})).vkey == SIGNER.vkey
        other = await _signer(log, tmp_path, given=tmp_path / "new", credential=tmp_path / "credential")
        assert Signer.load(tmp_path / "new", SIGNER.log).vkey == other.vkey
        assert other.vkey not in (made.vkey, SIGNER.vkey)

    asyncio.run(story())


def test_a_log_that_has_signed_gets_no_other_key_where_one_was_given(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        disk = MemoryDisk()
        disk.notes.append(Note(1, NOTES[0].encode()))
        log = await MemoryLog.open(disk)
        with pytest.raises(ConfigError, match="put the key back"):
            await _signer(log, tmp_path, given=tmp_path / "away")
        assert not (tmp_path / "away").exists()
        assert "who holds the public key of before" not in caplog.text
        await _signer(log, tmp_path)            # beside the log it goes on with a new one, and says so
        assert "who holds the public key of before" in caplog.text
        caplog.clear()
        await _signer(log, tmp_path)
        assert caplog.text == ""

    asyncio.run(story())
