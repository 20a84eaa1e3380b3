"""The note by which clients on a machine find their daemon."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bayesd.config import read_runtime, runtime_file, write_runtime


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def other() -> Iterator[int]:
    """A process that lives, in the place of another daemon."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def leave_note_of(pid: int) -> dict[str, object]:
    note: dict[str, object] = {"broker": "mqtt://127.0.0.1:1", "pid": pid, "log": "/other.db", "root": ""}
    runtime_file().parent.mkdir()
    runtime_file().write_text(json.dumps(note))
    return note


def test_a_daemon_takes_its_own_note_back() -> None:
    note = write_runtime("mqtt://127.0.0.1:2", Path("/log.db"), "")
    assert note is not None
    assert read_runtime() is not None
    note.take_back()
    assert not runtime_file().exists()


def test_a_daemon_that_goes_first_gives_the_note_back_to_the_other(other: int) -> None:
    before = leave_note_of(other)
    note = write_runtime("mqtt://127.0.0.1:2", Path("/log.db"), "")
    assert note is not None
    note.take_back()
    assert read_runtime() == before


def test_a_daemon_does_not_take_the_note_of_a_later_one(other: int) -> None:
    note = write_runtime("mqtt://127.0.0.1:2", Path("/log.db"), "")
    assert note is not None
    runtime_file().unlink()
    runtime_file().parent.rmdir()
    later = leave_note_of(other)
    note.take_back()
    assert read_runtime() == later
