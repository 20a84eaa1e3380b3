"""The demo: it ends with a proof, the proof can fail, and nothing that it started outlives it."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.edges.mosquitto import free_port
from tests.edges.test_cli import environment

from bayesd import log
from bayesd.demo import MARK, WORKERS, model
from bayesd.demo.proof import Witnesses, prove
from bayesd.demo.stage import Stage
from bayesd.files import read_study

pytestmark = pytest.mark.slow
TRIALS = 12


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "bayesd.cli", "demo", "--dir", str(folder), "--trials", str(TRIALS)]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One demo, end to end, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(command(folder / "d"), env=environment(folder), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder / "d", done.stdout


def test_it_kills_and_nothing_is_lost(played: tuple[Path, str]) -> None:
    _, said = played
    assert said.count("killed (SIGKILL)") == 2
    assert re.search(r"py-2 killed \(SIGKILL\) +its lease on #\d\d", said)
    assert re.search(r"daemon restarted +\d+ events replayed, serving after", said)
    assert "gets it again, fence 2" in said
    assert len(re.findall(r"^#\d\d ", said, re.MULTILINE)) == TRIALS
    assert f"done     {TRIALS} trials, {len(WORKERS)} workers, 2 lives of the daemon" in said
    assert re.search(r"^pick     #\d+  ", said, re.MULTILINE)
    assert "0 lost, 0 doubled" in said
    assert "chain intact" in said
    assert "next     bayesd study best digits-svm" in said


def test_each_kind_of_worker_took_part(played: tuple[Path, str]) -> None:
    folder, _ = played
    names = {json.loads(line)["worker"] for line in (folder / "measured.jsonl").read_text().splitlines()}
    assert names == set(WORKERS)


def test_nothing_that_it_started_lives_on(played: tuple[Path, str]) -> None:
    _, said = played
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", said)]
    assert len(pids) >= 5
    assert not [pid for pid in pids if is_alive(pid)]


def test_the_commands_that_it_names_work(played: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    from bayesd.cli import run
    _, said = played
    lines = said[said.index("next "):].removeprefix("next").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)      # as a shell would read it
        assert words[0] == "bayesd"
        if "create" not in words:      # that one is for the reader's own daemon
            assert run(words[1:]) == 0, capsys.readouterr().err


Change = Callable[[Witnesses, Path], None]


def forget_an_event(seen: Witnesses, ledger: Path) -> None:
    key, (seq, hash) = next(iter(seen.receipts.items()))
    seen.receipts[key] = seq, "0" * len(hash)


def measure_more(seen: Witnesses, ledger: Path) -> None:
    ledger.write_text(ledger.read_text() + json.dumps(
        {"worker": "py-1", "trial": 99, "fence": 1, "folds": [1.0], "time": time.time()}) + "\n")


def measure_otherwise(seen: Witnesses, ledger: Path) -> None:
    first, rest = ledger.read_text().split("\n", 1)
    entry = json.loads(first)
    entry["folds"][0] += 0.5
    ledger.write_text(json.dumps(entry) + "\n" + rest)


def believe_otherwise(seen: Witnesses, ledger: Path) -> None:
    seen.believed["trials"]["complete"] -= 1


@pytest.mark.parametrize(("change", "kind"), [
    (None, None), (forget_an_event, "lost"), (measure_more, "lost"), (measure_otherwise, "invented"),
    (believe_otherwise, "faults")])
def test_the_proof_can_fail(played: tuple[Path, str], tmp_path: Path, change: Change | None, kind: str | None) -> None:
    """Or it would prove nothing."""
    folder, _ = played
    ledger = tmp_path / "measured.jsonl"
    ledger.write_bytes((folder / "measured.jsonl").read_bytes())
    seen = Witnesses.load(folder / "heard.json")
    if change is not None:
        change(seen, ledger)
    found = prove(folder / "log.db", ledger, model.STUDY, TRIALS, seen)
    assert found.holds is (kind is None)
    for each in ("lost", "doubled", "invented", "faults"):
        assert bool(getattr(found, each)) is (each == kind), each


def test_a_result_that_is_there_twice_is_seen(played: tuple[Path, str], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = played
    real = log.read_events

    def twice(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
        for seq, body, hash in real(path):
            yield seq, body, hash
            if b'"trial.completed"' in body:
                yield seq, body, hash
    monkeypatch.setattr(log, "read_events", twice)
    found = prove(folder / "log.db", folder / "measured.jsonl", model.STUDY, TRIALS,
                  Witnesses.load(folder / "heard.json"))
    assert len(found.doubled) >= TRIALS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends the children of a process that was killed")
    process = subprocess.Popen(command(tmp_path / "d"), env=environment(tmp_path), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    pids: list[int] = []
    with process:
        for line in process.stdout:
            pids += [int(pid) for pid in re.findall(r"pid (\d+)", line)]
            if line.startswith("worker   any-1"):
                process.send_signal(number)
        code = process.wait(30)
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)      # the kernel ends them in its own time
    assert len(pids) == 4
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.mark.parametrize("goes_well", [True, False])
def test_the_stage_is_cleared_also_where_the_kernel_does_not(tmp_path: Path, goes_well: bool) -> None:
    """We live on here, so nothing but the stage itself can have ended them."""
    async def play() -> Stage:
        stage = Stage(tmp_path, free_port())
        with contextlib.suppress(ZeroDivisionError):
            async with stage:
                await stage.start_daemon()
                await stage.start_worker("py-1")
                if not goes_well:
                    raise ZeroDivisionError
        return stage
    stage = asyncio.run(play())
    assert len(stage.actors) == 2
    assert not [actor for actor in stage.actors if is_alive(actor.pid)]
    assert (b"stopping" in (tmp_path / "daemon.txt").read_bytes()) is goes_well


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter-1.tex").write_text("It was a dark and stormy night")
    done = subprocess.run(command(folder), env=environment(tmp_path), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "is not empty and not a demo's" in done.stderr
    assert os.listdir(folder) == ["chapter-1.tex"]


def test_an_older_demo_is_moved_aside(tmp_path: Path) -> None:
    from bayesd.demo import _own
    for text in ("one", "two", "three"):
        with _own(tmp_path / "d") as home:
            assert {path.name for path in home.iterdir()} <= {MARK, "old"}
            (home / "log.db").write_text(text)
    assert (tmp_path / "d" / "old" / "log.db").read_text() == "two"


def test_its_study_is_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(model.study_file(24))
    assert read_study(str(path)).spec.budget.trials == 24
