"""What lies on disk survives whatever the process dies of."""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayesd_client.errors import BadAddress, BadOptions, NameInUse
from bayesd_client.kept import SavedGrant, SavedHead, SavedTell
from bayesd_client.spool import FileSpool, claim, clean, state_folder, write_safely

KEY = ("s", 7, 1)
TELL = SavedTell({"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 0.5}, "log-a")
GRANT = SavedGrant({"ask": "r.1", "study": "s", "trial": 7, "fence": 1, "params": {}}, 1, "log-a")
StartPython = Callable[..., "subprocess.Popen[str]"]


def test_what_is_saved_is_there_again(tmp_path: Path) -> None:
    with FileSpool(tmp_path / "w") as spool:
        spool.save_grant(KEY, GRANT)
    with FileSpool(tmp_path / "w") as spool:
        assert spool.load() == ([GRANT], [])
        spool.save_tell(KEY, TELL)
    with FileSpool(tmp_path / "w") as spool:
        assert spool.load() == ([], [TELL])
        spool.drop_tell(KEY)
        spool.drop_tell(KEY)
        assert spool.load() == ([], [])


def test_the_newest_head_is_there_again_and_a_broken_one_is_none(tmp_path: Path) -> None:
    with FileSpool(tmp_path / "w") as spool:
        assert spool.load_head() is None
        spool.save_head(SavedHead("log-a", "bayesd/log-a\n7\n\u2014\n"))
    with FileSpool(tmp_path / "w") as spool:
        head = spool.load_head()
        assert head is not None
        assert (head, head.size) == (SavedHead("log-a", "bayesd/log-a\n7\n\u2014\n"), 7)
        (tmp_path / "w" / "head.json").write_text('{"log": "log-a"}')
        assert spool.load_head() is None


def test_a_rejected_tell_is_kept_with_the_daemons_words(tmp_path: Path) -> None:
    with FileSpool(tmp_path / "w") as spool:
        spool.save_tell(KEY, TELL)
        spool.reject_tell(KEY, {"status": "rejected", "reason": "unknown-trial"})
        spool.reject_tell(KEY, {})                       # twice is no harm
        assert spool.load() == ([], [])
    kept = json.loads((tmp_path / "w/rejected/s.7.1.json").read_text())
    assert kept == {"tell": TELL.tell, "receipt": {"status": "rejected", "reason": "unknown-trial"}}


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b'{"tell": {"id": "t', b"[]", b'{"tell": 3}', b"\xff\xfe",
                                    b'{"tell": {"id": "t", "study": "s", "trial": true, "fence": 1}}', b"[" * 100_000])
def test_a_torn_file_is_set_aside_with_a_warning(tmp_path: Path, damage: bytes,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    with FileSpool(tmp_path / "w") as spool:
        spool.save_tell(KEY, TELL)
        for name in ("s.8.1.json", "s.9.1.json"):
            (tmp_path / "w/tells" / name).write_bytes(damage)
            (tmp_path / "w/grants" / name).write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert spool.load() == ([], [TELL])
        assert len(list((tmp_path / "w/damaged").iterdir())) == 4
        assert caplog.text.count("set aside") == 4
        assert spool.load() == ([], [TELL])


def test_two_processes_take_different_default_names(tmp_path: Path, start_python: StartPython,
                                                    until: Callable[..., None]) -> None:
    child = start_python("-c", "import sys, pathlib; from bayesd_client.spool import claim; "
                         "name, held = claim(None, None, pathlib.Path(sys.argv[1])); print(name, flush=True); "
                         "sys.stdin.read(); import time; time.sleep(600)", str(tmp_path))
    assert child.stdout is not None
    theirs = child.stdout.readline().strip()
    ours, held = claim(None, None, tmp_path)
    third, also_held = claim(None, None, tmp_path)       # in one process, too
    host = theirs.removesuffix("-1")
    assert (theirs, ours, third) == (f"{host}-1", f"{host}-2", f"{host}-3")
    with pytest.raises(NameInUse, match="another process"):
        claim(theirs, None, tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    again, first = claim(None, None, tmp_path)           # a restart finds its own spool
    assert again == theirs
    for spool in (held, also_held, first):
        spool.close()


def test_a_fork_that_outlives_the_worker_does_not_keep_its_name(tmp_path: Path, start_python: StartPython) -> None:
    child = start_python("-c", "import os, sys, time, pathlib; from bayesd_client.spool import claim; "
                         "claim('w', None, pathlib.Path(sys.argv[1])); pid = os.fork()\n"
                         "if pid: print(pid, flush=True)\n"
                         "time.sleep(600)", str(tmp_path))
    assert child.stdout is not None
    orphan = int(child.stdout.readline())
    try:
        child.kill()
        child.wait()
        claim("w", None, tmp_path)[1].close()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_names(tmp_path: Path) -> None:
    name, spool = claim("gpu-07", "user", tmp_path)
    assert name == "gpu-07"
    spool.close()
    name, spool = claim(None, "user", tmp_path)
    assert name == "user"
    spool.close()
    with pytest.raises(BadAddress, match="--name"):
        claim("GPU 7", None, tmp_path)
    assert clean("GPU_7.Example.ORG") == "gpu_7.example.org"
    assert clean("__ü__") == "worker"
    assert len(clean("x" * 300)) <= 56


def test_a_spool_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOptions, match="--spool"):
        claim("w", None, tmp_path / "file")


def test_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "bayesd/workers"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")     # the XDG rule: then it is as if unset
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local/state/bayesd/workers"


CRASH = """
import os, signal, sys, pathlib
from bayesd_client import spool as spool_module
from bayesd_client.kept import SavedGrant, SavedTell
point, folder = sys.argv[1], pathlib.Path(sys.argv[2])
count = 0
def dies(name, real):
    def call(*arguments, **more):
        global count
        if name == point.split(":")[0]:
            if count == int(point.split(":")[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        return real(*arguments, **more)
    return call
spool = spool_module.FileSpool(folder)
key = ("s", 7, 1)
for name in ("open", "fsync", "rename"):
    setattr(os, name, dies(name, getattr(os, name)))
spool_module.Path.unlink = dies("unlink", spool_module.Path.unlink)
spool.save_grant(key, SavedGrant({"trial": 7}, 1))
print("granted", flush=True)
spool.save_tell(key, SavedTell({"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 0.5}))
print("told", flush=True)
spool.drop_tell(key)
print("dropped", flush=True)
"""


STEPS = {"open": 4, "fsync": 4, "rename": 2, "unlink": 2}


@pytest.mark.parametrize("point", [f"{step}:{number}" for step, count in STEPS.items() for number in range(count)])
def test_kill_9_at_every_step(tmp_path: Path, point: str, start_python: StartPython) -> None:
    child = start_python("-c", CRASH, point, str(tmp_path / "w"))
    said, errors = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL, errors
    with FileSpool(tmp_path / "w") as spool:
        grants, tells = spool.load()
        if "told" in said:
            assert [tell.tell["value"] for tell in tells] == [0.5]
        elif "granted" in said:
            assert grants or tells
        assert not list((tmp_path / "w/damaged").iterdir())
        assert not list((tmp_path / "w").rglob("*.part"))


def test_a_tell_that_cannot_be_set_aside_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    with FileSpool(tmp_path / "w") as spool:
        spool.save_tell(("s", 7, 1), SavedTell({"id": "t.s.7.1", "study": "s", "trial": 7, "fence": 1, "value": 0.5}))
        with monkeypatch.context() as patch:
            patch.setattr("bayesd_client.spool.write_safely", full)
            with pytest.raises(OSError, match="No space"):
                spool.reject_tell(("s", 7, 1), {"status": "rejected"})
        assert [tell.tell["value"] for tell in spool.load()[1]] == [0.5]
        spool.reject_tell(("s", 7, 1), {"status": "rejected"})
        assert spool.load()[1] == []
        assert len(list((tmp_path / "w/rejected").iterdir())) == 1


def test_a_write_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    def spy_on(name: str, real: Callable[..., None]) -> None:
        def spy(*arguments: Any) -> None:
            order.append(name)
            real(*arguments)
        monkeypatch.setattr(os, name, spy)
    spy_on("fsync", os.fsync)
    spy_on("rename", os.rename)
    write_safely(tmp_path / "a.json", {"a": 1})
    assert order == ["fsync", "rename", "fsync"]         # the file, its name, its folder
